"""Sparsity: pruning = pattern x criterion x schedule x allocation. Needs torch and nothing else."""

from prunus.sparsity.allocation import Allocation
from prunus.sparsity.locking import Lock, lock
from prunus.sparsity.masker import Masker
from prunus.sparsity.patterns import Block, Columns, NofM, Pattern, Rows, Unstructured, parse_pattern
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.schedules import Schedule, Span, parse_span
from prunus.sparsity.targets import Selection, Targets, select

__all__ = [
    "Allocation",
    "Block",
    "Columns",
    "Lock",
    "Masker",
    "NofM",
    "Pattern",
    "Pruning",
    "Rows",
    "Schedule",
    "Selection",
    "Span",
    "Targets",
    "Unstructured",
    "lock",
    "parse_pattern",
    "parse_span",
    "select",
]
