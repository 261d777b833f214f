"""Engines to compare with: each turns a Hugging Face encoder into a function of one padded batch.

    Batch = {"input_ids", "attention_mask"[, "token_type_ids"]}      int64 [sequences, tokens], padded on the right

An engine gets its own best form of the model: ONNX Runtime all graph optimizations, int8 by dynamic quantization of weights and
activations (its own recommendation for transformers on CPUs); OpenVINO its latency hint, int8 by NNCF's post-training
quantization with the transformer preset on real inputs. What is not installed is left out, and named.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunus.runtime.convert import calibrate, convert
from prunus.runtime.engine import Engine
from prunus.runtime.families import canonical

__all__ = ["ENGINES", "Batch", "Call", "make_engines", "missing_packages"]

Batch = dict[str, NDArray[Any]]
Call = Callable[[Batch], NDArray[np.float32]]
"""A batch -> hidden states of the last layer ``[sequences, tokens, hidden]``."""

ENGINES = {
    "prunus int8": (),
    "prunus float32": (),
    "torch float32": (),
    "torch int8 dynamic": (),
    "onnxruntime float32": ("onnxruntime", "onnx", "onnxscript"),
    "onnxruntime int8": ("onnxruntime", "onnx", "onnxscript"),
    "openvino float32": ("openvino",),
    "openvino int8": ("openvino", "nncf"),
}
"""Engines, and the packages that each needs."""


def missing_packages(name: str) -> list[str]:
    """Packages that an engine needs and that are not installed."""
    return [package for package in ENGINES[name] if find_spec(package) is None]


class States(nn.Module):
    """The encoder with positional inputs and one output, as exporters want it."""

    def __init__(self, model: nn.Module, types: bool) -> None:
        super().__init__()
        self.model, self.types = model, types

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        more = {"token_type_ids": token_type_ids} if self.types else {}
        states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        return states


@dataclass(frozen=True)
class Subject:
    """What is compared: an encoder, and real inputs to calibrate int8 with."""

    model: Any
    """A ``transformers`` base model (without a head), in evaluation mode."""
    calibration: Sequence[Batch]
    threads: int

    @property
    def types(self) -> bool:
        return int(getattr(self.model.config, "type_vocab_size", 0) or 0) > 0


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    types = batch.get("token_type_ids", np.zeros_like(batch["input_ids"]))
    return tuple(torch.from_numpy(value) for value in (batch["input_ids"], batch["attention_mask"], types))


def torch_call(model: nn.Module) -> Call:
    def call(batch: Batch) -> NDArray[np.float32]:
        with torch.inference_mode():
            states: NDArray[np.float32] = model(*tensors(batch)).numpy()
        return states

    return call


def torch_float32(subject: Subject) -> Call:
    return torch_call(States(subject.model, subject.types))


def torch_int8(subject: Subject) -> Call:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to go; what replaces it does not quantize activations on CPUs
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantized = quantize(subject.model, {nn.Linear}, dtype=torch.qint8)
    return torch_call(States(quantized, subject.types))


def prunus_call(subject: Subject, integers: bool) -> Call:
    weights = {name: value for name, value in subject.model.state_dict().items() if not name.startswith("pooler.")}
    state = {name: value.detach().float().numpy() for name, value in weights.items()}
    settings = subject.model.config.to_dict() | {"architectures": ["Model"]}
    dense = canonical(settings, state)
    rows = [
        batch["input_ids"][i][batch["attention_mask"][i] != 0]
        for batch in subject.calibration
        for i in range(len(batch["input_ids"]))
    ]
    engine = Engine(convert(dense, calibrate(dense, rows) if integers else None), None, subject.threads)

    def call(batch: Batch) -> NDArray[np.float32]:
        states: NDArray[np.float32] = engine(**batch).last_hidden_state
        return states

    return call


def onnx_file(subject: Subject, place: Path) -> Path:
    import warnings

    path = place / "model.onnx"
    example = tensors(subject.calibration[0])
    shape = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=512)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(subject.model, subject.types),
            example,
            path,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["states"],
            dynamic_shapes=(shape, shape, shape),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def onnxruntime_call(subject: Subject, integers: bool) -> Call:
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        path = onnx_file(subject, Path(place))
        if integers:
            from onnxruntime.quantization import QuantType, quantize_dynamic
            from onnxruntime.quantization.shape_inference import quant_pre_process

            ready, small = Path(place) / "ready.onnx", Path(place) / "int8.onnx"
            quant_pre_process(path, ready, skip_symbolic_shape=True)
            quantize_dynamic(ready, small, weight_type=QuantType.QInt8, per_channel=True)
            path = small
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = subject.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}

    def call(batch: Batch) -> NDArray[np.float32]:
        full = {"token_type_ids": np.zeros_like(batch["input_ids"])} | batch
        states: NDArray[np.float32] = session.run(None, {name: full[name] for name in names})[0]
        return states

    return call


def openvino_call(subject: Subject, integers: bool) -> Call:
    import openvino

    example = tensors(subject.calibration[0])
    model = openvino.convert_model(States(subject.model, subject.types), example_input=example)
    inputs = len(model.inputs)
    if integers:
        import nncf

        nncf.set_log_level(30)
        data = nncf.Dataset([[t.numpy() for t in tensors(batch)][:inputs] for batch in subject.calibration])
        with redirect_stdout(sys.stderr):  # it draws its bars on standard output, which is for facts
            model = nncf.quantize(
                model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(subject.calibration)
            )
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": subject.threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def call(batch: Batch) -> NDArray[np.float32]:
        states: NDArray[np.float32] = request.infer([t.numpy() for t in tensors(batch)][:inputs], share_inputs=True)[0]
        return states

    return call


def make_engines(subject: Subject, names: Sequence[str]) -> dict[str, Call]:
    """The engines of these names, ready to call; each must be installed (``missing_packages``)."""
    makers: dict[str, Callable[[], Call]] = {
        "prunus int8": lambda: prunus_call(subject, True),
        "prunus float32": lambda: prunus_call(subject, False),
        "torch float32": lambda: torch_float32(subject),
        "torch int8 dynamic": lambda: torch_int8(subject),
        "onnxruntime float32": lambda: onnxruntime_call(subject, False),
        "onnxruntime int8": lambda: onnxruntime_call(subject, True),
        "openvino float32": lambda: openvino_call(subject, False),
        "openvino int8": lambda: openvino_call(subject, True),
    }
    return {name: makers[name]() for name in names}
