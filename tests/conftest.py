"""Settings that all tests share, and a tiny model on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from small import QA_FILE, TEXT_FILE, save_tiny_bert, write_questions, write_texts


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_test() -> None:
    """Models are tiny, and two tests run beside each other: more threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random BERT of two layers, without a head, and a small word-piece tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a classification file of 60 rows and a question-answering file of 20 questions."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / TEXT_FILE, 60)
    write_questions(folder / QA_FILE, 20)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
