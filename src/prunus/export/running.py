"""A saved or exported model on its engine, called as the model in torch is called.

===========  ==========================  =====================================
backend      its file                    written by
===========  ==========================  =====================================
torch        ``model.safetensors``       ``prunus run``, or ``save_pretrained``
openvino     ``openvino_model.xml``      ``prunus export --to openvino``
onnxruntime  ``model.onnx``              ``prunus export --to onnx``
prunus       ``packed.safetensors``      ``prunus export --to prunus``
===========  ==========================  =====================================
"""

from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.checkpoint.weights import weight_files
from prunus.errors import CheckpointError, EngineError, MissingExtra, Problem
from prunus.runtime.processors import processors
from prunus.tasks.collate import TOKEN_KEYS

__all__ = ["BACKENDS", "TARGETS", "Running", "check_saved", "output_names", "whereabouts"]

BACKENDS: Final = {
    "torch": "model.safetensors",
    "openvino": "openvino_model.xml",
    "onnxruntime": "model.onnx",
    "prunus": "packed.safetensors",
}
TARGETS: Final = {"openvino": "openvino", "onnxruntime": "onnx", "prunus": "prunus"}
"""What ``prunus export --to`` calls them."""
_BESIDE: Final = {"openvino": "-openvino", "onnxruntime": "-onnx", "prunus": "-packed"}


def output_names(answers: bool) -> list[str]:
    """Of a model that answers questions, or of one that classifies."""
    return ["start_logits", "end_logits"] if answers else ["logits"]


def whereabouts(directory: Path, backend: str) -> Path:
    """The file of a backend: in the directory, or in the one that ``prunus export`` writes beside it.

    Raises:
        EngineError: neither is there.
        MissingExtra: the engine is not installed.

    """
    if backend not in {"torch", "prunus"} and find_spec(backend) is None:
        fix = 'pip install "prunus[export]"'
        raise MissingExtra(Problem(f"--backend {backend}", f"no package {backend}", "have its packages", fix))
    if backend == "torch" and not (directory / BACKENDS["torch"]).is_file():
        with suppress(CheckpointError):  # whatever form the weights have: transformers reads it
            return weight_files(directory)[0]
    places = [directory]
    if backend in _BESIDE:
        places.append(directory.with_name(directory.resolve().name + _BESIDE[backend]))
    for place in places:
        if (place / BACKENDS[backend]).is_file():
            return place / BACKENDS[backend]
    fix = "the output of prunus run" if backend == "torch" else f"prunus export {directory} --to {TARGETS[backend]}"
    rule = f"be in {' or in '.join(map(str, places))} for backend {backend}"
    raise EngineError(Problem(BACKENDS[backend], "nothing", rule, fix))


def check_saved(directory: Path) -> None:
    """Raises ``EngineError`` for a directory that holds an export and no weights of torch; anything else is told elsewhere."""
    with suppress(CheckpointError):
        if weight_files(directory):
            return
    rule = "hold weights that torch reads, which prunus eval without --backend measures"
    for backend, to in TARGETS.items():
        if (directory / BACKENDS[backend]).is_file():
            fix = f"prunus eval {directory} --backend {backend}, or the output of the run"
            raise EngineError(Problem(str(directory), f"an export to {to} ({BACKENDS[backend]})", rule, fix))
    if (directory / "archive.safetensors").is_file():
        fix = f"prunus export {directory} --to transformers, and the directory that it writes"
        raise EngineError(Problem(str(directory), "an archive (archive.safetensors)", rule, fix))


class Running(nn.Module):
    """An exported file, ``to`` onnx or openvino, with the call of the model that it came from.

    Raises ``EngineError`` for a file that its engine cannot read.
    """

    def __init__(self, path: Path, to: str, outputs: list[str], threads: int | None = None) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # where inputs are wanted: the CPU
        self.outputs = outputs
        self.run: Callable[[dict[str, NDArray[Any]]], Any]
        try:
            self.names, self.run = (_onnx if to == "onnx" else _openvino)(path, outputs, threads)
        except Exception as error:  # each engine has its own kinds, and a damaged file finds most of them
            message = next(
                (line.strip() for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__
            )
            fix = f"exporting it again: prunus export RUN --to {to} --overwrite"
            rule = f"be a whole file of {'ONNX' if to == 'onnx' else 'OpenVINO IR'} ({message[:160]})"
            raise EngineError(Problem(str(path), "damaged, or of another kind", rule, fix)) from None

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Named inputs -> named outputs."""
        full = {"token_type_ids": torch.zeros_like(inputs["input_ids"])} | inputs
        outputs = self.run({name: full[name].numpy() for name in self.names})
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, outputs, strict=True)}


def _onnx(path: Path, outputs: list[str], threads: int | None) -> tuple[list[str], Callable[..., Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or processors()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _has(outputs, [one.name for one in session.get_outputs()])
    return [one.name for one in session.get_inputs()], lambda given: session.run(outputs, given)


def _openvino(path: Path, outputs: list[str], threads: int | None) -> tuple[list[str], Callable[..., Any]]:
    import openvino

    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    hints["INFERENCE_NUM_THREADS"] = threads or max(1, processors())
    compiled: Any = openvino.Core().compile_model(str(path), "CPU", hints)
    request: Any = compiled.create_infer_request()
    _has(outputs, [name for one in compiled.outputs for name in one.names])

    def run(given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        results = request.infer(given)
        return [np.array(results[name]) for name in outputs]

    return [next(n for n in one.names if n in TOKEN_KEYS) for one in compiled.inputs], run


def _has(wanted: list[str], there: list[str]) -> None:
    if not set(wanted) <= set(there):
        raise ValueError(f"its outputs are {', '.join(there)}, not {', '.join(wanted)}")
