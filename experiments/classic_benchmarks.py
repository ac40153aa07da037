"""The classic methods on split and permuted images, in Avalanche's loop, in the three scenarios.

Papers: van de Ven & Tolias 2019, Three scenarios for continual learning, arXiv 1904.07734 (scenarios, protocol and
published figures); continual-learning-baselines of ContinualAI (their SI and RWalk). Commands::

    python experiments/classic_benchmarks.py --scale laptop
    python experiments/classic_benchmarks.py --scale laptop --mnist FOLDER

The first runs scikit-learn's digits, the second MNIST from local files (``forgetting.avalanche.mnist_sequence``),
with the paper's 400 × 400 network. Five tasks; a head per task (task), one head of the task's labels (domain), or one
head of all classes (class). One Adam at 0.001 for the whole sequence. Each method with a strength is tuned on other
seeds than the reported ones (other splits, orders, initialisations), all over as many values; what is reported is the
mean accuracy over all tasks after the last. Replay keeps 100 images. ``ewc`` and ``ewc_online`` are this package's
(exact Fisher), the others Avalanche's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from forgetting.analysis.stats import seed_interval
from forgetting.avalanche import (
    ArraySequence,
    EWCPlugin,
    as_benchmark,
    avalanche_plugin,
    digits_sequence,
    mnist_sequence,
)
from forgetting.metrics import average_accuracy, backward_transfer
from forgetting.provenance import provenance
from forgetting.results import write_atomically

RESULTS = Path(__file__).resolve().parents[1] / "results" / "classic_benchmarks"
SCENARIOS = ("task", "domain", "class")
GRIDS: dict[str, tuple[float, ...]] = {
    "naive": (),
    "ewc": (1e1, 1e2, 1e3, 1e4),
    "ewc_online": (1e1, 1e2, 1e3, 1e4),
    "ewc_avalanche": (1e2, 1e3, 1e4, 1e5),
    "si": (1e1, 1e2, 1e3, 1e4),
    "rwalk": (1e0, 1e1, 1e2, 1e3),
    "lwf": (0.3, 1.0, 3.0, 10.0),
    "replay": (),
    "joint": (),
}
"""The strengths that each method is tuned over; λ of ``ewc`` and ``ewc_online`` is van de Ven's."""
PUBLISHED = {
    ("split", "ewc", "task"): "98.64",
    ("split", "ewc", "domain"): "63.95",
    ("split", "ewc", "class"): "20.01",
    ("split", "si", "task"): "97",
    ("split", "rwalk", "task"): "99",
}
"""On Split MNIST: EWC of van de Ven & Tolias 2019, SI and RWalk of continual-learning-baselines."""
MEMORY = 100


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        settings: Kinds and scenarios.
        seeds: Reported; tuning_seeds: of the tuning, no reported one among them.
        batch: Images per step; epochs: per task, by kind.
        width: Units of each of the two hidden layers.
    """

    settings: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    batch: int
    epochs: dict[str, int]
    width: int


SMOKE = Scale((("split", "task"),), (0,), (100,), 64, {"split": 1, "permuted": 1}, 20)
LAPTOP = Scale(
    (("split", "task"), ("split", "domain"), ("split", "class"), ("permuted", "domain")),
    tuple(range(5)),
    (100, 101),
    32,
    {"split": 10, "permuted": 2},
    100,
)
MNIST_LAPTOP = Scale(LAPTOP.settings, tuple(range(3)), (100,), 128, {"split": 4, "permuted": 1}, 400)


class Network(nn.Module):
    """Two hidden layers of ReLUs, one head."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, outputs)."""
        return self.layers(x)


@cache
def sequence_of(kind: str, seed: int, root: str | None) -> ArraySequence:
    """The tasks of one seed."""
    return mnist_sequence(root, kind, seed=seed) if root else digits_sequence(kind, seed=seed)


def multi_headed(inputs: int, width: int, tasks: int, labels: int) -> nn.Module:
    """The network with a head of ``labels`` outputs for each task, as Avalanche knows them."""
    from avalanche.models import MultiTaskModule

    class Heads(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(inputs, width, tasks * labels)

        def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
            """Logits of the task's outputs, (B, labels)."""
            return self.network(x)[:, task_label * labels : (task_label + 1) * labels]

    return Heads()


def plugins_of(method: str, strength: float, seed: int, batch: int) -> list[Any]:
    """What makes the method of naive training."""
    if method in ("naive", "joint"):
        return []
    if method in ("ewc", "ewc_online"):
        mode: Any = "online" if method == "ewc_online" else "separate"
        return [EWCPlugin(strength, convention="van_de_ven", mode=mode, update="gradient", seed=seed)]
    if method == "replay":
        return [avalanche_plugin("replay", memory=MEMORY, sample=batch)]
    name: Any = method.removesuffix("_avalanche") if method == "ewc_avalanche" else method
    return [avalanche_plugin("ewc" if method == "ewc_avalanche" else name, strength=strength)]


def task_matrix(
    kind: str, scenario: str, method: str, strength: float, seed: int, scale: Scale, root: str | None
) -> list[list[float]]:
    """R, (T+1, T); of joint training, all of whose rows after the first are the last."""
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import JointTraining
    from avalanche.training.templates import SupervisedTemplate

    sequence = sequence_of(kind, seed, root)
    benchmark = as_benchmark(sequence, scenario=scenario)
    classes = sequence.classes(scenario)
    torch.manual_seed(seed)
    inputs, labels = sequence.tasks[0].train.tensors()[0].shape[1], len(classes[0])
    model: Any = (
        multi_headed(inputs, scale.width, len(sequence), labels)
        if scenario == "task"
        else Network(inputs, scale.width, max(max(numbers) for numbers in classes) + 1)
    )
    tests = [task.test.tensors() for task in sequence.tasks]
    wanted = [torch.tensor(numbers)[y] for numbers, (_, y) in zip(classes, tests, strict=True)]

    @torch.no_grad()
    def row() -> list[float]:
        model.eval()
        found = []
        for position, (x, _) in enumerate(tests):
            logits = model.forward_single_task(x, position) if scenario == "task" else model(x)
            found.append(float((logits.argmax(1) == wanted[position]).float().mean()))
        return found

    strategy: Any = (JointTraining if method == "joint" else SupervisedTemplate)(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=scale.batch,
        train_epochs=scale.epochs[kind],
        plugins=plugins_of(method, strength, seed, scale.batch),
        evaluator=EvaluationPlugin(),
    )
    R = [row()]
    if method == "joint":
        strategy.train(benchmark.train_stream)
        return R + [row()] * len(sequence)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        R.append(row())
    return R


def methods_of(kind: str, scenario: str) -> list[str]:
    """All; ``rwalk``, which takes twice as long, where there is a published figure to compare with."""
    return [m for m in GRIDS if m != "rwalk" or (kind, m, scenario) in PUBLISHED]


class Runs:
    """The runs of a folder, written as they are made; what is there is not run again.

    Args:
        folder: Where ``runs.csv`` is.
        scale: What is run.
        root: MNIST's files, or ``None`` for digits.

    Raises:
        SystemExit: if the folder holds runs of other settings.
    """

    def __init__(self, folder: Path, scale: Scale, root: str | None) -> None:
        self.folder, self.scale, self.root, self.path = folder, scale, root, folder / "runs.csv"
        self.made = 0
        wanted = json.dumps({"grids": GRIDS, "memory": MEMORY, **asdict(scale)}, indent=1, sort_keys=True)
        settings = folder / "settings.json"
        if settings.exists() and settings.read_text() != wanted:
            sys.exit(f"error: {folder} holds runs with other settings ({settings}); move it away first")
        write_atomically(settings, wanted.encode())
        self.rows: list[dict[Any, Any]] = pd.read_csv(self.path).to_dict("records") if self.path.exists() else []

    def score(self, kind: str, scenario: str, method: str, strength: float, seed: int) -> float:
        """Mean accuracy after the last task."""
        key = {"kind": kind, "scenario": scenario, "method": method, "strength": strength, "seed": seed}
        for row in self.rows:
            if all(row[name] == value for name, value in key.items()):
                return float(row["accuracy"])
        R = task_matrix(kind, scenario, method, strength, seed, self.scale, self.root)
        # Joint training has no tasks after one another.
        bwt = float("nan") if method == "joint" else backward_transfer(R)
        self.rows.append({**key, "accuracy": average_accuracy(R), "bwt": bwt})
        self.made += 1
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False).encode())
        return float(self.rows[-1]["accuracy"])

    def tuned(self, kind: str, scenario: str, method: str) -> float:
        """The strength of the highest mean over the tuning seeds, the least of equal ones; 0 where there is none."""
        means = {
            strength: sum(self.score(kind, scenario, method, strength, seed) for seed in self.scale.tuning_seeds)
            for strength in GRIDS[method]
        }
        return max(means, key=lambda strength: (means[strength], -strength)) if means else 0.0


def summarise(runs: Runs) -> pd.DataFrame:
    """A row per setting and method, running what is missing."""
    from rich.progress import track

    cells = [(kind, scenario, m) for kind, scenario in runs.scale.settings for m in methods_of(kind, scenario)]
    rows = []
    for kind, scenario, method in track(cells, "methods", disable=not sys.stderr.isatty()):
        strength = runs.tuned(kind, scenario, method)
        scores = [runs.score(kind, scenario, method, strength, seed) for seed in runs.scale.seeds]
        interval = seed_interval(scores)
        rows.append(
            {
                "kind": kind,
                "scenario": scenario,
                "method": method,
                "strength": strength,
                "accuracy": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "published": PUBLISHED.get((kind, method, scenario), ""),
            }
        )
    return pd.DataFrame(rows)


def table(summary: pd.DataFrame, data: str) -> str:
    """Markdown."""
    lines = [
        f"Mean accuracy (%) over five tasks after the last, on {data}; 95 % t intervals over n seeds; strengths tuned "
        "on other seeds (* at an end of its grid, so that a better one may lie beyond). Published figures are of the "
        "whole Split MNIST: other data, another size of network and more training, so that the order of methods "
        "compares, not the numbers.",
        "",
        f"| benchmark | scenario | method | strength | ours, {data} | n | published, Split MNIST |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary.to_dict("records"):
        grid = GRIDS[row["method"]]
        strength = f"{row['strength']:g}{'*' if row['strength'] in (grid[0], grid[-1]) else ''}" if grid else "–"
        cell = f"{100 * row['accuracy']:.1f}"
        if row["n"] > 1:
            cell += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        lines.append(
            f"| {row['kind']} | {row['scenario']} | `{row['method']}` | {strength} | {cell} | {row['n']} | "
            f"{row['published'] or '–'} |"
        )
    return "\n".join(lines) + "\n"


def draw(summary: pd.DataFrame, folder: Path, data: str) -> None:
    """Accuracy by method, a panel per setting; published figures beside."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    settings = list(dict.fromkeys(zip(summary["kind"], summary["scenario"], strict=True)))
    with styled():
        canvas = new_canvas(7.2, 1.2 + 2.4 * -(-len(settings) // 2))
        ours, theirs = (seaborn.color_palette("colorblind")[k] for k in (0, 1))
        handles: list[Any] = []
        for axis, (kind, scenario) in zip(panels(canvas, len(settings), 2), settings, strict=True):
            part = summary[(summary["kind"] == kind) & (summary["scenario"] == scenario)]
            for position, row in enumerate(part.to_dict("records")):
                mean, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
                axis.plot([max(low, 0), min(high, 100)], [position, position], color=ours, linewidth=1.4)
                handles[:1] = axis.plot(mean, position, "o", color=ours, markersize=4)
                if row["published"]:
                    handles[1:] = axis.plot(float(row["published"]), position, "D", color=theirs, fillstyle="none")
            axis.set_yticks(range(len(part)), list(part["method"]))
            axis.invert_yaxis()
            axis.set_xlim(0, 102)
            axis.set_xlabel("accuracy after the last task (%)")
            axis.set_title(f"{kind}, {scenario}-incremental")
        seeds = int(summary["n"].iloc[0])
        canvas.suptitle(f"Classic methods on {data}; bars: 95 % t intervals over {seeds} seeds")
        legend_below(canvas, handles, [f"here, {data}", "published, Split MNIST (other data)"][: len(handles)])
        save(canvas, folder, "classic_benchmarks", "Classic methods in three scenarios", f"n = {seeds} seeds")


def main() -> None:
    """Run what is missing, summarise, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("smoke", "laptop"), default="laptop")
    parser.add_argument("--mnist", metavar="FOLDER", help="MNIST's files; without it, scikit-learn's digits")
    parser.add_argument("--output", type=Path, help="default: a folder of results/classic_benchmarks")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name = "mnist" if options.mnist else "digits"
    folder = options.output or RESULTS / (name if options.scale == "laptop" else f"{name}_{options.scale}")
    scale = SMOKE if options.scale == "smoke" else MNIST_LAPTOP if options.mnist else LAPTOP
    data = "MNIST" if options.mnist else "scikit-learn's 8×8 digits"
    if options.mnist and sequence_of("split", 0, options.mnist).notes:
        data = "MNIST's 10,000 test images"
    runs = Runs(folder, scale, options.mnist)
    summary = summarise(runs)
    write_atomically(folder / "summary.csv", summary.to_csv(index=False).encode())
    write_atomically(folder / "table.md", table(summary, data).encode())
    if runs.made:  # drawing again is not running again
        write_atomically(folder / "provenance.json", json.dumps(provenance(), indent=1, sort_keys=True).encode())
    draw(summary, folder, data)
    print(table(summary, data))


if __name__ == "__main__":
    main()
