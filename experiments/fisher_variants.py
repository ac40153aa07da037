"""Which Fisher? EWC with four ways of computing it, over λ: van de Ven 2025 on scikit-learn's digits.

Paper: van de Ven, On the Computation of the Fisher Information in Continual Learning, arXiv 2502.11756. Command::

    python experiments/fisher_variants.py --workers 2

Two sequences of the 1,797 images of 8×8 pixels that come with scikit-learn, an MLP of two hidden layers of 100 units,
Adam at 0.001, ten seeds (initialisation, split, order of tasks or permutations, batches):

- ``split``: five tasks of two digits each, a pair of outputs per task (task-incremental, as Split MNIST there);
- ``permuted``: five tasks, each another permutation of the pixels, all ten outputs.

The loss is the mean over a batch's examples; λ is van de Ven's, and so is the penalty's online form (after Huszár):
½ λ Σ F (θ−θ*)² around the latest weights, F the sum over the earlier tasks, its gradient in closed form. Accuracy is
the mean over all tasks after the last, on a quarter of the images that was held out. As in the paper, the curves over λ
are what is compared; the best λ of each variant is read off the curve of the same test images, for all variants alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetting.analysis.stats import seed_interval
from forgetting.avalanche import ArrayTask, digits_sequence
from forgetting.fisher import DiagonalFisher, DiagonalPenalty, diagonal_fisher
from forgetting.provenance import provenance
from forgetting.results import write_atomically

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "fisher_variants"
VARIANTS = ("exact", "sample", "empirical", "batched")
STRENGTHS = (0.0, *(10.0**exponent for exponent in range(-1, 8)))
SEEDS = 10
BATCH = 32
STEPS = {"split": 150, "permuted": 200}

PUBLISHED = {
    "naive": ("85.41 ± 0.88", "69.53 ± 1.34"),
    "exact": ("99.12 ± 0.16", "84.91 ± 0.65"),
    "sample": ("99.12 ± 0.12", "83.77 ± 0.72"),
    "empirical": ("99.12 ± 0.12", "83.28 ± 0.77"),
    "batched": ("99.11 ± 0.16", "83.38 ± 0.66"),
}
"""The paper's two tables: Split MNIST (an MLP of 400 units) and Split CIFAR-10 (a reduced ResNet-18), both in five
tasks with a head each; mean ± standard error over 30 seeds, at each variant's best λ. Its batches for ``batched`` hold
128 examples, ours 32."""


class Head(nn.Module):
    """The model as one task sees it."""

    def __init__(self, body: nn.Module, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.outputs = body, list(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the task's outputs."""
        return self.body(x)[:, self.outputs]


def fisher_of(head: Head, task: ArrayTask, variant: str, seed: int) -> DiagonalFisher:
    """F of the task's training images, by the names of the body's parameters."""
    x, y = task.train.tensors()
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    generator = torch.Generator().manual_seed(seed)
    found = diagonal_fisher(head, batches, estimator=variant, generator=generator)  # type: ignore[arg-type]
    values = {name.removeprefix("body."): value for name, value in found.values.items()}
    return DiagonalFisher(values, found.estimator, found.examples, found.tokens)


def accuracy(sequence: str, variant: str, strength: float, seed: int) -> float:
    """Mean accuracy over all tasks after the last."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(body.parameters(), lr=1e-3)
    named, penalty = dict(body.named_parameters()), DiagonalPenalty(online=True)
    tasks = digits_sequence(sequence, seed=seed).tasks
    generator = torch.Generator().manual_seed(seed)
    for task in tasks:
        head = Head(body, task.outputs)
        x, y = task.train.tensors()
        for _ in range(STEPS[sequence]):
            chosen = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            functional.cross_entropy(head(x[chosen]), y[chosen]).backward()
            penalty.add_gradient(named, strength)
            optimizer.step()
        if strength > 0:
            penalty.consolidate(fisher_of(head, task, variant, seed), named)
    with torch.no_grad():
        tests = [(Head(body, task.outputs), *task.test.tensors()) for task in tasks]
        right = [(head(x).argmax(1) == y).float().mean().item() for head, x, y in tests]
    return float(np.mean(right))


def one(job: tuple[str, str, float, int]) -> dict[str, Any]:
    """A row of the results."""
    torch.set_num_threads(1)
    named: dict[str, Any] = dict(zip(("sequence", "variant", "strength", "seed"), job, strict=True))
    return named | {"accuracy": accuracy(*job)}


def jobs() -> Iterator[tuple[str, str, float, int]]:
    """Everything; λ = 0 is the same for all variants, and run once."""
    for sequence in STEPS:
        for seed in range(SEEDS):
            yield sequence, "naive", 0.0, seed
            for variant in VARIANTS:
                for strength in STRENGTHS[1:]:
                    yield sequence, variant, strength, seed


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over seeds, a row per sequence, variant and λ."""
    rows = []
    for (sequence, variant, strength), part in runs.groupby(["sequence", "variant", "strength"], sort=False):
        interval = seed_interval(part["accuracy"].tolist())
        rows.append(
            {
                "sequence": sequence,
                "variant": variant,
                "strength": strength,
                "accuracy": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
            }
        )
    return pd.DataFrame(rows)


def best(summary: pd.DataFrame, sequence: str, variant: str) -> dict[str, Any]:
    """The row of a variant's best λ."""
    part = summary[(summary["sequence"] == sequence) & (summary["variant"] == variant)]
    return {str(key): value for key, value in part.sort_values("accuracy").iloc[-1].items()}


def table(summary: pd.DataFrame) -> str:
    """Markdown: naive, and each variant at its best λ; published figures are of other data."""
    lines = [
        "| sequence | Fisher | best λ | accuracy (95 % interval over seeds) "
        "| published: Split MNIST (± s.e.) | published: Split CIFAR-10 (± s.e.) |",
        "|---|---|---|---|---|---|",
    ]
    for sequence in STEPS:
        for variant in ("naive", *VARIANTS):
            row = best(summary, sequence, variant)
            strength = "–" if variant == "naive" else f"{row['strength']:g}"
            cell = f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
            published = PUBLISHED[variant] if sequence == "split" else ("–", "–")
            lines.append(f"| {sequence} | {variant} | {strength} | {cell} | {' | '.join(published)} |")
    return "\n".join(lines) + "\n"


def findings(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The paper's two findings, on our runs: what holds is computed here."""
    lines = []
    for sequence in STEPS:
        mine = runs[runs["sequence"] == sequence].set_index("seed")
        naive = mine.loc[mine["variant"] == "naive", "accuracy"]
        chosen = {variant: best(summary, sequence, variant)["strength"] for variant in VARIANTS}
        gains = {}
        for variant, strength in chosen.items():
            here = mine.loc[(mine["variant"] == variant) & (mine["strength"] == strength), "accuracy"]
            gains[variant] = seed_interval((here - naive).tolist())
        told = ", ".join(
            f"{v} {100 * g.mean:+.1f} ({100 * g.low:+.1f} to {100 * g.high:+.1f})" for v, g in gains.items()
        )
        lines += [
            f"- {sequence}: every variant protects: {'holds' if all(g.low > 0 for g in gains.values()) else 'fails'}; "
            f"points above naive, paired by seed: {told}.",
            f"- {sequence}: `batched` needs a λ orders of magnitude larger: "
            f"{'holds' if chosen['batched'] >= 100 * chosen['exact'] else 'fails'}; "
            f"its best is {chosen['batched'] / chosen['exact']:g} times that of `exact`.",
        ]
    return "\n".join(lines) + "\n"


def draw(summary: pd.DataFrame) -> None:
    """Accuracy over λ, a panel per sequence."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    with styled():
        canvas = new_canvas(7.2, 3.4)
        colors = dict(zip(VARIANTS, seaborn.color_palette("colorblind", len(VARIANTS)), strict=True))
        axes = panels(canvas, 2, 2)
        for axis, sequence in zip(axes, STEPS, strict=True):
            here = summary[summary["sequence"] == sequence]
            for variant in VARIANTS:
                part = here[here["variant"] == variant].sort_values("strength")
                axis.plot(part["strength"], 100 * part["accuracy"], color=colors[variant], marker="o", markersize=3)
                axis.fill_between(
                    part["strength"], 100 * part["low"], 100 * part["high"], color=colors[variant], alpha=0.2, lw=0
                )
            naive = float(here[here["variant"] == "naive"]["accuracy"].iloc[0])
            axis.axhline(100 * naive, color="black", linestyle="--", linewidth=1)
            axis.set_xscale("log")
            axis.set_xlabel("λ (van de Ven's)")
            axis.set_ylabel("accuracy after the last task (%)")
            axis.set_title(f"{sequence} digits")
        canvas.suptitle(f"EWC by Fisher estimator; bands: 95 % t intervals over {SEEDS} seeds")
        handles = [axes[0].lines[i] for i in range(len(VARIANTS) + 1)]
        legend_below(canvas, handles, [*VARIANTS, "naive"])
        save(canvas, OUTPUT, "fisher_variants", "EWC over λ by Fisher estimator", "bands: 95 % intervals over seeds")


def main() -> None:
    """Run what is missing, summarise, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from rich.progress import track

    OUTPUT.mkdir(parents=True, exist_ok=True)
    path, settings = OUTPUT / "runs.csv", OUTPUT / "settings.json"
    constants = {"variants": VARIANTS, "strengths": STRENGTHS, "seeds": SEEDS, "batch": BATCH, "steps": STEPS}
    wanted = json.dumps(constants, indent=1, sort_keys=True)
    if settings.exists() and settings.read_text() != wanted:
        sys.exit(f"error: {OUTPUT} holds runs with other settings ({settings}); move it away first")
    write_atomically(settings, wanted.encode())
    done = pd.read_csv(path).to_dict("records") if path.exists() else []
    known = {(row["sequence"], row["variant"], row["strength"], row["seed"]) for row in done}
    todo = [job for job in jobs() if job not in known]
    with ProcessPoolExecutor(options.workers) as pool:
        for count, row in enumerate(track(pool.map(one, todo, chunksize=4), "runs", total=len(todo)), start=1):
            done.append({str(key): value for key, value in row.items()})
            if count % 40 == 0 or count == len(todo):  # an interrupted study goes on from here
                write_atomically(path, pd.DataFrame(done).to_csv(index=False).encode())
    runs = pd.DataFrame(done)
    summary = summarise(runs)
    text = table(summary) + "\n" + findings(runs, summary)
    write_atomically(OUTPUT / "summary.csv", summary.to_csv(index=False).encode())
    write_atomically(OUTPUT / "table.md", text.encode())
    if todo:  # drawing again is not running again
        write_atomically(OUTPUT / "provenance.json", json.dumps(provenance(), indent=1, sort_keys=True).encode())
    draw(summary)
    print(text)


if __name__ == "__main__":
    main()
