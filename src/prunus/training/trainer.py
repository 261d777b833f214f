"""The Trainer of transformers, with a teacher, honest logs and length-sorted evaluation.

    loss = hard_weight * task loss + what teachers add (training/teaching.py) + contrastive terms (training/contrast.py)

The task loss is that of ``transformers.Trainer``; what the task is, the model says. Over several micro-batches or processes it
is the mean over all items (tokens, say) of a step where the model's loss counts them, and the mean of the micro-batches' means
where it does not (there ``Trainer`` itself would add the means up). A teacher's logits are normalised as the task loss is; what
else teachers add are means of micro-batches' means. In a recipe's run (``head``) the task loss is one too, so that a shorter
micro-batch counts as much as the others. Evaluation asks no teacher.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer

from prunus.distillation.logits import Distillation
from prunus.distillation.stacks import IGNORED
from prunus.errors import CheckpointError, Problem, PrunusError, TrainingError, first_line
from prunus.models.masked_language import masked_outputs
from prunus.quantization.layers import RANGES
from prunus.sparsity.measure import sparsity_of
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.wrappers import evaluating, unwrapped
from prunus.tasks.base import HeadKind
from prunus.training.adapters import BASE_DIRECTORY, unsaved, write_base
from prunus.training.autocast import in_float32
from prunus.training.callback import PruneCallback, SessionCallback
from prunus.training.contrast import ROW_ID, Contrasting, Numbered, columns_of, representing
from prunus.training.sampler import SeededSampler
from prunus.training.session import Clock, RowOrder, Session
from prunus.training.teaching import Teaching, decoded, outputs_of

__all__ = ["PrunusTrainer"]


class PrunusTrainer(Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` that prunes and distils.

    ``pruning`` is a rule or several (None trains dense); ``teacher`` is a model with the student's outputs, or several, used
    with ``distillation`` (``training.teaching``); ``pretrained`` is the model before the task, for ``contrast.prc`` (None: as
    training begins); ``score`` replaces the Trainer's own evaluation by metrics of the model;
    ``head`` is the task's head in a recipe's run: with ``masked-language``, logits are computed at the masked tokens alone;
    ``rate`` (step, total, warmup) -> factor (``training.lr_schedules``) replaces the Trainer's learning rates. All other
    arguments are the Trainer's. ``session`` is one that was made before (with its own rules in place of ``pruning``).
    """

    def __init__(
        self,
        *args: Any,
        pruning: Pruning | Sequence[Pruning] | None = None,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        distillation: Distillation | None = None,
        pretrained: nn.Module | None = None,
        score: Callable[[nn.Module], Mapping[str, float]] | None = None,
        rate: Callable[[int, int, int], float] | None = None,
        head: HeadKind | None = None,
        session: Session | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.score, self.rate = score, rate
        self._masked = head == "masked-language"
        if head is not None:
            self.model_accepts_loss_kwargs = False  # a mean per micro-batch
        # These are told the number of items, and divide by it.
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        parts = self.args.gradient_accumulation_steps * self.args.world_size * max(1, self.args.n_gpu)
        self._unsure = self._takes_items = self.model_accepts_loss_kwargs and not own_loss and parts > 1
        rules = () if pruning is None else (pruning,) if isinstance(pruning, Pruning) else tuple(pruning)
        self.session = session or Session(rules, seed=self.args.seed)
        self.session.clock, self.session.rows = Clock(), RowOrder()
        self.prune_callback = PruneCallback(session=self.session) if self.session.prunings else None
        self._state_callback = self.prune_callback or SessionCallback(self.session)
        self.add_callback(self._state_callback)
        self._distillation = settings = distillation or Distillation()
        self.weights = {"hard_loss": settings.hard_weight if teacher is not None or settings.contrast.terms else 1.0}
        teachers: list[Any] = (
            [] if teacher is None else list(teacher) if isinstance(teacher, list | tuple) else [teacher]
        )
        self._teachers = teachers
        self._teach(self.model)
        if settings.contrast.terms:
            numbered = Numbered(self.__dict__["train_dataset"])
            self.train_dataset: Any = numbered
            self.session.contrasting = Contrasting(
                settings.contrast,
                numbered,
                self.data_collator,
                pretrained=None if pretrained is None else pretrained.to(self.args.device),
                teacher=teachers[0] if teachers else None,
                growing=any(not rule.lock for rule in self.session.prunings),
                seed=self.args.seed,
                batch_size=self.args.per_device_eval_batch_size,
                autocast=self.accelerator.autocast,
            )
            self.weights |= self.session.contrasting.weights
        self._parts: dict[str, Tensor] = {}
        self._batches = 0  # since the last log
        self._steps = 0  # micro-batches

    @property
    def teaching(self) -> Teaching | None:
        """The teachers, where there are any."""
        return self.session.teaching

    @property
    def contrasting(self) -> Contrasting | None:
        """The contrastive terms and their banks, where there are any."""
        return self.session.contrasting

    def _teach(self, model: nn.Module) -> None:
        """Makes the teachers those of ``model``, with projectors and a reused head as they are at the beginning."""
        if self.__dict__.get("_teachers"):
            self.session.teaching = Teaching(model, self._teachers, self._distillation, self.args.device, self._masked)
            self.weights |= self.session.teaching.weights

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A model of ``model_init`` is prepared as one that is given; each ``train`` (of a search, each trial) makes one."""
        model: nn.Module = super().call_model_init(trial)
        if self.__dict__.get("_takes_items"):
            self._unsure = self.model_accepts_loss_kwargs = True  # found out again, of the new model
        self._teach(model)
        return model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; the teachers look at the rows first. Raises ``RecipeError`` for rows that one cannot read."""
        if self.teaching is not None:
            if self.model_init is None and unwrapped(self.model) is not unwrapped(self.teaching.student):
                self._teach(self.model)  # another model was put in the place of the first
            columns = columns_of(self.teaching.student) if self.args.remove_unused_columns else None
            self.teaching.check_rows(self.train_dataset, self.data_collator, columns)
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's. Raises ``TrainingError`` where a ``compute_loss`` of a subclass leaves out what teachers add."""
        before = self._steps
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._steps == before and (self.teaching is not None or self.contrasting is not None):
            rule = "call super().compute_loss, which adds what teachers and contrastive terms say"
            fix = "calling it there, or compute_loss_func=..., which takes the place of the task loss alone"
            raise TrainingError(Problem("compute_loss", type(self).__name__, rule, fix))
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted sum; see the module's docstring. Raises ``TrainingError`` where it is not finite."""
        asks = self.teaching.asks if self.teaching is not None and model.training else {}
        ids = inputs.get(ROW_ID)
        inputs = {name: value for name, value in inputs.items() if name != ROW_ID}
        labelled = self.label_smoother is None and self.compute_loss_func is None
        if not labelled:  # the model is not given the labels, from which the inputs of its decoder are made
            inputs = dict(decoded(model, inputs))
        hard: Tensor
        contrasts = self.contrasting if model.training else None
        with representing(model, contrasts is not None) as given:
            if self._masked:
                outputs, labels = masked_outputs(model, inputs, asks)
                hard = functional.cross_entropy(outputs["logits"].float(), labels)
            else:
                if self._unsure and model.training and num_items_in_batch is not None:
                    self._find_out(model, inputs, num_items_in_batch)
                hard, outputs = super().compute_loss(
                    model, inputs | asks, return_outputs=True, num_items_in_batch=num_items_in_batch
                )
        hard = hard.mean()  # of several GPUs
        if model.training and not torch.isfinite(hard) and _unlabelled(inputs):
            hard = torch.nan_to_num(hard)  # the mean over no label, whose gradient is 0
        loss = hard
        if model.training:
            # Where the task loss is a sum over all micro-batches of a step by their number of items, it is a share already.
            scaled = self._is_share(num_items_in_batch)
            share = 1.0 / self.current_gradient_accumulation_steps if scaled else 1.0
            parts = {"hard_loss": hard / share}
            if self.teaching is not None:
                teacher_losses = self.teaching.parts(outputs, inputs, model, self.accelerator.autocast, labelled)
                weight = self._weight(inputs, num_items_in_batch) / share if scaled else 1.0
                parts |= {
                    name: part * weight if name.startswith("distill_") else part
                    for name, part in teacher_losses.items()
                }
            if contrasts is not None and ids is not None:
                parts |= contrasts.parts(given[0], inputs, ids, self.state.global_step)
            if len(parts) > 1 or self.weights["hard_loss"] != 1.0:
                weighted = (self.weights[name] * part for name, part in parts.items())
                loss = share * sum(weighted, torch.zeros_like(hard))
            self._note(parts)
            if not torch.isfinite(loss):
                fix = "a lower learning rate, gradient clipping, or train.precision: fp32"
                step = self.state.global_step
                raise TrainingError(Problem(f"loss at step {step}", float(loss.detach()), "be finite", fix))
        return (loss, outputs) if return_outputs else loss

    def _find_out(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int) -> None:
        """Finds out whether the model divides its loss by the number of items, if a micro-batch of any process shows it.

        Until then there is no loss (no labels, say), and nothing to divide.
        """
        counts = self._counts_items(model, inputs, items)
        answers = torch.tensor([counts is False, counts is True], device=self.args.device)
        if self.args.world_size > 1:  # all go on alike: those that count gather their numbers of items
            answers = self.accelerator.gather(answers.int()[None]).amax(0).bool()
        if bool(answers.any()):
            self._unsure, self.model_accepts_loss_kwargs = False, bool(answers[1])

    @torch.no_grad()
    def _counts_items(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int) -> bool | None:
        """Whether the model divides its loss by the number of items it is given: many take that number and ignore it.

        None where this micro-batch does not show it: its loss is 0, or no number. All processes call the model alike.
        """
        with evaluating(model):  # no dropout, and no random number used up
            one, two = (
                super(PrunusTrainer, self).compute_loss(model, dict(inputs), False, n).mean()
                for n in (items, 2 * items)
            )
        shows = bool(torch.isfinite(one)) and bool(one != 0)
        return not torch.equal(one, two) if shows else None

    def _weight(self, inputs: Mapping[str, Any], items: Tensor | int | None) -> Tensor | float:
        """The share that this micro-batch has in the items of its step, as the task loss counts them."""
        labels = inputs.get("shift_labels", inputs.get("labels"))
        if items is None or not isinstance(labels, Tensor):
            return float(1.0 / self.current_gradient_accumulation_steps)
        # Trainer knows by a model's name that it shifts, and does not know all names.
        shifts = getattr(self, "_loss_shifts_labels", False) or outputs_of(self.model)[1]
        if shifts and "shift_labels" not in inputs:
            labels = labels[..., 1:]
        total: Any = items.flatten()[0] if isinstance(items, Tensor) else items
        if self.args.average_tokens_across_devices:
            total = total / self.accelerator.num_processes  # gradients are averaged over them
        else:
            total = total * max(1, self.args.n_gpu)  # Trainer has divided it
        counted: Tensor = (labels != IGNORED).sum() / (total + (total == 0))
        return counted

    def _is_share(self, items: Tensor | int | None) -> bool:
        """Whether ``Trainer`` takes the task loss as it is, and does not divide it by the number of micro-batches in a step."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Projectors learn with the student, without weight decay."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        projectors = list(self.teaching.projectors.parameters()) if self.teaching is not None else []
        in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if projectors and id(projectors[0]) not in in_optimizer:
            optimizer.add_param_group({"params": projectors, "weight_decay": 0.0})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The rows' own order, where they have one."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        rows = rows.rows if isinstance(rows, Numbered) else rows
        if hasattr(rows, "sampler"):
            sampler = rows.sampler(self.args.seed)
        elif callable(getattr(rows, "lengths", None)):
            size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            grouped = str(self.args.train_sampling_strategy) == "group_by_length"
            sampler = SeededSampler(rows.lengths(), size, self.args.seed, grouped)
        else:
            return super()._get_train_sampler(train_dataset)
        if self.session.rows is not None:
            self.session.rows.sampler = sampler
        return sampler

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """``rate`` where it was given."""
        scheduler: Any = self.__dict__.get("lr_scheduler")
        if self.rate is None or scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        rate = self.rate
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: rate(step, num_training_steps, warmup)
        )
        return self.lr_scheduler

    def _set_signature_columns_if_needed(self) -> None:
        """The numbers of rows are kept, where contrastive terms ask for them."""
        super()._set_signature_columns_if_needed()
        columns: list[str] = self.__dict__["_signature_columns"]
        if self.contrasting is not None and ROW_ID not in columns:
            columns.append(ROW_ID)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay pulls at weights, and not at the learned ranges of quantized layers."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(RANGES)]

    @property
    def seconds(self) -> float:
        """How long the training took, or has taken so far; of a resumed one, what led to its checkpoint included."""
        return self.session.clock.seconds if self.session.clock is not None else 0.0

    def _note(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            sum_so_far = self._parts.get(name)
            self._parts[name] = value.detach() if sum_so_far is None else sum_so_far + value.detach()
        self._batches += 1
        self._steps += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the parts of the loss and the sparsity due and measured, before any reporter sees the logs."""
        if "loss" in logs and self._batches:
            logs |= {name: float(value) / self._batches for name, value in self._parts.items()}
            self._parts, self._batches = {}, 0
            masker = self.session.masker
            if masker is not None:
                logs |= {"sparsity_due": masker.due(), "sparsity": sparsity_of(masker.measure(self.model))}
        super().log(logs, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """``score`` where it was given, the Trainer's own evaluation otherwise."""
        if self.score is None:
            return dict(super().evaluate(eval_dataset, ignore_keys, metric_key_prefix))
        with in_float32(self.model):
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.score(self.model).items()}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """One that cannot be written is taken away, and said; the one before it stays."""
        directory = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError, PrunusError) as error:
            full = shutil.disk_usage(self.args.output_dir).free < _ROOM
            shutil.rmtree(directory, ignore_errors=True)
            why = "no space left on the device" if full else first_line(error)
            fix = "space, then --resume: it goes on from the checkpoint before"
            raise TrainingError(Problem(str(directory), why, "be written whole", fix)) from None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called when a checkpoint's weights are read. What it lacks would keep its initial values, which is no going on."""
        missing = set(load_result.missing_keys)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        read = {
            id(parameter) for name, parameter in parameters.items() if name not in missing
        }  # tied ones are saved once
        absent = sorted(name for name in missing if name in parameters and id(parameters[name]) not in read)
        differences = (("without", absent), ("also", list(load_result.unexpected_keys)))
        problems = [
            Problem(
                "weights of the checkpoint", f"{what} {names[0]}", "be those of the model that is trained", _ANOTHER
            )
            for what, names in differences
            if names
        ]
        if problems:
            raise CheckpointError(*problems)
        super()._issue_warnings_after_load(load_result)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model; beside it the session's state, in a checkpoint always, elsewhere where there are masks; a pruned base."""
        super().save_model(output_dir, _internal_call)
        directory = Path(output_dir or self.args.output_dir)
        if _internal_call or self.session.masker is not None:
            self._state_callback.save_state(directory, self.args.should_save)
        if not _internal_call and self.session.keeps_state and unsaved(self.model, self.session.masker):
            write_base(self.model, directory / BASE_DIRECTORY, self.args.should_save)


def _unlabelled(inputs: Mapping[str, Any]) -> bool:
    """Whether labels are there, and none of them counts."""
    labels = inputs.get("labels")
    return isinstance(labels, Tensor) and not labels.is_floating_point() and not bool((labels != IGNORED).any())


_ANOTHER = "the model that the training began with, or an earlier checkpoint"
_ROOM = 1 << 20
"""Bytes; torch does not say that a disk is full, and leaves less."""
