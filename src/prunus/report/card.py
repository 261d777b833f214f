"""The model card: ``README.md`` beside the weights, for a reader who has only the directory.

Front matter is YAML with text quoted where it must be; in the body, text from the facts is escaped for Markdown and
HTML, or stands in a code block whose fence is longer than any in the text.
"""

import re
from typing import Final

from prunus.report.facts import ModelResults, RunFacts
from prunus.report.facts_file import clean
from prunus.report.wording import count, fraction, only_dense, recipe_text, summary_rows

__all__ = ["model_card"]

# Head of the task -> the Hub's name of the pipeline and the class that loads the model.
_HEADS: Final[dict[str, tuple[str, str]]] = {
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "regression": ("text-classification", "AutoModelForSequenceClassification"),
    "question-answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "masked-language": ("fill-mask", "AutoModelForMaskedLM"),
}
# End of the architecture's name -> the class that loads it, where the head is not recorded.
_ENDINGS: Final[tuple[str, ...]] = (
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForTokenClassification",
    "ForCausalLM",
)
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
# Markup anywhere, what makes a list or a heading at the start of a line, and the colon that makes a link of an address.
_MARKDOWN: Final = re.compile(r"[\\`*_\[\]<>|~$&]|^[#+=-]|(?<=^\d)[.)](?= )|(?<=^\d\d)[.)](?= )|:(?=//)")

_LIMITS: Final = (
    "The metrics hold for the validation examples of this task. Other data was not tried.",
    "Zeros are stored as ordinary numbers: they alone make no file smaller and no stock runtime faster.",
    "The model has the limits and biases of the model it was made from.",
)


def model_card(facts: RunFacts) -> str:
    """``README.md`` of a run's output directory: front matter, results, how to load, recipe, limits."""
    parts = [
        _front_matter(facts),
        f"# {_inline(_title(facts))}",
        _intro(facts),
        "## Results\n\n" + _results(facts),
        "## Load it\n\n" + _loading(facts),
        "## Recipe, as it ran\n\n" + _recipe(facts),
        "## Not measured\n\n" + _bullets(list(facts.missing) or ["Nothing is listed."]),
        "## Limits\n\n" + _bullets(_limits(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _title(facts: RunFacts) -> str:
    name = facts.model.name or facts.model.architecture or "model"
    task = facts.task.name
    kind = "" if only_dense(facts) else ", sparse"
    return f"{name}{kind}{' on ' + task if task else ''}"


def _front_matter(facts: RunFacts) -> str:
    tags = ["prunus"] if only_dense(facts) else ["prunus", "sparse", "pruning"]
    fields: dict[str, object] = {"library_name": "transformers", "tags": tags}
    origin = facts.model.base_model
    if _HUB_NAME.fullmatch(origin):
        fields["base_model"] = origin
    pipeline, _ = _HEADS.get(facts.task.head, ("", ""))
    if pipeline:
        fields["pipeline_tag"] = pipeline
    return f"---\n{recipe_text(fields)}\n---"


def _intro(facts: RunFacts) -> str:
    sparse = facts.sparse or ModelResults()
    sparsity, lines = sparse.sparsity, []
    if sparsity is not None:
        tensors, overall = len(facts.tensors), sparse.sparsity_all
        where = f"the {tensors:,} pruned tensors" if tensors else "the pruned tensors"
        of_all = f", and {fraction(overall)} of all weights" if overall is not None else ""
        lines.append(f"{fraction(sparsity)} of the weights in {where} are zero{of_all}.")
    if facts.status and facts.status != "finished":
        lines.append(f"**The run is not finished ({_inline(facts.status)}).**")
    lines.append(f"Made with prunus {_inline(facts.prunus or 'of unknown version')}.")
    notes = [*facts.task.notes, *(f"Warning: {line}" for line in facts.notices)]
    return " ".join(lines) + ("\n\n" + _bullets(notes) if notes else "")


def _results(facts: RunFacts) -> str:
    lines = ["| | dense | sparse |", "|---|---:|---:|"]
    for line in summary_rows(facts):
        cells = (line.label, _noted(line.dense, line.dense_note), _noted(line.sparse, line.sparse_note))
        lines.append("| " + " | ".join(_inline(cell) for cell in cells) + " |")
    seen = facts.task.validation_examples
    examples = f"Metrics on {count(seen)} validation examples. " if seen is not None else ""
    lines += ["", f"{examples}Sparsity of the targets: zeros / weights of the tensors that this recipe prunes;"]
    return "\n".join(lines) + " of all weights: zeros / all parameters. A baseline's value stands in both columns."


def _noted(shown: str, note: str) -> str:
    return f"{shown} ({note})" if note else shown


def _loading(facts: RunFacts) -> str:
    _, loader = _HEADS.get(facts.task.head, ("", ""))
    architecture = facts.model.architecture
    ending = next((ending for ending in _ENDINGS if architecture.endswith(ending)), "")
    loader = loader or f"AutoModel{ending}"
    code = (
        f"from transformers import {loader}, AutoTokenizer\n\n"
        'directory = "path/to/this/directory"\n'
        f"model = {loader}.from_pretrained(directory)\n"
        "tokenizer = AutoTokenizer.from_pretrained(directory)"
    )
    layers = facts.quantization.get("layers")
    if not isinstance(layers, list):
        return _fenced(code, "python")
    note = (
        f"{len(layers):,} layers were trained in 8 bits. Loaded like this, their weights lie on 8-bit grids and the rest "
        "computes in float32; `prunus eval` and `prunus export --to prunus|openvino|onnx` use the learned ranges of the "
        "activations, which are in `ranges.safetensors`."
    )
    return f"{_fenced(code, 'python')}\n\n{note}"


def _recipe(facts: RunFacts) -> str:
    recipe, command = facts.recipe, facts.command
    parts = [_fenced(command, "sh")] if command else []
    parts.append(_fenced(recipe_text(recipe), "yaml") if recipe else "Not recorded.")
    return "\n\n".join(parts)


def _limits(facts: RunFacts) -> list[str]:
    return [line for line in _LIMITS if not (only_dense(facts) and line.startswith("Zeros"))]


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_inline(line)}" for line in lines)


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{clean(code)}\n{fence}"


def _inline(shown: str) -> str:
    """One line of Markdown that shows ``shown`` as it is: markup and HTML are escaped, line breaks become spaces."""
    one_line = " ".join(clean(shown).split())
    return _MARKDOWN.sub(_escaped, one_line)


def _escaped(match: re.Match[str]) -> str:
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return entities.get(match[0], "\\" + match[0])
