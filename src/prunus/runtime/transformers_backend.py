"""The engine behind two doors of ``transformers``: its exporters, and its pipelines.

register_exporter()
config = PrunusConfig(precision="int8")
exported = AutoHfExporter.from_config(config).export(model, inputs, config)
exported(**inputs).logits            on this runtime; save_pretrained / ExportedModel.from_pretrained as for any backend

pipeline("text-classification", model=as_model(engine), tokenizer=tokenizer)
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.exporters import register_backend
from transformers.exporters.base import HfExporter
from transformers.exporters.configs import ExportConfigMixin
from transformers.exporters.metadata import ExportMetadata, record_output_structure
from transformers.exporters.runners.base import ModelRunner

from prunus.errors import EngineError, Problem
from prunus.runtime.convert import Model, calibrate, convert
from prunus.runtime.engine import Engine
from prunus.runtime.families import canonical
from prunus.runtime.heads import head_kind, head_of
from prunus.runtime.store import read_model, write_model

__all__ = ["PrunusConfig", "PrunusExporter", "PrunusRunner", "as_model", "register_exporter"]

FORMAT = "prunus"


@dataclass
class PrunusConfig(ExportConfigMixin):  # type: ignore[misc]
    """``precision``: float32, or int8 with ranges from the sample inputs, which then should be real text."""

    export_format: str = FORMAT
    precision: str = "float32"


class PrunusExporter(HfExporter):  # type: ignore[misc]
    """Packs a model of ``transformers`` for this runtime."""

    export_format = FORMAT
    config_class = PrunusConfig
    program_suffix = ".safetensors"
    program_prefix = "prunus_"
    required_packages = ["llvmlite"]  # noqa: RUF012

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: PrunusConfig
    ) -> tuple[Model, ExportMetadata]:
        """The packed model, and what the exporters record of it."""
        if config.precision not in {"float32", "int8"}:
            raise EngineError(Problem("precision", config.precision, "be float32 or int8"))
        name = type(model).__name__
        head_kind(name)
        settings = model.config.to_dict() | {"architectures": [name]}
        dense = canonical(settings, {name: v.detach().float().numpy() for name, v in model.state_dict().items()})
        head_of(name, dense.shape.family, dense.tensors, dense.shape.hidden)
        ranges = None
        if config.precision == "int8":
            ids, mask = sample_inputs["input_ids"], sample_inputs.get("attention_mask")
            keep = torch.ones_like(ids) if mask is None else mask
            ranges = calibrate(dense, [row[kept != 0].numpy() for row, kept in zip(ids, keep, strict=True)])
        metadata = ExportMetadata(
            architecture=name,
            export_dtype="float32",
            export_device="cpu",
            kwargs={name: {} for name in sample_inputs},
        )
        with torch.no_grad():
            record_output_structure(metadata, model(**sample_inputs))
        return convert(dense, ranges), metadata

    @classmethod
    def save_program(cls, program: Model, path: str | Path) -> None:
        """One safetensors file."""
        write_model(program, Path(path))

    @classmethod
    def load_program(cls, path: str | Path) -> Model:
        """Reads and checks it."""
        return read_model(Path(path))


class PrunusRunner(ModelRunner):  # type: ignore[misc]
    """Runs a packed model; returns what the source model returns."""

    def __init__(self, engine: Engine, metadata: ExportMetadata) -> None:
        super().__init__(metadata)
        self.engine = engine

    @property
    def device(self) -> torch.device:
        """The processor."""
        return torch.device("cpu")

    @classmethod
    def from_program(
        cls, program: Model, metadata: ExportMetadata, device: Any = None, threads: int | None = None
    ) -> "PrunusRunner":
        """An engine of its own for this program."""
        if device is not None and torch.device(device).type != "cpu":
            raise EngineError(Problem("device", str(device), "be cpu"))
        return cls(Engine(program, None, threads), metadata)

    def __call__(self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any) -> Any:
        """The outputs of the model, as its own class."""
        return self.unflatten(list(self.engine(**kwargs).values()))


def register_exporter() -> None:
    """Makes ``prunus`` a format of ``transformers.exporters``."""
    register_backend(PrunusExporter, PrunusRunner)


class View:
    """An engine as pipelines want a model: with ``config``, ``device`` and ``dtype``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        settings = dict(engine.settings)
        self.config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.generation_config = None
        self.name_or_path = str(engine.directory or "")

    def __call__(self, **inputs: Any) -> Any:
        """Tensors in, tensors out."""
        return self.engine(**inputs)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, return_dict: Any = None
    ) -> Any:
        """The same; pipelines read the names of its parameters."""
        return self.engine(input_ids, attention_mask, token_type_ids)

    def can_generate(self) -> bool:
        """No."""
        return False

    def to(self, device: Any) -> "View":
        """Stays on the processor."""
        return self

    def eval(self) -> "View":
        """Has no other mode."""
        return self


def as_model(engine: Engine) -> Any:
    """An engine for ``transformers.pipeline(model=...)``; its class has the name of the architecture, which pipelines check."""
    return type(engine.architecture, (View,), {"__doc__": View.__doc__, "__module__": __name__})(engine)
