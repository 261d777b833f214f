"""``python -m prunus``: the command line; what ``accelerate launch -m prunus`` starts."""

from prunus.cli import main

if __name__ == "__main__":
    main()
