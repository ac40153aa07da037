r"""Does `forgetting micro pretrain` make the embedded model again, within two points on every probe?

Commands; a GPU needs a few minutes, two CPU cores about 20. The last computes with AVX2 instructions alone, so that
every sum is rounded otherwise than on the machine that made the shipped model::

    python experiments/benchmarks/micro_pretrain.py --device cuda
    python experiments/benchmarks/micro_pretrain.py --device cpu
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        python experiments/benchmarks/micro_pretrain.py --device cpu --name avx2

With ``--made FOLDER`` nothing is trained: a model that ``forgetting micro pretrain --output FOLDER`` made is compared.
The exit code is 1 where a probe differs by more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from forgetting.evaluation.suite import load_suite
from forgetting.micro.pretrain import pretrain
from forgetting.models import load_model
from forgetting.provenance import provenance
from forgetting.results import write_atomically

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "micro_pretrain"
POINTS = 2.0


def probes(name: str) -> dict[str, float]:
    """Accuracy of a model on every probe, in %."""
    loaded = load_model(name)
    scores = load_suite(["micro"]).evaluate(loaded.model, loaded.tokenizer)
    return {task.removeprefix("micro_"): round(100 * score.value, 2) for task, score in scores.items()}


def main() -> None:
    """Make it, compare, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--made", type=Path, help="compare this folder, and train nothing")
    parser.add_argument("--name", help="of the result's file; the device where not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.made or Path(scratch) / "model"
        if options.made is None:
            pretrain(folder, device=options.device)
        again = probes(str(folder))
    shipped = probes("micro")
    difference = {name: round(again[name] - shipped[name], 2) for name in shipped}
    record = {
        "shipped": shipped,
        "again": again,
        "difference": difference,
        "within": max(map(abs, difference.values())) <= POINTS,
        "provenance": provenance(),
    }
    path = OUTPUT / f"{options.name or options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1, sort_keys=True).encode())
    print("\n".join(f"{name}: {shipped[name]} again {again[name]} ({difference[name]:+})" for name in shipped))
    sys.exit(0 if record["within"] else 1)


if __name__ == "__main__":
    main()
