"""Text -> rows -> masks: nothing lost, nothing twice, proportions as stated, the same for the same (seed, epoch, row)."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus.errors import PrunusError
from prunus.tasks import TaskSpec, check_task, load_task
from prunus.tasks.collate import IGNORED, Collate
from prunus.tasks.corpus import read_documents
from prunus.tasks.masked_language import BLOCK, BlockShuffle, MaskedRows
from small import WORDS, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


def documents(count: int, seed: int = 0) -> list[list[str]]:
    """Random paragraphs; each document begins with its number in words."""
    draw = np.random.default_rng(seed)
    return [
        [" ".join(draw.choice(WORDS, int(draw.integers(1, 30)))) for _ in range(int(draw.integers(1, 5)))]
        for _ in range(count)
    ]


def write_text(path: Path, texts: list[list[str]]) -> Path:
    data = "\n\n".join("\n".join(paragraphs) for paragraphs in texts) + "\n"
    path.write_bytes(gzip.compress(data.encode()) if path.name.endswith(".gz") else data.encode())
    return path


def write_jsonl(path: Path, texts: list[list[str]]) -> Path:
    path.write_text("".join(json.dumps({"text": "\n".join(paragraphs)}) + "\n" for paragraphs in texts))
    return path


def task_of(path: Path, **more: Any) -> Any:
    return load_task(TaskSpec(name="mlm", train=str(path), max_length=16, **more))


def stream(rows: MaskedRows) -> list[int]:
    """What is between [CLS] and [SEP] of all rows, without the separators of documents."""
    last = tiny_tokenizer().sep_token_id
    return [int(token) for row in rows.rows for token in row[1:-1] if token != last]


def expected(texts: list[list[str]]) -> list[int]:
    tokenizer = tiny_tokenizer()
    return [
        token for texts_ in texts for text in texts_ for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]


def test_documents_are_separated_within_a_row(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", [["good film", "red"], ["bad book"], ["one two three"]] * 10)
    tokenizer = tiny_tokenizer()
    rows = task_of(path, short_share=0.0, validation=str(path)).features("train", tokenizer).rows
    words = tokenizer.decode(rows[0])
    assert words == "[CLS] good film red [SEP] bad book [SEP] one two three [SEP] good film red [SEP]"
    assert tokenizer.decode(rows[1]).startswith("[CLS] bad book [SEP] one two three [SEP]")


@pytest.mark.parametrize("short", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl"])
def test_rows_hold_the_whole_text_in_order(kind: str, short: float, tmp_path: Path) -> None:
    texts = documents(300)
    path = tmp_path / f"text.{kind}"
    (write_jsonl if kind == "jsonl" else write_text)(path, texts)
    task = task_of(path, short_share=short)
    tokenizer = tiny_tokenizer()
    rows = {split: task.features(split, tokenizer) for split in ("train", "validation")}
    held = {"validation": texts[19::20], "train": [text for i, text in enumerate(texts) if i % 20 != 19]}
    for split, of in held.items():
        whole, got = expected(of), stream(rows[split])
        assert got == whole[: len(got)]
        assert len(whole) - len(got) < 14  # what is left is less than the shortest row
        assert task.corpus(tokenizer).documents[split] == len(of)
    lengths = np.array([len(row) for row in rows["train"].rows])
    assert (lengths[:-1] <= 16).all()
    assert (lengths[:-1] >= (16 if short == 0 else 10)).all()
    if short == 0.1:
        assert 0.04 < np.mean(lengths < 16) < 0.16
    first = rows["train"].rows[0]
    assert (first[0], first[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_a_validation_file_of_its_own(tmp_path: Path) -> None:
    first, second = write_text(tmp_path / "a.txt", documents(40)), write_text(tmp_path / "b.txt", documents(9, 1))
    task = task_of(first, validation=str(second))
    tokenizer = tiny_tokenizer()
    assert len(task.features("train", tokenizer)) > 0
    assert task.corpus(tokenizer).documents == {"train": 40, "validation": 9}
    assert task.notes == ("rows of up to 16 tokens, of 40 documents",)


def test_masks_have_their_shares(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = task_of(write_text(tmp_path / "a.txt", documents(3000))).features("train", tokenizer)
    masked = same = other = tokens = 0
    for plain, row in zip(rows.rows, rows, strict=True):
        ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
        chosen = labels != IGNORED
        assert (plain[chosen] == labels[chosen]).all()
        assert (plain[~chosen] == ids[~chosen]).all()
        assert not np.isin(plain[chosen], tokenizer.all_special_ids).any()
        assert 1 <= chosen.sum() <= max(1, round(0.15 * len(plain)))
        masked += int((ids[chosen] == tokenizer.mask_token_id).sum())
        same += int((ids[chosen] == plain[chosen]).sum())
        tokens += int(chosen.sum())
    other = tokens - masked - same
    # of the replaced tenth, one in 24 is drawn as itself, and one as [MASK]
    size, spread = len(tokenizer), 4 * np.sqrt(tokens * 0.25)
    assert abs(masked - tokens * (0.8 + 0.1 / size)) < spread
    assert abs(same - tokens * (0.1 + 0.1 / size)) < spread
    assert abs(other - tokens * 0.1 * (1 - 2 / size)) < spread


def test_the_examples_that_are_counted_are_rows(tmp_path: Path) -> None:
    path, tokenizer = write_text(tmp_path / "a.txt", documents(200)), tiny_tokenizer()
    for limits in ({}, {"max_train_samples": 7, "max_validation_samples": 10**6}):
        task = task_of(path, **limits)
        assert (task.size("train"), len(task.notes)) == (0, 1)
        splits = [task.features(split, tokenizer) for split in ("train", "validation")]
        assert [task.size("train"), task.size("validation")] == [len(rows) for rows in splits]
        assert task.size("train") == (7 if limits else len(task.corpus(tokenizer).rows["train"]))
        assert task.notes[0] == "rows of up to 16 tokens, of 190 documents"


def test_masks_follow_from_seed_epoch_and_row(tmp_path: Path) -> None:
    task, tokenizer = task_of(write_text(tmp_path / "a.txt", documents(200))), tiny_tokenizer()
    first, second = task.features("train", tokenizer), task.features("train", tokenizer)
    _ = [second[i] for i in reversed(range(len(second)))]
    assert list(first) == list(second)
    second.set_epoch(1)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) // 5
    second.set_epoch(0)
    assert first[3] == second[3]
    other = load_task(TaskSpec(name="mlm", train=str(tmp_path / "a.txt"), max_length=16, subset_seed=1))
    assert first[3] != other.features("train", tokenizer)[3]


def test_an_order_of_rows_is_a_permutation_that_changes_with_the_epoch(tmp_path: Path) -> None:
    rows = task_of(write_text(tmp_path / "a.txt", documents(9000)), short_share=1.0).features("train", tiny_tokenizer())
    assert len(rows) > 2 * BLOCK
    sampler = rows.sampler(3)
    first = list(sampler)
    assert sorted(first) == list(range(len(rows)))
    assert list(BlockShuffle(rows, 3)) == first
    assert list(BlockShuffle(rows, 4)) != first
    sampler.set_epoch(1)
    assert rows.epoch == 1
    assert list(sampler) != first


def test_labels_of_tokens_are_padded_with_what_is_ignored(tmp_path: Path) -> None:
    rows = task_of(write_text(tmp_path / "a.txt", documents(50)), short_share=1.0).features("train", tiny_tokenizer())
    batch = Collate(tiny_tokenizer())([rows[i] for i in range(4)])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    peaks = []
    for name, count in (("small", 2000), ("large", 16000)):
        path = write_text(tmp_path / f"{name}.txt", documents(2000) * (count // 2000))
        task, tokenizer = task_of(path), tiny_tokenizer()
        tracemalloc.start()
        rows = task.features("train", tokenizer)
        for i in list(rows.sampler(0))[:100]:
            _ = rows[i]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20


def test_tokens_are_kept_and_follow_the_text(tmp_path: Path) -> None:
    path, tokenizer = write_text(tmp_path / "a.txt", documents(50)), tiny_tokenizer()
    first = task_of(path).features("train", tokenizer)
    assert task_of(path).features("train", tokenizer).digest == first.digest
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
    write_text(path, documents(50, 1))
    assert task_of(path).features("train", tokenizer).digest != first.digest
    assert task_of(path, mask_share=0.3).features("train", tokenizer).digest != first.digest


@pytest.mark.parametrize(
    ("data", "name", "told"),
    [
        (b"", "a.txt", "hold at least one paragraph"),
        (b"\n\n \n", "a.txt", "hold at least one paragraph"),
        (b"good film", "a.txt", "have at least one row of tokens"),
        (b"\xff\xfe bad", "a.txt", "be UTF-8"),
        (b"not gzip", "a.txt.gz", "be a whole gzip file"),
        (b'{"text": 3}\n', "a.jsonl", "hold a string as text"),
        (b'{"words": "x"}\n', "a.jsonl", "have a column text or content or document"),
        (b"{", "a.jsonl", "be a JSON object"),
    ],
)
def test_text_that_is_none_is_told(data: bytes, name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PrunusError, match=told):
        task_of(tmp_path / name).features("train", tiny_tokenizer())
    left = tmp_path / "cache" / "tokens"
    assert not left.is_dir() or not [path for path in left.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "task.train must name a file of text"),
        ({"train": "no.txt"}, "must be an existing file"),
        ({"train": "table.csv"}, "must end in .txt"),
        ({"data": "."}, "be a directory with one text file"),
        ({"train": "a.txt", "mask_share": 0.0}, "task.mask_share must be a share above 0"),
        ({"train": "a.txt", "short_share": 2.0}, "task.short_share must be a share"),
        ({"train": "a.txt", "held_out": 0.9}, "task.held_out must be a share"),
        ({"train": "a.txt", "max_length": 4}, "task.max_length"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(
    more: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "table.csv").write_text("x")
    problems = check_task(TaskSpec(name="mlm", **more))
    assert told.replace("\\", "") in "\n".join(map(str, problems)), problems


def test_documents_end_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\n two \n\n\n\nthree\r\n \nfour")
    assert list(read_documents(tmp_path / "a.txt")) == [["one", "two"], ["three"], ["four"]]
