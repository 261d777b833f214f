"""Damaged files at every reader: an error of prunus, in bounded time and memory, or what a whole file would give.

    python benchmarks/fuzz.py [--inputs 10000] [--readers recipe,facts,...]
    python benchmarks/fuzz.py --engine atheris          # guided by coverage: pip install atheris

Each reader gets whole files that were changed: bits flipped, parts cut, doubled, moved or replaced, numbers made huge, words of
its format put in wrong places, lengths in headers changed. What counts as a finding: any exception that is no ``PrunusError``,
more than 5 seconds, or more than 512 MiB above where the reader began. Results go to ``benchmarks/results/fuzz.json``.
"""

import argparse
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from headers import header
from prunus import Pruning, PrunusError
from prunus.checkpoint.bank_io import read_states, write_states
from prunus.checkpoint.huggingface import PrunusLayout
from prunus.checkpoint.tensor_io import read_masks, read_tensors, write_masks
from prunus.converters import convert_file
from prunus.export.archive import ARCHIVE, read_archive, write_archive
from prunus.recipe import SHIPPED, load_recipe
from prunus.report.card import model_card
from prunus.report.facts import FACTS_FILE, read_facts
from prunus.report.html import render_html
from prunus.runtime.families import read_settings, shape_of
from prunus.sparsity.masker import Masker
from prunus.tasks import TaskSpec, load_task
from prunus.training.jsonl_logger import read_log

HERE = Path(__file__).parent
SECONDS, BYTES = 5.0, 512 << 20
WORDS = [
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-1",
        b"0",
        b"1e999",
        b"99999999999999999999",
        b'""',
        b"[]",
        b"{}",
        b"[[[[",
    ),
    *(
        b'{"a":',
        b"\x00",
        b"\xff\xfe",
        b"\xf0\x9f\x8d\x91",
        b"&a [*a]",
        b"!!python/object",
        b"2:4",
        b"../../x",
        b"F64",
        b"BOOL",
    ),
]
Reader = tuple[Callable[[Path], Path], Callable[[Path], object]]


def _recipe(place: Path) -> Path:
    path = place / "recipe.yaml"
    path.write_bytes((SHIPPED / "cap-structured.yaml").read_bytes())
    return path


def _facts(place: Path) -> Path:
    loss = [{"step": i, "loss": 1 / i, "learning_rate": 1e-4} for i in range(1, 9)]
    points = [{"step": 8, "metrics": {"accuracy": 0.5}, "sparsity": 0.5}]
    tensors = [{"name": "a.weight", "shape": [8, 8], "zeros": 32, "weights": 64, "sparsity": 0.5, "pattern": "4x1"}]
    facts = {"prunus": "0.1", "status": "finished", "tensors": tensors, "recipe": {"train": {"epochs": 3}}}
    facts |= {
        "dense": {"metrics": {"accuracy": 0.6}, "bytes": 9},
        "sparse": {"metrics": {"accuracy": 0.5}, "sparsity": 0.5},
    }
    facts |= {"history": {"loss": loss, "sparsity": [], "metrics": points}, "task": {"name": "x", "metric": "accuracy"}}
    (place / FACTS_FILE).write_text(json.dumps(facts))
    return place / FACTS_FILE


def _read_facts(path: Path) -> None:
    facts = read_facts(path.parent)
    render_html(facts)
    model_card(facts)


def _masks(place: Path) -> Path:
    write_masks(place / "masks.safetensors", {"a": torch.rand(9, 7) > 0.5, "b": torch.rand(4, 4) > 0.5})
    return place / "masks.safetensors"


def _tensors(place: Path) -> Path:
    save_file({"a": torch.rand(5, 3), "b": torch.arange(4)}, place / "t.safetensors", {"format": "pt"})
    return place / "t.safetensors"


def _states(place: Path) -> Path:
    write_states(place / "prc.safetensors", torch.rand(6, 4).half(), "data")
    return place / "prc.safetensors"


def _archive(place: Path) -> Path:
    torch.manual_seed(0)
    weight = torch.randn(8, 8)
    weight[:4, ::2] = 0
    write_archive(place / ARCHIVE, {"a.weight": weight, "a.bias": torch.randn(8)}, {})
    return place / ARCHIVE


def _packed(place: Path) -> Path:
    sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "runtime")]
    from harness import draw_ids, small_dense

    from prunus.runtime.convert import calibrate, convert
    from prunus.runtime.store import FILE, write_model

    small = {"vocab_size": 12, "max_position_embeddings": 24, "num_hidden_layers": 1, "intermediate_size": 20}
    dense = small_dense("bert", "4x1", **small)
    write_model(convert(dense, calibrate(dense, *draw_ids(dense.shape, (20, 5)))), place)
    return place / FILE


def _read_packed(path: Path) -> None:
    from prunus.runtime.store import read_model

    read_model(path.parent)


def _layout(place: Path) -> Path:
    layout = {f"bert.encoder.layer.{i}.output.dense": [0, 1, 5] for i in range(3)}
    (place / "layout.json").write_text(json.dumps({"quant_method": "prunus", "layout": layout, "hidden": [0, 3]}))
    return place / "layout.json"


def _read_layout(path: Path) -> None:
    held = json.loads(path.read_bytes())
    if isinstance(held, dict):
        PrunusLayout(**{str(key): value for key, value in held.items() if key != "self"})


def _config(place: Path) -> Path:
    config = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    config |= {"num_hidden_layers": 2, "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu"}
    config["quantization_config"] = {"quant_method": "prunus", "layout": {"bert.encoder.layer.0.output.dense": [1, 2]}}
    (place / "config.json").write_text(json.dumps(config))
    return place / "config.json"


def _log(place: Path) -> Path:
    (place / "log.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(9)))
    return place / "log.jsonl"


def _table(place: Path) -> Path:
    (place / "t.tsv").write_text(
        "text\tlabel\n" + "".join(f"a film {i}\t{'yes' if i % 2 else 'no'}\n" for i in range(9))
    )
    return place / "t.tsv"


def _questions(place: Path) -> Path:
    answer = {"answers": [{"text": "red", "answer_start": 8}], "question": "what?", "id": "1"}
    data = {"data": [{"title": "t", "paragraphs": [{"context": "it was, red", "qas": [answer]}]}]}
    (place / "q.json").write_text(json.dumps(data))
    return place / "q.json"


def _masker(place: Path) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    masker = Masker(model, Pruning(0.5, "4x1", "magnitude"), 100)
    masker.step(model)
    save_file({name: value.clone() for name, value in masker.state_dict().items()}, place / "m.safetensors")
    return place / "m.safetensors"


def _read_masker(path: Path) -> None:
    Masker(torch.nn.Sequential(torch.nn.Linear(8, 8)), Pruning(0.5, "4x1", "magnitude"), 100, state=read_tensors(path))


def _nncf(place: Path) -> Path:
    compression = [{"algorithm": "magnitude_sparsity", "params": {"schedule": "polynomial", "sparsity_target": 0.8}}]
    (place / "n.json").write_text(json.dumps({"input_info": {"sample_size": [1, 8]}, "compression": compression}))
    return place / "n.json"


READERS: dict[str, Reader] = {
    "recipe": (_recipe, lambda path: load_recipe(str(path))),
    "facts and report": (_facts, _read_facts),
    "masks": (_masks, read_masks),
    "tensors": (_tensors, read_tensors),
    "banks": (_states, lambda path: read_states(path, 6, "data").sum()),
    "mapped banks": (_states, lambda path: read_states(path, 6, "data", mapped=True).sum()),
    "archive": (_archive, read_archive),
    "packed model": (_packed, _read_packed),
    "layout": (_layout, _read_layout),
    "config of the runtime": (_config, lambda path: shape_of(read_settings(path))),
    "log": (_log, read_log),
    "table of texts": (
        _table,
        lambda path: load_task(TaskSpec(name="classification", train=str(path), validation=str(path))),
    ),
    "questions": (_questions, lambda path: load_task(TaskSpec(name="qa", train=str(path), validation=str(path)))),
    "state of a masker": (_masker, _read_masker),
    "nncf's configuration": (_nncf, convert_file),
}


def changed(data: bytes, draw: random.Random) -> bytes:
    """One to four changes."""
    held = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        kind, at = draw.randrange(9), draw.randrange(len(held) + 1)
        size = min(len(held) - at, draw.choice([1, 1, 2, 4, 8, 64]))
        if kind == 0 and size:
            held[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del held[at : at + size]
        elif kind == 2:
            held[at:at] = held[at : at + size]
        elif kind == 3:
            held[at : at + size] = draw.choice(WORDS)
        elif kind == 4:
            del held[at:]
        elif kind == 5:
            other = draw.randrange(len(held) + 1)
            held[at : at + size] = held[other : other + size]
        elif kind == 6 and len(held) >= 8:
            held[:8] = struct.pack(
                "<Q", draw.choice([0, 1, 2**31, 2**63, len(held), draw.randrange(2 * len(held) + 1)])
            )
        elif kind == 7:
            digits = [i for i, c in enumerate(held) if 48 <= c <= 57]
            if digits:
                place = draw.choice(digits)
                held[place : place + 1] = draw.choice(
                    [b"0", b"-1", b"9" * 30, b"1.5", b"1e400", b"2147483648", b"true"]
                )
        else:
            held[at : at + size] = bytes(draw.randrange(256) for _ in range(size))
    return bytes(held)


def tried(
    name: str, read: Callable[[Path], object], path: Path, refused: list[int] | None = None
) -> dict[str, Any] | None:
    """What is wrong with how the reader took the file; None where nothing is. ``refused`` counts errors of prunus."""
    began = time.perf_counter()
    try:
        read(path)
    except (PrunusError, json.JSONDecodeError, UnicodeDecodeError) as error:
        if not isinstance(error, PrunusError) and name != "layout":  # whose JSON transformers reads
            return {"error": repr(error)[:200], "where": traceback.format_exc().splitlines()[-3:]}
        if refused is not None:
            refused[0] += 1
    except Exception as error:
        return {"error": repr(error)[:200], "where": traceback.format_exc().splitlines()[-3:]}
    seconds = time.perf_counter() - began
    return {"error": f"{seconds:.1f} s"} if seconds > SECONDS else None


def mutated(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """So many changed files at one reader."""
    make, read = READERS[name]
    draw, findings, refused = random.Random(f"{name} {seed}"), [], [0]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        random.seed(seed)
        path = make(Path(place))
        read(path)  # a whole file is taken
        whole = path.read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for number in range(inputs):
            path.write_bytes(changed(whole, draw))
            found = tried(name, read, path, refused)
            if found is not None:
                findings.append({"input": number, **found})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if grown > BYTES:
        findings.append({"error": f"{grown >> 20} MiB more"})
    return {
        "inputs": inputs,
        "findings": len(findings),
        "examples": findings[:5],
        "seconds": round(time.perf_counter() - began, 1),
        "peak_growth_bytes": grown,
        "refused": refused[0],
    }


def own_functions() -> list[Any]:
    """Functions and methods of prunus that are imported: what coverage is counted in."""
    modules = [module for name, module in sys.modules.items() if name.startswith("prunus")]
    held = [value for module in modules for value in vars(module).values()]
    held += [value for each in held if isinstance(each, type) for value in vars(each).values()]
    held = [getattr(value, "__func__", value) for value in held]
    found = [value for value in held if isinstance(value, FunctionType) and value.__module__.startswith("prunus")]
    return list({id(value): value for value in found}.values())


def guided(name: str, inputs: int) -> None:
    """This process becomes atheris' for one reader."""
    import atheris

    make, read = READERS[name]
    place = Path(tempfile.mkdtemp())
    path = make(place)
    (place / "corpus").mkdir()
    (place / "corpus" / "whole").write_bytes(path.read_bytes())

    def one(data: bytes) -> None:
        path.write_bytes(data)
        found = tried(name, read, path)
        if found is not None:
            raise RuntimeError(json.dumps(found))

    for function in own_functions():
        atheris.instrument_func(function)
    options = [
        f"-runs={inputs}",
        f"-timeout={int(SECONDS)}",
        f"-rss_limit_mb={4096}",
        "-verbosity=0",
        f"-artifact_prefix={place}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(place / "corpus")], one)
    atheris.Fuzz()


def main() -> None:
    """Runs the readers one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.engine == "atheris":
            guided(options.one, options.inputs)
        else:
            np.seterr(all="ignore")
            print(json.dumps(mutated(options.one, options.inputs, options.seed)))
        return
    path = HERE / "results" / "fuzz.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = held.setdefault(options.engine, {})
    for name in options.readers.split(","):
        command = [sys.executable, __file__, "--one", name, "--engine", options.engine]
        command += ["--inputs", str(options.inputs), "--seed", str(options.seed)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if options.engine == "mutate" and ran.returncode == 0:
            found[name] = json.loads(ran.stdout.splitlines()[-1])
        else:
            tail = ran.stderr.splitlines()[-12:]
            crashed = ran.returncode != 0
            found[name] = {"inputs": options.inputs, "findings": int(crashed), "examples": tail if crashed else []}
        print(name, {key: value for key, value in found[name].items() if key != "examples"}, flush=True)
        for example in found[name]["examples"]:
            print("   ", example)
    held |= {
        **header(f"python benchmarks/fuzz.py --inputs {options.inputs}"),
        "bounds": {"seconds": SECONDS, "bytes": BYTES},
    }
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
