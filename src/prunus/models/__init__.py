"""Models: loading them by name, running them over data, how long their layers take."""
