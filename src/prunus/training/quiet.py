"""Other libraries' chatter, turned down where prunus prints its own progress."""

import os
import warnings

__all__ = ["quiet"]


def quiet() -> None:
    """Only errors and our own progress reach the terminal; for programs, not for libraries that import prunus."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|transformers|accelerate")
