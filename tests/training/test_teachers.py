"""Teachers of many kinds beside the student: what they are given, what is compared, and what is refused before a step."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers import PrinterCallback

from prunus import Distillation, PrunusTrainer, TeacherSettings
from prunus.distillation.contrastive import Contrast, Contrastive
from prunus.distillation.hidden import Inside
from prunus.errors import PrunusError, RecipeError, TargetError
from small import LENGTH, TOKENS, arguments, batch, rows, same, tiny_model, weights, without_dropout

SIZES: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
PAIR: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
T5: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}


def made(seed: int, kind: str, config: Any) -> Any:
    torch.manual_seed(seed)
    return without_dropout(getattr(tf, kind)(config)).eval()


def adapted(model: Any) -> Any:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))


def text(seed: int = 0, count: int = 4) -> dict[str, Tensor]:
    """Sequences with targets of another length, some of which end early."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, TOKENS, (count, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    labels = torch.randint(4, TOKENS, (count, 5), generator=generator)
    labels[1, 3:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer_of(place: Path, student: Any, teacher: Any, distillation: Distillation, **more: Any) -> PrunusTrainer:
    features = more.pop("train_dataset", None) or rows(8)
    settings = {name: more.pop(name) for name in ("max_steps", "bf16", "gradient_accumulation_steps") if name in more}
    args = arguments(place, **{"max_steps": 1, **settings})
    trainer = PrunusTrainer(student, args, train_dataset=features, teacher=teacher, distillation=distillation, **more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer: PrunusTrainer, inputs: dict[str, Any]) -> dict[str, float]:
    """The parts of the loss of one batch."""
    trainer.compute_loss(trainer.model.train(), dict(inputs))
    return {name: float(value) for name, value in trainer._parts.items()}


def divergence(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> float:
    p, q = ((logits.double() / temperature).log_softmax(-1) for logits in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean()) * temperature**2


# Encoder-decoders

SEQUENCES: dict[str, Callable[[int, int], Any]] = {
    "bart": lambda seed, layers: made(
        seed, "BartForConditionalGeneration", tf.BartConfig(**PAIR | {"decoder_layers": layers})
    ),
    "pegasus": lambda seed, layers: made(
        seed, "PegasusForConditionalGeneration", tf.PegasusConfig(**PAIR | {"decoder_layers": layers})
    ),
    "t5": lambda seed, layers: made(
        seed, "T5ForConditionalGeneration", tf.T5Config(**T5 | {"num_decoder_layers": layers})
    ),
    "mt5": lambda seed, layers: made(
        seed, "MT5ForConditionalGeneration", tf.MT5Config(**T5 | {"num_decoder_layers": layers})
    ),
    "blenderbot, which shifts labels itself": lambda seed, layers: made(
        seed, "BlenderbotForConditionalGeneration", tf.BlenderbotConfig(**PAIR | {"decoder_layers": layers})
    ),
    "two BERTs": lambda seed, layers: made(
        seed,
        "EncoderDecoderModel",
        tf.EncoderDecoderConfig.from_encoder_decoder_configs(
            tf.BertConfig(**SIZES),
            tf.BertConfig(**SIZES | {"num_hidden_layers": layers}),
            pad_token_id=1,
            decoder_start_token_id=2,
        ),
    ),
}
DEEP = Distillation(1.0, 1.0, 2.0, Inside(1.0, "uniform"), Inside(1.0, "last"))


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces")  # transformers, of two BERTs with labels
@pytest.mark.parametrize("family", SEQUENCES)
def test_the_decoder_of_a_teacher_reads_what_the_students_reads(family: str, tmp_path: Path) -> None:
    """The reference: both models as they are called with labels."""
    student, teacher = SEQUENCES[family](0, 1), SEQUENCES[family](1, 2)
    inputs = text()
    got = losses(trainer_of(tmp_path, student, teacher, DEEP), inputs)
    with torch.no_grad():
        s, t = (m(**inputs, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
    counts, mask = inputs["labels"] != -100, inputs["attention_mask"].bool()
    assert got["hard_loss"] == pytest.approx(float(s.loss), rel=1e-5)
    assert got["distill_loss"] == pytest.approx(divergence(s.logits[counts], t.logits[counts]), rel=1e-4)
    hidden = []
    for kind, kept, pairs in (("encoder", mask, ((0, 0), (1, 1))), ("decoder", counts, ((0, 0), (1, 2)))):
        for i, j in pairs:
            left, right = (m[f"{kind}_hidden_states"] for m in (s, t))
            hidden.append((left[i][kept].double() - right[j][kept].double()).square().mean())
    assert got["hidden_loss"] == pytest.approx(float(torch.stack(hidden).mean()), rel=1e-4)
    maps = []
    for kind, kept in (("encoder", mask), ("decoder", counts)):
        gap = (s[f"{kind}_attentions"][-1].double() - t[f"{kind}_attentions"][-1].double()).square()
        both = (kept[:, :, None] & kept[:, None, :])[:, None].expand_as(gap)
        maps.append(gap[both].mean())
    assert got["attention_loss"] == pytest.approx(float(torch.stack(maps).mean()), rel=1e-4)


def test_inputs_of_the_decoder_that_a_collator_gives_stand(tmp_path: Path) -> None:
    student, teacher = SEQUENCES["bart"](0, 1), SEQUENCES["bart"](1, 1)
    inputs = text() | {"decoder_input_ids": torch.full((4, 5), 7)}
    got = losses(trainer_of(tmp_path, student, teacher, Distillation()), inputs)
    with torch.no_grad():
        s, t = (m(**inputs).logits[inputs["labels"] != -100] for m in (student, teacher))
    assert got["distill_loss"] == pytest.approx(divergence(s, t), rel=1e-4)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_with_smoothed_labels_the_decoder_reads_them_too(family: str, tmp_path: Path) -> None:
    """Trainer gives such a model no labels, and leaves the decoder's inputs to the collator."""
    student, teacher, inputs = SEQUENCES[family](0, 1), SEQUENCES[family](1, 1), text()
    found = []
    for more in ({}, {"decoder_input_ids": student.prepare_decoder_input_ids_from_labels(inputs["labels"])}):
        args = arguments(tmp_path, label_smoothing_factor=0.1)
        trainer = PrunusTrainer(student, args, train_dataset=rows(8), teacher=teacher)
        found.append(losses(trainer, inputs | more))
    assert found[0] == found[1]
    assert found[0]["distill_loss"] > 0


def test_a_training_with_projectors_of_both_stacks(tmp_path: Path) -> None:
    wide = made(1, "T5ForConditionalGeneration", tf.T5Config(**T5 | {"d_model": 24}))
    data = text(count=8)
    features = [{name: value[i].tolist() for name, value in data.items()} for i in range(8)]
    student = SEQUENCES["t5"](0, 1)
    trainer = trainer_of(tmp_path, student, wide, Distillation(hidden=Inside(1.0)), train_dataset=features, max_steps=2)
    assert trainer.teaching is not None
    before = {name: value.clone() for name, value in trainer.teaching.projectors.state_dict().items()}
    assert set(before) == {"0.projectors.encoder_1-1.weight", "0.projectors.decoder_1-1.weight"}
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.teaching.projectors.state_dict().items())


@pytest.mark.parametrize(
    ("distillation", "teacher", "said"),
    [
        (Distillation(0.0, hidden=Inside(1.0, pairs=((1, 1),))), "t5", r"distill\.hidden\.pairs must be left out"),
        (Distillation(0.0, hidden=Inside(1.0)), "bert", "compare two encoders, or two encoder-decoders"),
        (Distillation(0.0, reuse=1.0), "t5", "distill.reuse must have a head"),
    ],
)
def test_layers_of_encoder_decoders_that_cannot_be_compared(
    distillation: Distillation, teacher: str, said: str, tmp_path: Path
) -> None:
    other = tiny_model("bert") if teacher == "bert" else SEQUENCES["t5"](1, 1)
    with pytest.raises(TargetError, match=said):
        trainer_of(tmp_path, SEQUENCES["t5"](0, 1), other, distillation)


# Hidden states and attention maps of other kinds of models

VISION: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 1}


def image(seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), "labels": ORDER}


ORDER = torch.tensor([0, 1, 0, 1])
WHOLE = {"attention_mask": torch.ones(4, LENGTH, dtype=torch.long)}
LLM: dict[str, Any] = SIZES | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def choices() -> dict[str, Tensor]:
    ids = text(1, 8)["input_ids"].view(4, 2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, 1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ORDER}


def words(labels: Tensor) -> dict[str, Tensor]:
    return {**text(), "labels": labels}


# two models, one batch
KINDS: dict[str, tuple[Callable[[int], Any], Callable[[], dict[str, Tensor]]]] = {
    "choices": (lambda seed: made(seed, "BertForMultipleChoice", tf.BertConfig(**SIZES)), choices),
    "images": (
        lambda seed: made(seed, "ViTForImageClassification", tf.ViTConfig(**SIZES, **VISION, num_labels=2)),
        image,
    ),
    "classes of tokens": (
        lambda seed: made(seed, "BertForTokenClassification", tf.BertConfig(**SIZES, num_labels=3)),
        lambda: words(text()["input_ids"] % 3),
    ),
    "a number": (
        lambda seed: made(seed, "BertForSequenceClassification", tf.BertConfig(**SIZES, num_labels=1)),
        lambda: words(ORDER.float()),
    ),
    "no mask": (
        lambda seed: made(seed, "BertForSequenceClassification", tf.BertConfig(**SIZES, num_labels=2)),
        lambda: {"input_ids": text()["input_ids"], "labels": ORDER},
    ),
    "a mask with a hole": (
        lambda seed: made(seed, "BertForSequenceClassification", tf.BertConfig(**SIZES, num_labels=2)),
        lambda: {
            **words(ORDER),
            "attention_mask": torch.ones(4, LENGTH).index_fill(1, torch.tensor([3]), 0.0),
        },
    ),
    "DeBERTa": (
        lambda seed: made(seed, "DebertaV2ForSequenceClassification", tf.DebertaV2Config(**SIZES, num_labels=2)),
        lambda: words(ORDER),
    ),
    "ModernBERT": (
        lambda seed: made(
            seed,
            "ModernBertForSequenceClassification",
            tf.ModernBertConfig(**LLM, cls_token_id=2, sep_token_id=3, num_labels=2),
        ),
        lambda: words(ORDER),
    ),
    "GPT-2": (
        lambda seed: made(
            seed,
            "GPT2LMHeadModel",
            tf.GPT2Config(
                vocab_size=TOKENS, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
            ),
        ),
        lambda: words(text()["input_ids"]),
    ),
    "Qwen2": (
        lambda seed: made(seed, "Qwen2ForCausalLM", tf.Qwen2Config(**LLM, num_key_value_heads=2)),
        lambda: words(text()["input_ids"]),
    ),
    "the encoder of T5": (
        lambda seed: made(seed, "T5ForTokenClassification", tf.T5Config(**T5, num_labels=3)),
        lambda: words(text()["input_ids"] % 3),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_any_kind_of_model(kind: str, tmp_path: Path) -> None:
    (model, inputs_of), deep = KINDS[kind], Distillation(1.0, 1.0, 2.0, Inside(1.0, "uniform"), Inside(1.0, "last"))
    student, teacher = model(0), model(1)
    inputs = inputs_of()
    trainer = trainer_of(tmp_path, student, teacher, deep)
    got = losses(trainer, inputs)
    with torch.no_grad():
        s, t = (m(**inputs, output_hidden_states=True, output_attentions=True) for m in (student.eval(), teacher))
    assert got["hard_loss"] == pytest.approx(float(s.loss), rel=1e-5)
    counted, tokens = s.hidden_states[0].shape[:2]
    mask = inputs.get("attention_mask", torch.ones(counted, tokens)).reshape(counted, tokens).bool()
    layers = [
        (left[mask].double() - right[mask].double()).square().mean()
        for left, right in zip(s.hidden_states, t.hidden_states, strict=True)
    ]
    assert got["hidden_loss"] == pytest.approx(float(torch.stack(layers).mean()), rel=1e-4)
    gap = (s.attentions[-1].double() - t.attentions[-1].double()).square()
    both = (mask[:, :, None] & mask[:, None, :])[:, None].expand_as(gap)
    assert got["attention_loss"] == pytest.approx(float(gap[both].mean()), rel=1e-4)
    assert got["distill_loss"] > 0


@pytest.mark.parametrize(
    ("student", "teacher", "inputs", "said"),
    [
        pytest.param(
            KINDS["images"][0],
            lambda: made(
                1, "ViTForImageClassification", tf.ViTConfig(**SIZES, **VISION | {"patch_size": 2}, num_labels=2)
            ),
            image,
            r"compare models that make the same rows and tokens of a batch: the student's layers are \[4, 5, 16\], got a "
            r"teacher with \[4, 17, 16\]",
            id="other patches",
        ),
        pytest.param(
            lambda seed: made(
                seed,
                "SwinForImageClassification",
                tf.SwinConfig(
                    **VISION | {"patch_size": 1},
                    embed_dim=8,
                    depths=[1, 1],
                    num_heads=[1, 1],
                    window_size=2,
                    num_labels=2,
                ),
            ),
            None,
            image,
            r"distill\.hidden must .*configuration",
            id="layers of several widths",
        ),
        pytest.param(
            KINDS["no mask"][0],
            None,
            lambda: {**words(ORDER), "attention_mask": torch.ones(4, 1, LENGTH, LENGTH)},
            r"have one mark for each of the 12 tokens of a layer's output, got an attention mask \[4, 1, 12, 12\]",
            id="a mask of pairs",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_told(
    student: Any, teacher: Any, inputs: Any, said: str, tmp_path: Path
) -> None:
    trainer = trainer_of(
        tmp_path,
        student(0),
        student(1) if teacher is None else teacher(),
        Distillation(0.0, hidden=Inside(1.0, "uniform")),
    )
    with pytest.raises(TargetError, match=said):
        losses(trainer, inputs())


def test_models_without_a_description_of_their_layers_are_told(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()

        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    with pytest.raises(TargetError, match=r"the model with distill\.hidden must be a Hugging Face model whose config"):
        trainer_of(tmp_path, Plain(), tiny_model(seed=1), Distillation(hidden=Inside(1.0)))
    with pytest.raises(TargetError, match=r"distill\.reuse must"):
        trainer_of(tmp_path, Plain(), tiny_model(seed=1), Distillation(reuse=1.0))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which PEFT asks for
@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (adapted, "be used with a model without a wrapper, got 'PeftModelForSeq"),
        (lambda model: KINDS["images"][0](0), "read a row of tokens, by which its first layer is found"),
        (
            lambda model: made(
                0,
                "GPT2ForSequenceClassification",
                tf.GPT2Config(
                    vocab_size=TOKENS, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=0, num_labels=3
                ),
            ),
            "have a bias in score, into which the projector's goes",
        ),
    ],
)
def test_heads_that_cannot_be_reused(wrap: Any, said: str, tmp_path: Path) -> None:
    student = wrap(tiny_model())
    with pytest.raises(TargetError, match=said):
        trainer_of(tmp_path, student, deepcopy(student), Distillation(reuse=1.0))


@pytest.mark.parametrize("kind", ["projectors", "reuse"])
def test_models_in_bfloat16(kind: str, tmp_path: Path) -> None:
    """Their weights, not only the autocast."""
    student = tiny_model().to(torch.bfloat16)
    if kind == "reuse":
        teacher, choice = tiny_model(seed=1).to(torch.bfloat16), Distillation(0.5, reuse=1.0)
    else:
        config = tf.BertConfig(**SIZES | {"hidden_size": 24}, num_labels=3)
        teacher, choice = made(1, "BertForSequenceClassification", config), Distillation(0.5, hidden=Inside(1.0))
    trainer = trainer_of(tmp_path, student, teacher, choice, max_steps=2)
    trainer.train()
    assert all(torch.isfinite(value).all() for value in weights(student).values())


def test_models_that_return_tuples_are_read_by_name(tmp_path: Path) -> None:
    student, teacher = tiny_model(), tiny_model(seed=1)
    student.config.return_dict = teacher.config.return_dict = False
    trainer = trainer_of(tmp_path, without_dropout(student), teacher, DEEP)
    got = losses(trainer, batch(rows(4)))
    assert got["hidden_loss"] > 0
    assert got["distill_loss"] > 0
    assert student.config.return_dict is False


# Teachers that are refused before the first step


def classifier(seed: int = 1, labels: int | list[str] = 3, kind: str = "bert") -> Any:
    model = tiny_model(kind, labels=labels if isinstance(labels, int) else len(labels), seed=seed)
    if not isinstance(labels, int):
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {name: index for index, name in enumerate(labels)}
    return model


def sized(kind: str = "BertForSequenceClassification", **sizes: Any) -> Any:
    config = {"num_labels": 3, **SIZES, **sizes}
    return made(1, kind, (tf.RobertaConfig if kind.startswith("Roberta") else tf.BertConfig)(**config))


def around(model: Any) -> Any:
    other = classifier()
    other.bert = model.bert
    return other


def tied(model: Any) -> Any:
    other = classifier()
    other.set_input_embeddings(model.get_input_embeddings())
    return other


def one_tensor(model: Any) -> Any:
    other = classifier()
    other.classifier.weight = model.classifier.weight
    return other


def one_memory(model: Any) -> Any:
    other = classifier()
    other.classifier.weight = nn.Parameter(model.classifier.weight.detach())
    return other


ORDERED = ["negative", "neutral", "positive"]
AGAIN = r"try a model that is loaded again with from_pretrained, or copy\.deepcopy\(model\)"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which PEFT asks for
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: model, rf"(?s)teacher must be another model, which does not change.*{AGAIN}"),
        (adapted, rf"(?s)teacher must .*{AGAIN}"),
        (nn.DataParallel, rf"(?s)teacher must be another model.*{AGAIN}"),
        (around, rf"(?s)teacher must share nothing.*bert\.embeddings.*{AGAIN}"),
        (tied, r"word_embeddings\.weight is the same in both, got 1 that both have"),
        (one_tensor, r"classifier\.weight is the same in both, got"),
        (one_memory, r"classifier\.weight is the same in both, got 1 that both have"),
    ],
)
def test_a_teacher_shares_nothing_with_its_student(make: Any, said: str, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(RecipeError, match=said):
        trainer_of(tmp_path, model, make(model), Distillation(0.0, hidden=Inside(1.0)))
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora" in name or make is not adapted)


def test_what_teachers_share_with_each_other_is_theirs(tmp_path: Path) -> None:
    student, teacher = tiny_model(), classifier()
    choice = Distillation(others=(TeacherSettings(0.5, 1.0), TeacherSettings(0.5, 3.0)))
    trainer_of(tmp_path, student, [teacher, teacher, around(teacher)], choice).train()
    trainer_of(tmp_path, student, deepcopy(student), Distillation()).train()


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        pytest.param(
            classifier(0), classifier(labels=1), "teacher must have the 3 labels .* got 1 labels", id="one label"
        ),
        pytest.param(classifier(0), classifier(labels=5), "teacher must have the 3 labels .* got 5 labels", id="more"),
        pytest.param(
            classifier(0, ORDERED),
            classifier(1, ["POSITIVE", "Neutral", "negative"]),
            r"in the order of the model that is trained: negative is its output 0, got negative as output 2",
            id="another order",
        ),
        pytest.param(
            classifier(0, ["not-equivalent", "b", "c"]),
            classifier(1, ["b", "not_equivalent", "d"]),
            "labels in the order",
            id="some in another order",
        ),
        pytest.param(
            classifier(0),
            tiny_model("bert", "question-answering"),
            r"give[s]? .*logits|have the head",
            id="another head",
        ),
        pytest.param(classifier(0), tf.BertModel(tf.BertConfig(**SIZES)), "have the head of the student", id="no head"),
        pytest.param(
            classifier(0),
            sized(vocab_size=20),
            "have an embedding for token 39 of the data, .* got 20 emb",
            id="tokens",
        ),
        pytest.param(
            classifier(0),
            sized(max_position_embeddings=8),
            r"read the longest row of the data, 12 tokens, .* got 8 positions",
            id="positions",
        ),
        pytest.param(
            tiny_model("bert", labels=3),
            made(1, "BertForMaskedLM", tf.BertConfig(**SIZES)),
            r"give logits of the student's shape \[4, 3\], got \[4, 12, 40\]",
            id="a language model",
        ),
        pytest.param(
            made(0, "BertForMaskedLM", tf.BertConfig(**SIZES)),
            made(1, "BertForMaskedLM", tf.BertConfig(**SIZES | {"vocab_size": 48})),
            r"give logits of the student's shape \[4, 12, 40\], got \[4, 12, 48\]",
            id="a language model with more tokens",
        ),
    ],
)
def test_a_teacher_of_other_sizes_is_refused_before_a_step(
    student: Any, teacher: Any, said: str, tmp_path: Path
) -> None:
    before = weights(student)
    features = rows(8)
    if type(student).__name__ == "BertForMaskedLM":
        features = [{**row, "labels": row["input_ids"]} for row in features]
    with pytest.raises(PrunusError, match=said):
        trainer_of(tmp_path, student, teacher, Distillation(), train_dataset=features).train()
    assert same(before, weights(student))


@pytest.mark.parametrize(
    ("student", "teacher", "choice"),
    [
        pytest.param(classifier(0, ORDERED), classifier(1), Distillation(), id="labels without names"),
        pytest.param(classifier(0, ORDERED), classifier(1, ["a", "b", "c"]), Distillation(), id="other names"),
        pytest.param(
            classifier(0), classifier(labels=5), Distillation(0.0, hidden=Inside(1.0)), id="layers alone, other labels"
        ),
        pytest.param(
            classifier(0),
            sized(vocab_size=TOKENS + 8, max_position_embeddings=LENGTH),
            Distillation(),
            id="a table that is rounded up, and positions that are enough",
        ),
        pytest.param(
            classifier(0),
            tf.DistilBertForSequenceClassification(
                tf.DistilBertConfig(vocab_size=TOKENS, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=3)
            ),
            Distillation(),
            id="a teacher without types of tokens",
        ),
    ],
)
def test_a_teacher_that_fits_is_taken(student: Any, teacher: Any, choice: Distillation, tmp_path: Path) -> None:
    features = [{**row, "token_type_ids": [0] * LENGTH} for row in rows(8)]
    trainer_of(tmp_path, deepcopy(student), teacher, choice, train_dataset=features).train()


def test_a_reused_head_has_the_students_labels(tmp_path: Path) -> None:
    choice = Distillation(0.0, 0.0, reuse=1.0)
    with pytest.raises(RecipeError, match="labels in the order"):
        trainer_of(tmp_path, classifier(0, ORDERED), classifier(1, ORDERED[::-1]), choice)
    named = classifier(1)
    named.config.id2label = {str(index): name for index, name in enumerate(ORDERED)}
    trainer_of(tmp_path, classifier(0, ORDERED), named, choice)


def test_a_bank_of_another_width_is_told(tmp_path: Path) -> None:
    choice = Distillation(contrast=Contrastive(fic=Contrast(0.1)))
    with pytest.raises(
        TargetError, match=r"distill\.contrast\.fic must be as wide as the model that is trained: 16, got 24"
    ):
        trainer_of(tmp_path, tiny_model(), sized(hidden_size=24), choice).train()


@pytest.mark.parametrize("teacher", [tf.BertForSequenceClassification, "a directory", ["two", "of them"]])
def test_a_teacher_is_a_model(teacher: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="teacher must be a model, or a list of models, got"):
        trainer_of(tmp_path, tiny_model(), teacher, Distillation(others=(TeacherSettings(),)))


def test_a_vocabulary_of_another_size_is_told(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="the teacher has embeddings for 400 tokens and the model that is trained for 40"
    ):
        trainer_of(tmp_path, tiny_model(), sized(vocab_size=400), Distillation()).train()


def test_a_batch_that_a_teacher_does_not_take_is_told(tmp_path: Path) -> None:
    """One that its collator made longer than the rows, or with other tokens."""
    teacher = sized(max_position_embeddings=LENGTH, vocab_size=TOKENS - 2)
    features = [{**row, "input_ids": [token % 20 for token in row["input_ids"]]} for row in rows(8)]
    for padded, said in (
        ({"input_ids": torch.full((2, 20), 4), "attention_mask": torch.ones(2, 20)}, "take the inputs of the model"),
        (
            {"input_ids": torch.full((2, 4), TOKENS - 1)},
            "have an embedding for token 39 of this batch, got 38 embeddings",
        ),
    ):
        trainer = trainer_of(tmp_path, tiny_model(), teacher, Distillation(), train_dataset=features)
        with pytest.raises(TargetError, match=said):
            losses(trainer, {**padded, "labels": torch.tensor([0, 1])})


# Contrastive terms


@pytest.mark.parametrize(
    ("student", "features", "said"),
    [
        ("bart", None, r"be used with encoders; an encoder-decoder's .*, got 'BartForConditionalGeneration'"),
        ("t5", None, r"be used with encoders; an encoder-decoder's"),
        ("choices", choices, "be used with rows of tokens, one text or pair each, got rows of several choices"),
    ],
)
def test_contrastive_terms_are_of_encoders_and_rows(student: str, features: Any, said: str, tmp_path: Path) -> None:
    data = (features or text)()
    given = [{name: value[i].tolist() for name, value in data.items()} for i in range(4)]
    model = KINDS["choices"][0](0) if student == "choices" else SEQUENCES[student](0, 1)
    choice = Distillation(contrast=Contrastive(prc=Contrast(0.1)))
    with pytest.raises(TargetError, match=said):
        trainer_of(tmp_path, model, None, choice, train_dataset=given).train()


def test_contrastive_terms_of_images(tmp_path: Path) -> None:
    data = image()
    given = [{"pixel_values": data["pixel_values"][i], "labels": int(ORDER[i])} for i in range(4)]
    choice = Distillation(contrast=Contrastive(prc=Contrast(0.1), fic=Contrast(0.1, supervised=0.1), negatives=4))
    student, teacher = KINDS["images"][0](0), KINDS["images"][0](1)
    trainer = trainer_of(tmp_path, student, teacher, choice, train_dataset=given, max_steps=2)
    trainer.train()
    assert {"prc_loss", "fic_loss", "fic_label_loss"} <= set(trainer.state.log_history[0])
