"""Settings that all tests share, and a tiny model on disk."""

import gc
import signal
from pathlib import Path

import pytest
import torch

from slow import slow_tests
from small import QA_FILE, TEXT_FILE, save_tiny_bert, write_questions, write_texts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what ``slow.txt`` names; the marker ``slow`` in a file does the same."""
    slow = slow_tests()
    for item in items:
        test, _, case = item.nodeid.partition("[")
        if test in slow and case.removesuffix("]") not in slow[test]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes everything that imports have made out of garbage collection.

    Every ``Trainer.train`` collects garbage, and looking through the modules of torch and transformers takes 0.2 s each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell without job control starts what runs in its background with SIGINT ignored, and prunus leaves it ignored then."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Models are tiny, and two tests run beside each other: more threads would wait for each other."""
    if torch.get_num_threads() != 1:
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
