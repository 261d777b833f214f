"""From a finished run, or any Hugging Face directory, to what a runtime loads.

export_packed(directory, output, ...)      int8 or float32, for ``prunus.runtime``
"""

from prunus.export.packed import Calibration, export_packed

__all__ = ["Calibration", "export_packed"]
