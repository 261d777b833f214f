"""One quantized run on every engine: the metric in torch, OpenVINO, ONNX Runtime and prunus, on the whole dev set.

    python benchmarks/exported.py --run OUT --data DIR --name sst2-int8-unstructured-80-seed1

The run is the output of ``prunus run``. Each export checks itself (``prunus.export.graph``); what it found goes, side by
side, to ``benchmarks/results/exported-NAME.json``.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunus.bench.command import versions
from prunus.environment import processor
from prunus.export import Calibration, export_packed
from prunus.export.archive import export_archive
from prunus.export.graph import export_graph
from prunus.progress import quiet
from prunus.report.facts import read_facts

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    quiet()
    held = read_facts(options.run)
    calibration = Calibration(data={"data": options.data})
    result: dict[str, Any] = {
        "name": options.name,
        "command": f"python benchmarks/exported.py --run OUT --data DIR --name {options.name}",
        "run": held.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "versions": versions(),
        "dense float32": held.get("dense", {}).get("metrics"),
        "torch": held.sparse.metrics,
        "sparsity": held.sparse.sparsity,
    }
    with tempfile.TemporaryDirectory() as place:
        for to in ("openvino", "onnx"):
            facts = export_graph(options.run, Path(place) / to, to, calibration=calibration)
            result[to] = {key: facts[key] for key in ("ranges", "products", "weights", "bytes", "metrics")}
        result["archive"] = {"bytes": export_archive(options.run, Path(place) / "archive")["bytes"]}
        packed = export_packed(options.run, Path(place) / "packed", calibration=calibration)
        result["prunus"] = {key: packed[key] for key in ("ranges", "bytes", "metrics")}
    path = HERE / "results" / f"exported-{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps({name: result[name] for name in ("dense float32", "torch", "openvino", "onnx", "prunus")}, indent=1)
    )


if __name__ == "__main__":
    main()
