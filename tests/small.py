"""Tiny random models, data and trainings that the tests of several rooms share."""

import errno
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    Trainer,
    TrainingArguments,
)

from prunus.sparsity import Masker, Pruning, Schedule, Span
from prunus.training.callback import PruneCallback

WORDS: Final = ("good", "bad", "film", "book", "very", "not", "long", "short", "one", "two", "three", "red", "blue")
VOCABULARY: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "who", "what", "is", "the", "?", ".")
TEXT_FILE: Final = "texts.tsv"
QA_FILE: Final = "questions.json"
TOKENS: Final = 40
LENGTH: Final = 12

SIZES: Final[dict[str, Any]] = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

CONFIGS: Final[dict[str, Callable[[], PreTrainedConfig]]] = {
    "bert": lambda: BertConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=TOKENS, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    ),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=1, bos_token_id=2, eos_token_id=3),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=8),
    "albert": lambda: AlbertConfig(**SIZES, embedding_size=8, num_hidden_groups=2),
    "deberta-v2": lambda: DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": lambda: ModernBertConfig(
        **SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
    "mpnet": lambda: MPNetConfig(**SIZES, pad_token_id=1),
}

HEADS: Final = {
    "classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}


def tiny_model(architecture: str = "bert", head: str = "classification", seed: int = 0, labels: int = 3) -> Any:
    """A random model of 16 hidden units and two layers, in evaluation mode."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    if head == "classification":
        config.num_labels = labels
    return HEADS[head].from_config(config).eval()


def teacher_of(width: int = 32, layers: int = 4) -> BertForSequenceClassification:
    """A model of another width and depth."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def without_dropout(model: Any) -> Any:
    """The same model, whose outputs in training are those of its weights alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def locked_bert() -> Any:
    """A random model with half of its encoder's weights zero in blocks of 4 x 1, and without dropout."""
    model = without_dropout(tiny_model())
    Masker(model, Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0))), 1)
    return model


def rows(count: int, head: str = "classification", seed: int = 0, labels: int = 3) -> list[dict[str, Any]]:
    """Random rows of one length, as a Trainer's default collator takes them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> list[Any]:
        return torch.randint(high, shape, generator=generator).tolist()

    found = []
    for _ in range(count):
        row: dict[str, Any] = {
            "input_ids": [token + 4 for token in draw(TOKENS - 4, LENGTH)],
            "attention_mask": [1] * LENGTH,
        }
        if head == "classification":
            row["labels"] = draw(labels, 1)[0]
        else:
            start, more = draw(LENGTH - 2, 1)[0], draw(2, 1)[0]
            row |= {"start_positions": start, "end_positions": start + more}
        found.append(row)
    return found


def batch(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.tensor([feature[key] for feature in features]) for key in features[0]}


GRADUAL: Final = Schedule("linear", Span(1), end=Span(5), every=Span(1))
"""Mask updates after the optimizer steps 1 to 5."""


def four_by_one(sparsity: float = 0.5, **more: Any) -> Pruning:
    return Pruning(sparsity, "4x1", **{"schedule": GRADUAL, **more})


def arguments(directory: Path, **more: Any) -> TrainingArguments:
    """A quiet training on one CPU: 8 steps, logged each step, nothing saved."""
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    return TrainingArguments(**{**settings, **more})


def plain_trainer(model: nn.Module, args: TrainingArguments, features: Any, **more: Any) -> Trainer:
    """``transformers.Trainer`` itself, without the callback that prints."""
    from transformers import PrinterCallback

    trainer = Trainer(model=model, args=args, train_dataset=features, **more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """The same names, and values equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def encoder_linears(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the Linear modules of the encoder, found without prunus: not the head, the pooler, the embeddings."""
    body = f"{model.base_model_prefix}." if isinstance(model, PreTrainedModel) else ""
    found = {}
    for name, module in model.named_modules():
        spared = any(word in name for word in ("pooler", "embedding"))
        if isinstance(module, nn.Linear) and name.startswith(body) and not spared:
            found[f"{name}.weight"] = module.weight
    return found


def block_zeros(weight: Tensor) -> tuple[int, int]:
    """Zeros, and blocks of 4 outputs x 1 input that are all zero, counted one by one."""
    values = weight.detach().tolist()
    zeros = sum(value == 0 for row in values for value in row)
    blocks = sum(
        all(values[4 * row + step][column] == 0 for step in range(4))
        for row in range(len(values) // 4)
        for column in range(len(values[0]))
    )
    return zeros, blocks


def tiny_tokenizer() -> BertTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def save_tiny_bert(directory: Path, seed: int = 0, **sizes: float) -> Path:
    """A random BERT without a head, with its tokenizer."""
    torch.manual_seed(seed)
    BertModel(BertConfig(**SIZES | sizes)).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def write_texts(path: Path, count: int) -> Path:
    """Texts of different lengths; the class is whether "good" or "bad" is in it."""
    lines = ["text\tlabel"]
    for index in range(count):
        word, others = ("good", "bad")[index % 2], WORDS[2 + index % 7 : 4 + index % 11]
        lines.append(" ".join([*others, word, *others[: index % 3]]) + f"\t{('positive', 'negative')[index % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_questions(path: Path, count: int) -> Path:
    """SQuAD's layout: who is the book? one.; the answer is a word of the context."""
    paragraphs = []
    for index in range(count):
        answer, other = WORDS[8 + index % 5], WORDS[2 + index % 5]
        context = f"the {other} is {answer} . the {WORDS[2 + (index + 2) % 5]} is {WORDS[8 + (index + 2) % 5]} ."
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        question = {"id": f"q{index}", "question": f"what is the {other} ?", "answers": answers}
        paragraphs.append({"context": context, "qas": [question]})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def small_recipe(model: Path, data: Path, task: str = "classification", **more: Any) -> dict[str, Any]:
    """4x1, 50 %, with a dense teacher: 24 steps in epochs of 8, on one thread."""
    text: dict[str, Any] = {"name": "classification", "train": str(data / TEXT_FILE), "max_length": 32}
    questions: dict[str, Any] = {"name": "qa", "train": str(data / QA_FILE), "max_length": 40, "doc_stride": 4}
    spec = text if task == "classification" else questions
    train = {"epochs": 3, "batch_size": 8 if task == "classification" else 3, "learning_rate": 1e-2, "threads": 1}
    return {
        "model": {"name": str(model)},
        "task": {**spec, "validation": spec["train"]},
        "train": {**train, "checkpoint_every": 5, "log_every": 2, "evaluate_every": 12},
        "dense": {"epochs": 1},
        "prune": {"pattern": "4x1", "sparsity": 0.5, "schedule": {"kind": "linear", "start": 2, "end": 18, "every": 1}},
        "distill": {"teacher": "dense", "weight": 1.0, "hard_weight": 0.5},
        **more,
    }


def no_space(*args: object) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """A signal, Ctrl-C, during the step."""
    whole = PruneCallback.on_optimizer_step

    def stopping(self: PruneCallback, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        whole(self, args, state, control, model, **kwargs)
        if state.global_step + 1 == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(PruneCallback, "on_optimizer_step", stopping)
