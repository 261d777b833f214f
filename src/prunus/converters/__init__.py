"""Configurations of other tools -> recipes: NNCF's ``nncf_config.json`` and Model-Compression-Research-Package's JSON.

What a recipe cannot say is named, line by line; nothing is dropped in silence.
"""

import json
from pathlib import Path
from typing import Any

from prunus.converters.mcr import convert_mcr
from prunus.converters.nncf import convert_nncf
from prunus.converters.reading import Converted
from prunus.errors import Problem, RecipeError
from prunus.recipe import read_recipe

__all__ = ["Converted", "convert_file"]

LARGEST = 1 << 20
MCR = {"pruning_fn", "pruning_fn_default_kwargs", "policy_begin_step", "policy_end_step", "pruning_frequency"}


def nncf_algorithms(values: Any) -> dict[str, Any] | None:
    """NNCF's configuration in its whole form; None for what is none.

    Optimum Intel took the list of algorithms, or one of them, without the object around it.
    """
    if isinstance(values, dict) and "compression" in values:
        return values
    several = [values] if isinstance(values, dict) else values
    if isinstance(several, list) and several and all(isinstance(one, dict) and "algorithm" in one for one in several):
        return {"compression": values}
    return None


def convert_file(path: Path) -> Converted:
    """Reads a configuration of either tool.

    Raises:
        RecipeError: no JSON object, or of neither tool, or one that means no valid recipe.

    """
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(Problem(str(path), f"{path.stat().st_size} bytes", "be at most 1 MiB"))
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(Problem(str(path), str(error), "be a file of JSON")) from None
    algorithms = nncf_algorithms(values)
    if algorithms is not None:
        converted = convert_nncf(algorithms)
    elif isinstance(values, dict) and MCR & set(values):
        converted = convert_mcr(values)
    else:
        rule = "be an nncf_config.json or a pruning configuration of Model-Compression-Research-Package"
        raise RecipeError(Problem(str(path), type(values).__name__, rule))
    read_recipe(converted.recipe)
    return converted
