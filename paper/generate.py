"""Everything of the article that is not text: macros, tables and figures, from results alone.

Command, which the Makefile here runs::

    python paper/generate.py

The same results give the same bytes. A result that is not there is left out, and the article says that it is not run;
results that contradict a sentence of the text stop it with the sentence.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the package of this checkout, installed or not

try:
    from parts import fisher, models, studies
    from parts.latex import Output, code, escape
    from parts.sources import Part, commits, machines, provenances

    from forgetting.results import write_atomically
except ImportError as error:
    sys.exit(f"error: {sys.executable} cannot import {error.name}: run `make install` in the repository first")

PARTS = (
    Part(
        "evaluation",
        ("benchmarks/evaluation/evaluation.json",),
        "python experiments/benchmarks/evaluation.py --limit 16",
        studies.evaluation,
        ("benchmarks/evaluation/evaluation.json",),
    ),
    Part(
        "fisher-cost",
        ("benchmarks/fisher/fisher_cpu.json",),
        "python experiments/benchmarks/fisher.py",
        fisher.cost,
        ("benchmarks/fisher/fisher_cpu.json",),
    ),
    Part(
        "fisher-gpu",
        ("benchmarks/fisher/fisher_gpu.json",),
        "python experiments/benchmarks/fisher_gpu.py",
        fisher.gpu,
        (),
    ),
    Part(
        "ewc-step",
        ("benchmarks/ewc_step/ewc_step.json",),
        "python experiments/benchmarks/ewc_step.py",
        fisher.ewc_step,
        ("benchmarks/ewc_step/ewc_step.json",),
    ),
    Part(
        "variants",
        ("fisher_variants/runs.csv", "fisher_variants/summary.csv", "fisher_variants/fisher_variants.pdf"),
        "python experiments/fisher_variants.py --workers 2",
        fisher.variants,
        ("fisher_variants/provenance.json",),
    ),
    Part(
        "classic",
        ("classic_benchmarks/digits/summary.csv", "classic_benchmarks/digits/classic_benchmarks.pdf"),
        "python experiments/classic_benchmarks.py --scale laptop",
        fisher.classic,
        ("classic_benchmarks/digits/provenance.json",),
    ),
    Part(
        "world",
        ("benchmarks/micro_pretrain/avx2.json",),
        "python experiments/benchmarks/micro_pretrain.py --made model-avx2 --name avx2",
        models.world,
        ("benchmarks/micro_pretrain/avx2.json",),
    ),
    Part(
        "demo",
        ("demo/summary.csv", "demo/study.yaml"),
        "forgetting demo",
        models.demo,
        ("demo/runs/*-s*-????????????.json",),
    ),
    Part(
        "leaderboard",
        ("leaderboard/leaderboard.csv", "leaderboard/figures/pareto.pdf"),
        "python experiments/leaderboard.py --workers 2",
        models.leaderboard,
        ("leaderboard/*/*/runs/*-s*-????????????.json",),
    ),
    Part(
        "real",
        ("real_model/reported/summary.csv", "real_model/reported/figures/drift.pdf", "real_model/chosen.json"),
        "python experiments/real_model.py --data FOLDER --workers 2",
        models.real_model,
        ("real_model/reported/runs/*-s*-????????????.json",),
    ),
    Part(
        "vision",
        ("vision_forgetting/study.yaml", "vision_forgetting/vision_forgetting.pdf"),
        "python experiments/vision_forgetting.py --data FOLDER",
        models.vision,
        ("vision_forgetting/runs/*-s*-????????????.json",),
    ),
)


def generate(results: Path) -> Output:
    """All of it, in memory.

    Args:
        results: The folder of all results.

    Raises:
        ValueError: if results contradict a sentence of the article, or do not give a number that it has.
    """
    out = Output()
    studies.package(out)
    studies.studies(results, out)
    rows, have = [], []
    made = provenances(results, [studies.RUNS.format(study="*", scale=scale) for scale in studies.SCALES])
    for part in PARTS:
        if part.present(results):
            part.build(results, out)
            have.append(part.key)
            mine = provenances(results, part.provenance)
            made += mine
            rows.append((part.key, part.command, commits(mine) or ["not recorded"]))
        else:
            text = f"Not run: there are no results of it. The command is {code(part.command)}."
            out.write(f"notrun-{part.key}.tex", text + "\n")
    studies.provenance(rows, out)
    out.macro("Hardware", escape("; ".join(machines(made)) or "none"), "results")
    lines = [f"\\newcommand{{\\{name}}}{{{text}}}% {source}" for name, (text, source) in sorted(out.macros.items())]
    lines += [rf"\expandafter\def\csname have@{key}\endcsname{{}}" for key in have]
    out.write("macros.tex", "\n".join(["% Made by generate.py from the files named; do not edit.", *lines, ""]))
    return out


def write(out: Output, folder: Path) -> None:
    """Replace a folder of generated files, and no other.

    Raises:
        ValueError: if the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "macros.tex").exists():
        raise ValueError(f"output {folder}: holds files that this script did not make; give another folder")
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in sorted(out.files.items()):
        write_atomically(folder / path, content)


def main() -> None:
    """Generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    parser.add_argument("--output", type=Path, default=HERE / "generated")
    options = parser.parse_args()
    try:
        write(generate(options.results), options.output)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
