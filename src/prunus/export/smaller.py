"""A saved model with smaller layers: what does nothing is taken out, and the outputs are compared before anything is written.

    prunus compact DIR        DIR-compact: config.json with its layout, weights, tokenizer, prunus.json

``DIR`` is the output of a run, or any Hugging Face directory whose heads or neurons have lost the columns that read them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from prunus._version import __version__
from prunus.architectures import KEYS
from prunus.checkpoint.huggingface import compact
from prunus.checkpoint.sentence_files import find_sentence_files, model_directory
from prunus.checkpoint.staged import is_new, staged
from prunus.checkpoint.tensor_io import RANGES_FILE
from prunus.errors import CheckpointError, Problem, first_line
from prunus.export.source import carry_tokenizer
from prunus.models.checkpoints import load_checkpoint, read_config
from prunus.models.hub import name_of
from prunus.report.facts import FACTS_FILE, RunFacts, read_facts, write_facts
from prunus.sparsity.compact import Layout
from prunus.sparsity.structures import Structure, structures

__all__ = ["compact_directory"]

_CLASSES: Final[dict[str, Any]] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "ForImageClassification": AutoModelForImageClassification,
}
_OUTPUTS: Final = (
    "logits",
    "start_logits",
    "end_logits",
    "prediction_logits",
    "seq_relationship_logits",
    "last_hidden_state",
)
"""What models give, by name, of which all that is there is compared."""
_ROWS, _TOKENS, _SEED = 4, 32, 0
_TOLERANCE: Final = 1e-3
"""Of the largest output: rounding of float32 sums is a hundredth of it."""


def read_model(directory: Path) -> Any:
    """The model of a directory with the head that its ``config.json`` names, in float32 and evaluation mode.

    Raises ``PrunusError`` where it cannot be read, and for models that do not read tokens or pixels alone.
    """
    config = read_config(directory)
    name = str(next(iter(config.architectures or ()), ""))
    cls = getattr(transformers, name, None)  # of its own class: another one would lose the head
    if not isinstance(cls, type) or not issubclass(cls, PreTrainedModel):
        cls = next((auto for suffix, auto in _CLASSES.items() if name.endswith(suffix)), AutoModel)
    return load_checkpoint(cls, directory, config)


def compact_directory(directory: Path, output: Path, console: Console | None = None) -> dict[str, Any]:
    """Writes the smaller model into ``output``, a new directory, and returns what was counted and compared.

    Its tokenizer goes with it, and the modules of a sentence-transformers directory.

    Raises ``CheckpointError`` where nothing can be taken out, for a model that was trained in 8 bits, and where the outputs
    would not stay.
    """
    if not is_new(output):
        raise CheckpointError(Problem("--output", str(output), "be a new directory", "another name"))
    if (directory / RANGES_FILE).is_file():
        rule = "be in float32: learned ranges belong to layers as they are"
        raise CheckpointError(Problem("directory", "8 bits", rule, "prunus export --to onnx or openvino"))
    sentences = find_sentence_files(directory)
    source, directory = directory, model_directory(directory)
    model = read_model(directory)
    before, before_structures = _counts(model), structures(model)
    inputs, expected = _tried(model)
    layout = compact(model)
    if not layout:
        rule = "hold heads or neurons whose columns in the layer that reads them are all zero"
        fix = "pattern: heads or ffn in a recipe; zeros in blocks leave every layer its size"
        raise CheckpointError(Problem("directory", str(directory), rule, fix))
    outputs = _outputs(model, inputs)
    gap = max(float((a - b).abs().max()) for a, b in zip(expected, outputs, strict=True))
    size = max(float(a.abs().max()) for a in expected)
    if not gap <= _TOLERANCE * max(size, 1.0):
        rule = f"give the same outputs, within {_TOLERANCE:g} of the largest ({size:.3g})"
        raise CheckpointError(Problem("the smaller model", gap, rule, "a bug report"))
    facts: dict[str, Any] = {
        "source": name_of(source),
        "prunus": __version__,
        "parameters": {"before": before[0], "after": _counts(model)[0]},
        "encoder": {"before": before[1], "after": _counts(model)[1]},
        "largest_difference": gap,
        "largest_output": size,
        "layers": _layers(before_structures, layout),
        "layout": layout,
    }
    with staged(output, FACTS_FILE, new=FACTS_FILE) as partial:
        model.save_pretrained(partial)
        carry_tokenizer(directory, partial, console)
        if sentences is not None:
            sentences.copy(partial)
        run = read_facts(directory) if (directory / FACTS_FILE).is_file() else RunFacts(__version__)
        # What was counted in layers of another size does not hold any more.
        write_facts(partial / FACTS_FILE, replace(run, tensors=(), skipped=(), compacted=facts))
        (partial / "README.md").write_text(_CARD.format(**facts["parameters"]), encoding="utf-8")
    return facts


_CARD: Final = """# A model with smaller layers

{after:,} parameters of {before:,}: heads and neurons that did nothing were taken out by prunus. To load it:

```python
import prunus  # pip install prunus; it tells transformers how small the layers are
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/directory")  # or AutoModelFor... of its head
```
"""


def _counts(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those of matrices outside embeddings and heads."""
    body = f"{getattr(model, 'base_model_prefix', '')}."
    named = dict(model.named_parameters())
    inside = [
        parameter.numel()
        for name, parameter in named.items()
        if (name.startswith(body) or not any(other.startswith(body) for other in named)) and "embedding" not in name
    ]
    return sum(parameter.numel() for parameter in named.values()), sum(inside)


def _layers(before: list[Structure], layout: Layout) -> list[dict[str, Any]]:
    return [
        {
            "reader": each.reader,
            "kind": each.kind,
            "before": each.units,
            "after": len(layout.get(each.reader, range(each.units))),
        }
        for each in before
    ]


def _tried(model: Any) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Inputs, and what the model gives for them; ``CheckpointError`` for one that wants more than tokens or pixels."""
    try:
        inputs = _inputs(model)
        outputs = _outputs(model, inputs)
        reason = "" if outputs else "it gives neither logits nor states"
    except Exception as error:  # each architecture has its own way to refuse what it is given
        outputs, reason = [], f"{type(error).__name__}: {first_line(error)}"
    if reason:
        rule = f"read tokens or pixels alone, so that outputs can be compared ({reason})"
        raise CheckpointError(Problem("config.json: architectures", type(model).__name__, rule, "an encoder"))
    return inputs, outputs


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    """Random tokens, or pixels, with some rows shorter than others."""
    generator = torch.Generator().manual_seed(_SEED)
    if model.main_input_name == "pixel_values":
        side, channels = model.config.image_size, getattr(model.config, "num_channels", 3)
        return {"pixel_values": torch.randn(_ROWS, channels, side, side, generator=generator)}
    config = model.config.get_text_config()
    positions = getattr(config, KEYS.positions, None) or 0
    longest = min(_TOKENS, positions - 4) if positions > 4 else _TOKENS  # some families count no positions
    ids = torch.randint(0, config.vocab_size, (_ROWS, longest), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, _ROWS):
        mask[row, longest - row * longest // (2 * _ROWS) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _outputs(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the head gives, or the states, where tokens are attended to."""
    given = model(**inputs)
    mask = inputs.get("attention_mask")
    result = []
    for name in _OUTPUTS:
        value = given.get(name)
        if value is not None:
            per_token = mask is not None and value.dim() > 1 and value.shape[:2] == mask.shape
            result.append(value[mask.bool()] if per_token and mask is not None else value)
    return result
