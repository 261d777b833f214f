"""Where things are kept between runs: ``$PRUNUS_CACHE``, else ``prunus`` in the user's cache directory.

kernels    compiled code of the runtime
dense      fine-tuned dense models
tokens     tokenised text of language modelling
"""

import os
import tempfile
from pathlib import Path
from typing import Literal

__all__ = ["cache_directory", "cache_or_temporary"]

Kind = Literal["kernels", "dense", "tokens"]


def cache_directory(kind: Kind) -> Path | None:
    """The directory for one kind; None for a user without a home."""
    named, home = os.environ.get("PRUNUS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) / kind if named else Path(home or Path.home() / ".cache") / "prunus" / kind
    except RuntimeError:
        return None


def cache_or_temporary(kind: Kind) -> Path:
    """The same, or a directory in the place for temporary files."""
    return cache_directory(kind) or Path(tempfile.gettempdir()) / "prunus" / kind
