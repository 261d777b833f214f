"""8 bits, trained: fake quantization with learned ranges that keeps exact zeros.

    precision = bits x granularity x range estimator

``fake`` is the mathematics, ``ranges`` the first ranges, ``spec`` the choices, ``layers`` the modules, ``prepare`` what puts
them into a model.
"""

from prunus.quantization.layers import QuantEmbedding, QuantLinear
from prunus.quantization.prepare import quantize, restore, to_float
from prunus.quantization.spec import Quantization

__all__ = ["QuantEmbedding", "QuantLinear", "Quantization", "quantize", "restore", "to_float"]
