"""Contrastive objectives in a training: representations, example ids, the banks and when they are filled.

    before step 1        PrC: the model before the task encodes all examples; FiC: the teacher does
    while masks grow     SnC: the model itself does, just before the mask update that follows a further ``every`` of sparsity
    each micro-batch     anchors: this batch's representations; candidates: they, the bank's of its examples and of drawn ones

An example is a row of the training data set, by its position there. Its number travels with it through samplers, workers and
collators as ``row_id``. Banks are files beside the checkpoints: a resumed run reads the ones that its checkpoint names.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any, Final, final
from zlib import crc32

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from prunus.checkpoint.bank_io import read_states, write_states
from prunus.distillation.banks import Bank, draw, filled
from prunus.distillation.contrastive import Contrastive, Representation, contrastive_loss, sets_of
from prunus.errors import CheckpointError, Problem, TargetError, TrainingError
from prunus.models.predict import LABEL_KEYS
from prunus.sparsity.masker import Masker
from prunus.sparsity.wrappers import body_of, evaluating, unwrapped
from prunus.training.running import output_of

__all__ = ["ROW_ID", "Contrasting", "Numbered", "represented", "representing"]

ROW_ID: Final = "row_id"
_NOT_ASKED: Final = LABEL_KEYS | {"label", "label_ids", ROW_ID}
_BANKS: Final = "banks"


@final
class Numbered(Sequence[dict[str, Any]]):
    """A data set whose rows say where they stand in it."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        position = range(len(self))[int(index)]
        return {**self.rows[position], ROW_ID: position}


@contextmanager
def representing(model: nn.Module, wanted: bool = True) -> Iterator[list[Any]]:
    """While it lasts, the list gains what the body of the model gives at each forward, where it is ``wanted``."""
    if not wanted:
        yield []
        return
    captured: list[Any] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        # Not the output itself: other hooks may change what it holds.
        captured.append((output[0], getattr(output, "pooler_output", None)))

    handle = body_of(model, "distill.contrast").register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def represented(given: Any, attended: Tensor | None, kind: Representation) -> Tensor:
    """``[rows, width]`` of what ``representing`` found. Raises ``TargetError`` for a pooler that is not there."""
    states: Tensor
    pooled: Tensor | None
    states, pooled = given
    if kind == "pooler" or (kind == "auto" and pooled is not None):
        if pooled is None:
            rule = "be cls or mean for a model without a pooled output"
            raise TargetError(Problem("distill.contrast.representation", "pooler", rule, "cls"))
        return pooled
    if kind == "mean" and attended is not None:
        kept = attended.to(states.dtype)[..., None]
        return (states * kept).sum(1) / kept.sum(1).clamp(min=1)
    return states.mean(1) if kind == "mean" else states[:, 0]


@final
class Contrasting:
    """The banks of one training and the terms that they make.

    ``pretrained`` is PrC's model (None: the student as it starts), ``teacher`` FiC's; ``growing`` says whether masks grow.
    ``facts`` counts what encoding took. Raises ``TargetError`` for terms whose model or labels are not there.
    """

    def __init__(
        self,
        choice: Contrastive,
        rows: Numbered,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        *,
        pretrained: nn.Module | None,
        teacher: nn.Module | None,
        growing: bool,
        seed: int,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.choice, self._rows, self._collate = choice, rows, collate
        self._pretrained, self._teacher = pretrained, teacher
        self._seed, self._batch_size, self._autocast = seed, batch_size, autocast
        self.banks: dict[str, Bank] = {}
        self._labels: Tensor | None = None
        self._grid = 0  # multiples of ``every`` that have been passed
        self._drawn = 0  # micro-batches so far in this step
        self.facts: dict[str, Any] = {"passes": 0, "seconds": 0.0}
        self._directory, self._digest, self._device = Path(), "", torch.device("cpu")
        self._lengths: list[int] = []
        self._rank, self._processes = 0, 1
        self._columns: frozenset[str] | None = None  # those that the collator is given; None: all
        problems = []
        terms = choice.terms
        if "fic" in terms and teacher is None:
            problems.append(
                Problem("distill.contrast.fic", terms["fic"].weight, "come with a teacher", "distill.teacher: dense")
            )
        if "snc" in terms and not growing:
            rule = "come with a rule of prune whose masks grow"
            problems.append(Problem("distill.contrast.snc", terms["snc"].weight, rule, "leaving it out"))
        if not isinstance(rows.rows, Sized) or not hasattr(rows.rows, "__getitem__"):
            rule = "have a length and rows by number"
            problems.append(Problem("train_dataset", type(rows.rows).__name__, rule, "a list, or a datasets.Dataset"))
        elif any(term.supervised for term in terms.values()) and not _is_class(rows):
            rule = "be 0 without labels of classes"
            problems.append(Problem("distill.contrast.*.supervised", "above 0", rule, "weight, the unsupervised form"))
        if problems:
            raise TargetError(*problems)

    @property
    def weights(self) -> dict[str, float]:
        """What each part of the loss counts."""
        terms = self.choice.terms.items()
        unsupervised = {f"{name}_loss": term.weight for name, term in terms if term.weight}
        return unsupervised | {f"{name}_label_loss": term.supervised for name, term in terms if term.supervised}

    def parts(self, given: Any, inputs: Mapping[str, Any], ids: Tensor, step: int) -> dict[str, Tensor]:
        """The terms for one micro-batch, without their weights; ``given`` is what ``representing`` found in the student."""
        anchors = represented(given, inputs.get("attention_mask"), self.choice.representation)
        if len(anchors) != len(ids):
            rule = f"be used with models that make one representation of each of the {len(ids)} rows"
            raise TargetError(Problem("distill.contrast", len(anchors), rule, "distill.hidden"))
        losses: dict[str, Tensor] = {}
        for name, term in self.choice.terms.items():
            bank = self.banks.get(name)
            if bank is None or not len(bank):
                continue
            others = draw(
                f"{name} {self._rank} {self._drawn}",
                self._seed,
                step,
                bank.examples,
                self.choice.negatives // len(bank),
            ).to(ids.device)
            if bank.width != anchors.shape[1]:
                rule = f"be as wide as the model that is trained: {anchors.shape[1]}"
                raise TargetError(Problem(f"distill.contrast.{name}", bank.width, rule, "a teacher of that width"))
            chosen = torch.cat([ids, others])
            states = bank.take(chosen, anchors.device).flatten(0, 1)
            candidates = torch.cat([anchors.detach().float(), states])
            for form, weight, own in (
                ("loss", term.weight, None),
                ("label_loss", term.supervised, self._labels),
            ):
                if weight:
                    named = torch.cat([ids, chosen.repeat_interleave(len(bank))])
                    mine = ids
                    if own is not None:
                        mine, named = own[ids.cpu()].to(ids.device), own[named.cpu()].to(ids.device)
                    positive, counts = sets_of(mine, named)
                    losses[f"{name}_{form}"] = contrastive_loss(
                        anchors, candidates, positive, counts, term.temperature, self.choice.normalisation
                    )
        self._drawn += 1
        return losses

    # When banks are filled

    def begin(
        self, model: nn.Module, args: TrainingArguments, saved: Mapping[str, Tensor] | None, checkpoint: Path | None
    ) -> None:
        """Fills the banks of PrC and FiC; a resumed training reads those that the state of its checkpoint names."""
        terms = self.choice.terms
        for each in (model, self._teacher, self._pretrained):
            if each is not None:
                _check_kind(each)
        self._directory, self._device = output_of(args) / _BANKS, args.device
        self._rank, self._processes = args.process_index, args.world_size
        self._columns = columns_of(model) if args.remove_unused_columns else None
        self._read_rows()
        self.banks = {name: Bank(len(self._rows)) for name in terms}
        self._grid = 0
        if checkpoint is not None and saved is not None:
            self._grid = int(saved["grid"])
            for key in saved:
                term, _, name = key.partition(".")
                if name and term in self.banks:
                    if self._rank == 0:
                        _bring(name, checkpoint.parent / _BANKS, self._directory)
                    if self._processes > 1:
                        torch.distributed.barrier()
                    self.banks[term].add(name, self._placed(self._read(name)))
            return
        if "prc" in terms:
            self.fill("prc", "prc", self._pretrained if self._pretrained is not None else model)
        if "fic" in terms and self._teacher is not None:
            self.fill("fic", "fic", self._teacher)

    def begin_step(self) -> None:
        """Each step draws its own negatives."""
        self._drawn = 0

    def end_step(self, model: nn.Module, masker: Masker | None, step: int) -> None:
        """Takes a snapshot for SnC where a further ``every`` of the targets has become zero and the next step prunes more."""
        if "snc" not in self.choice.terms or masker is None:
            return
        now, every = masker.due(), self.choice.snc.every
        if masker.prunes_next and now >= (self._grid + 1) * every - 1e-9:
            self._grid = int((now + 1e-9) / every)
            self.fill("snc", f"snc-{step:08d}", model)
            self.banks["snc"].latest(self.choice.snc.last)

    def state_dict(self) -> dict[str, Tensor]:
        """Names the banks of this moment."""
        named = {f"{term}.{name}": torch.tensor(0) for term, bank in self.banks.items() for name in bank.names}
        return {"grid": torch.tensor(self._grid), **named}

    def fill(self, term: str, name: str, model: nn.Module) -> None:
        """Adds what ``model`` makes of every example to the bank of a term, and keeps it as a file."""
        began = perf_counter()
        states = filled(len(self._rows), self._encoded(model), "cpu", self._processes)
        for other in self.banks.values():
            if other.width not in (0, states.shape[1]):
                rule = f"be as wide as the other models: {other.width}"
                raise TargetError(Problem(f"distill.contrast.{term}", states.shape[1], rule, "a teacher of that width"))
        if self._rank == 0:
            write_states(self._directory / f"{name}.safetensors", states, self._digest)
        if self._processes > 1:
            _same_everywhere(states, name, self._processes)
        self.banks[term].add(name, self._read(name) if self.choice.bank == "mmap" else self._placed(states))
        self.facts["passes"] += 1
        self.facts["seconds"] += perf_counter() - began
        self.facts["bytes"] = sum(each.bytes() for each in self.banks.values())

    def _read_rows(self) -> None:
        """Lengths, labels of classes where a term asks for them, and a digest of both, in one pass."""
        sha, labels, self._lengths = sha256(), [], []
        for i in range(len(self._rows)):
            row = self._rows[i]
            ids, label = row.get("input_ids", ()), _label(row)
            if len(ids) and not isinstance(ids[0], int) and len(getattr(ids[0], "shape", ids[0])):
                rule = "be used with rows of tokens, one text or pair each"
                raise TargetError(Problem("distill.contrast", "rows of several choices", rule, "distill.hidden"))
            tokens = list(map(int, ids))
            sha.update(repr([tokens, label]).encode())
            self._lengths.append(len(tokens))
            labels.append(label)
        self._digest = sha.hexdigest()[:16]
        if any(term.supervised for term in self.choice.terms.values()):
            self._labels = torch.tensor([int(label) for label in labels])

    def _read(self, name: str) -> Tensor:
        path = self._directory / f"{name}.safetensors"
        return read_states(path, len(self._rows), self._digest, mapped=self.choice.bank == "mmap")

    def _row(self, position: int) -> dict[str, Any]:
        """A row as Trainer gives it to the collator: without columns that the model does not take, such as its text."""
        row = self._rows[position]
        return {name: value for name, value in row.items() if self._columns is None or name in self._columns}

    def _placed(self, states: Tensor) -> Tensor:
        return states.to(self._device) if self.choice.bank == "device" else states

    @torch.no_grad()
    def _encoded(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and representations of this process's examples, in batches of similar length."""
        device = next(model.parameters()).device
        body = body_of(model, "distill.contrast")
        order = sorted(range(self._rank, len(self._rows), self._processes), key=lambda i: (self._lengths[i], i))
        with evaluating(model):
            for first in range(0, len(order), self._batch_size):
                rows = [self._row(i) for i in order[first : first + self._batch_size]]
                batch = self._collate(rows)
                ids = batch[ROW_ID]
                inputs = {name: value.to(device) for name, value in batch.items() if name not in _NOT_ASKED}
                with representing(model) as captured, self._autocast():
                    body(**inputs)
                yield ids, represented(captured[0], inputs.get("attention_mask"), self.choice.representation)


def _check_kind(model: nn.Module) -> None:
    """Raises ``TargetError`` for an encoder-decoder: what its body gives is of the decoder, and depends on the labels."""
    if getattr(getattr(unwrapped(model), "config", None), "is_encoder_decoder", False):
        rule = "be used with encoders; an encoder-decoder's representation is that of a decoder, which reads the labels"
        raise TargetError(Problem("distill.contrast", type(unwrapped(model)).__name__, rule, "distill.hidden"))


def _bring(name: str, source: Path, directory: Path) -> None:
    """Copies a bank beside a checkpoint that lies elsewhere to those of this training. Raises ``CheckpointError``."""
    target, other = (folder / f"{name}.safetensors" for folder in (directory, source))
    if other.is_file() and other.resolve() != target.resolve():
        directory.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        shutil.copyfile(other, partial)
        partial.replace(target)
    elif not other.is_file():
        rule = "be in the folder of banks beside the checkpoint that training resumes from"
        raise CheckpointError(Problem(other.name, str(other), rule, f"copying {_BANKS} with the checkpoint"))


def columns_of(model: nn.Module) -> frozenset[str]:
    """Columns of a data set that ``Trainer`` leaves in: arguments of the model, labels, and the number of the row."""
    return _NOT_ASKED | frozenset(signature(unwrapped(model).forward).parameters)


def _same_everywhere(states: Tensor, name: str, processes: int) -> None:
    """Raises ``TrainingError`` where processes do not hold the same bank; also waits until the file is written."""
    digest = torch.tensor([crc32(states.cpu().numpy().tobytes())], dtype=torch.int64)
    every = [torch.zeros_like(digest) for _ in range(processes)]
    torch.distributed.all_gather(every, digest)
    if any(int(other) != int(digest) for other in every):
        rule = "be the same in every process"
        fix = "the same model, data and versions for all"
        raise TrainingError(Problem(f"bank {name}", [f"{int(other):08x}" for other in every], rule, fix))


def _label(row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in ("labels", "label", "label_ids") if name in row), None)


def _is_class(rows: Numbered) -> bool:
    """Whether labels are those of classes; a number with a fraction is none."""
    label = _label(rows[0])
    if isinstance(label, Tensor):
        return label.dim() == 0 and not label.is_floating_point()
    return isinstance(label, int) and not isinstance(label, bool)
