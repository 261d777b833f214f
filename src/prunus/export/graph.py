"""ONNX and OpenVINO files of a saved model, and the proof that nothing was lost on the way.

    int8, trained       the ranges of quantization-aware training are used as they are
    int8, calibrated    a model without learned ranges gets them from real samples
    float32             the model as it is

What was written is read back and run: how many products run on bytes (read from the graph the engine compiled), whether every
weight in the file is the one in torch, how often the answers are those of torch, and the metric on the task's data.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedModel

from prunus._version import __version__
from prunus.architectures import KEYS, split_layer
from prunus.checkpoint.sentence_files import find_sentence_files, model_directory
from prunus.checkpoint.staged import copy_files, staged
from prunus.checkpoint.tensor_io import RANGES_FILE, read_tensors
from prunus.checkpoint.weights import weight_files
from prunus.errors import CheckpointError, DataError, EngineError, MissingExtra, Problem, PrunusError, first_line
from prunus.export.onnx import LONGEST, export_onnx, whole_weight
from prunus.export.packed import COPIED, Calibration, run_task, splits_for, texts_of, tokenizer_of
from prunus.export.running import Running, output_names
from prunus.export.scoring import agreement
from prunus.export.source import carry_tokenizer
from prunus.models.checkpoints import check_encoder, load_checkpoint, read_config
from prunus.models.predict import predict
from prunus.progress import Bars
from prunus.quantization import Quantization, QuantLinear, quantize, restore
from prunus.runtime.isa import choose
from prunus.tasks.base import Task
from prunus.tasks.collate import TOKEN_KEYS, Collate

__all__ = ["FILES", "export_graph", "integer_products"]

FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What it takes to write a file and to run it."""
FACTS = "export.json"
INTEGER = {"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul"}
FLOAT = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "TransposeMatMul"}


def load(directory: Path) -> PreTrainedModel:
    """The saved model, with plain attention, whose products of bytes every engine recognises.

    Raises:
        EngineError: an architecture that cannot be exported.
        CheckpointError: weights that are missing, damaged or not finite.

    """
    if not (directory / "config.json").is_file():
        raise EngineError(Problem(str(directory / "config.json"), "nothing", "be a file"))
    weight_files(directory)
    config = read_config(directory)
    name = str(next(iter(config.architectures or ()), ""))
    kinds = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForQuestionAnswering": AutoModelForQuestionAnswering,
    }
    auto = next((auto for end, auto in kinds.items() if name.endswith(end)), None)
    if auto is None:
        rule = "be a model for sequence classification or question answering"
        raise EngineError(Problem("config.json: architectures", name, rule))
    check_encoder(config, name)
    return load_checkpoint(auto, directory, config, attn_implementation="eager")


def _check_packages(to: str) -> None:
    absent = [name for name in PACKAGES[to] if find_spec(name) is None]
    if absent:
        fix = 'pip install "prunus[export]"'
        raise MissingExtra(Problem(f"prunus export --to {to}", f"no package {absent[0]}", "have its packages", fix))


def export_graph(
    directory: Path,
    output: Path,
    to: str,
    precision: str = "int8",
    calibration: Calibration | None = None,
    *,
    evaluate: bool = True,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Exports a saved model; returns the facts that ``export.json`` holds.

    Args:
        directory: a Hugging Face directory, such as a run's output; ``ranges.safetensors`` beside the model is used.
        output: a new directory.
        to: ``onnx`` or ``openvino``.
        precision: ``int8`` or ``float32``.
        calibration: where ranges come from if none were learned.
        evaluate: measure the metric of the file, and of the model in torch, where the task's data is at hand.
        overwrite: replace what is in ``output``.
        console: for progress.

    Raises:
        PrunusError: all that is wrong, before anything is computed; ``EngineError`` where the file lost something.
        MissingExtra: a package that it takes is not installed.

    """
    _check_packages(to)
    calibration = calibration or Calibration()
    problems = calibration.problems()
    if precision not in {"int8", "float32"}:
        problems.append(Problem("precision", precision, "be int8 or float32"))
    if (output / FILES[to]).exists() and not overwrite:
        problems.append(
            Problem("output", str(output), "not hold an exported model yet", "--overwrite or another directory")
        )
    if problems:
        raise CheckpointError(*problems)
    sentences = find_sentence_files(directory)
    directory = model_directory(directory)
    model, tokenizer = load(directory), tokenizer_of(directory)
    names = output_names(hasattr(model, "qa_outputs"))
    with Bars(console) as bars:
        task, note = run_task(directory, calibration.data, bars, splits_for(precision, calibration, evaluate))
        batches = sampled(directory, calibration, task, tokenizer, model, bars)
        source = "none"
        if precision == "int8" and (directory / RANGES_FILE).is_file():
            restore(model, read_tensors(directory / RANGES_FILE))
            source = "learned in training"
        elif precision == "int8":
            if not batches:
                rule = "name texts to calibrate int8 with, as this directory has no training data of its own at hand"
                raise DataError(
                    Problem("texts", note or "nothing", rule, "--texts FILE, --data DIR, or --precision float32")
                )
            quantize(model, Quantization(), batches)
            source = "calibrated"
        example = batches[0] if batches else guess(model)
        with staged(output, FACTS, new="" if overwrite else FILES[to]) as partial:
            copy_files(directory, partial, COPIED)
            carry_tokenizer(directory, partial, console)
            if sentences is not None and console is not None:
                console.print("left out: modules.json; the file gives the outputs of the head alone", highlight=False)
            bars("exporting", 0, 1)
            write(model, example, names, partial, to)
            bars("exporting", 1, 1)
            integers, floats = integer_products(partial / FILES[to], to)
            layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
            facts: dict[str, Any] = {
                "prunus": __version__,
                "to": to,
                "precision": precision,
                "ranges": source,
                "products": {"int8": integers, "float32": floats, "quantized layers": len(layers)},
                "bytes": sum(p.stat().st_size for p in partial.iterdir() if p.suffix in {".onnx", ".xml", ".bin"}),
                "notes": [
                    each for each in (note and f"metric not measured: {note}", saturation(layers.values(), to)) if each
                ],
            }
            inside = [name for name in layers if split_layer(name)]  # in the stack of layers
            if integers < len(inside):
                rule = f"run on bytes in all {len(inside)} quantized layers of the stack"
                got = f"{integers} int8, {floats} float32 for {model.config.model_type}"
                raise EngineError(Problem("products of the compiled graph", got, rule, advice(to)))
            facts["weights"] = same_weights(layers, partial / FILES[to], to) if layers else {}
            if evaluate and task is not None:
                facts["metrics"] = measured(model, partial / FILES[to], to, names, task, tokenizer, bars)
            (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def saturation(layers: Iterable[QuantLinear], to: str) -> str:
    """What 8-bit weights do on this processor; nothing where its byte products are exact."""
    if choose().product == "vnni" or all(layer.bits < 8 for layer in layers):
        return ""
    return (
        f"on this processor (no VNNI) byte products of {to} saturate at 16 bits, so its answers can differ from torch's; "
        "weights of 7 bits (quantize.overflow_fix: true) do not saturate, nor does any processor with VNNI"
    )


def advice(to: str) -> str:
    """What to do about an architecture whose products an engine compiles in float in part, such as DeBERTa's."""
    return f"--precision float32: {to} does not run all products of this architecture on bytes"


def sampled(
    directory: Path, calibration: Calibration, task: Task | None, tokenizer: Any, model: PreTrainedModel, bars: Bars
) -> list[dict[str, Tensor]]:
    """Batches of real inputs."""
    positions = getattr(model.config, KEYS.positions, None) or 0
    longest = positions - 2 if positions > 2 else LONGEST  # some families count no positions
    rows = texts_of(directory, calibration, task, tokenizer, longest, bars)
    collate = Collate(tokenizer)
    plain = [{name: value for name, value in row.items() if name in TOKEN_KEYS} for row in rows]
    return [
        {name: value for name, value in collate(plain[i : i + 32]).items() if name in TOKEN_KEYS}
        for i in range(0, len(plain), 32)
        if len(plain[i : i + 32]) > 1
    ]


def guess(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of the right form, where there are no real ones."""
    ids = torch.full((2, 8), 5)
    more = {"token_type_ids": torch.zeros_like(ids)} if int(getattr(model.config, KEYS.token_types, 0) or 0) else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def write(model: PreTrainedModel, example: Mapping[str, Tensor], names: list[str], output: Path, to: str) -> None:
    """The file. Raises ``EngineError`` for a family that torch or the engine cannot export."""
    try:
        _write(model, example, names, output, to)
    except (OSError, PrunusError):
        raise
    except Exception as error:  # each operator that an exporter lacks has its own error
        rule = f"be a family that torch can export to {to} ({type(error).__name__}: {first_line(error)})"
        raise EngineError(Problem("config.json: model_type", model.config.model_type, rule, "prunus eval")) from None


def _write(model: PreTrainedModel, example: Mapping[str, Tensor], names: list[str], output: Path, to: str) -> None:
    if to == "onnx":
        export_onnx(model, example, names, output / FILES[to])
        return
    import openvino

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        export_onnx(model, example, names, path)
        openvino.save_model(openvino.Core().read_model(str(path)), str(output / FILES[to]), compress_to_fp16=False)


def integer_products(path: Path, to: str) -> tuple[int, int]:
    """Matrix products of the compiled graph that run on bytes, and in float."""
    if to == "onnx":
        import onnx
        import onnxruntime

        with tempfile.TemporaryDirectory() as place:
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(Path(place) / "compiled.onnx")
            options.log_severity_level = 3
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        return sum(kind in INTEGER for kind in kinds), sum(kind in FLOAT for kind in kinds)
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    integers = floats = 0
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, precision = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision"))
        on_bytes = precision in {"i8", "u8"}
        # attention is compiled as one piece, which starts with the product of query and key
        if kind in {"FullyConnected", "MatMul"} or (kind == "Subgraph" and on_bytes):
            integers, floats = integers + on_bytes, floats + (not on_bytes)
    return integers, floats


def same_weights(layers: Mapping[str, QuantLinear], path: Path, to: str) -> dict[str, Any]:
    """Compares every int8 weight in the file with the one in torch, element by element.

    Raises:
        EngineError: one that is not there.

    """
    stored = stored_weights(path, to)
    zeros = total = 0
    for name, layer in layers.items():
        integers = whole_weight(layer.weight, layer.weight_bound, layer.bits)[0].numpy()
        if not any(
            np.array_equal(integers, one) or np.array_equal(integers.T, one) for one in stored.get(integers.size, [])
        ):
            raise EngineError(Problem(f"{name}.weight", "another in the file", "be the same in the file as in torch"))
        if split_layer(name):
            zeros, total = zeros + int((integers == 0).sum()), total + integers.size
    return {"compared": len(layers), "zeros": zeros, "of": total, "sparsity": zeros / total if total else 0.0}


def stored_weights(path: Path, to: str) -> dict[int, list[NDArray[np.int8]]]:
    """int8 matrices of a file, by their number of elements."""
    by_size: dict[int, list[NDArray[np.int8]]] = {}
    if to == "onnx":
        import onnx
        from onnx import numpy_helper

        tensors = [numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer]
    else:
        import openvino

        nodes = openvino.Core().read_model(str(path)).get_ops()
        tensors = [node.data for node in nodes if node.get_type_name() == "Constant"]
    for one in tensors:
        if one.dtype == np.int8 and one.ndim == 2:
            by_size.setdefault(one.size, []).append(one)
    return by_size


def measured(
    model: PreTrainedModel, path: Path, to: str, names: list[str], task: Task, tokenizer: Any, bars: Bars
) -> dict[str, Any]:
    """The task's metrics of the file and of the model in torch, on the whole validation split."""
    features = task.features("validation", tokenizer, lambda d, t: bars("tokenising", d, t))
    collate = Collate(tokenizer)
    facts: dict[str, Any] = {"task": task.name, "metric": task.metric, "examples": task.size("validation")}
    outputs = {}
    for name, one in (("torch", model), ("file", Running(path, to, names))):
        with torch.no_grad():
            outputs[name] = predict(one, features, collate, task.head, 64, partial(bars, f"evaluating {name}"))
        facts[name] = task.score(outputs[name], features)
    facts["agreement"] = agreement(outputs["torch"], outputs["file"])
    facts["largest difference"] = float(
        max(np.abs(a - b)[np.isfinite(a) & (a > -1e30)].max() for a, b in zip(*outputs.values(), strict=True))
    )
    return facts
