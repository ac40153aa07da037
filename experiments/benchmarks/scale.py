"""How does the cost of a study grow with the work, and what is the harness's own share of a run's time?

Command::

    python experiments/benchmarks/scale.py               # measure what scale.csv lacks, write scale.json, draw
    python experiments/benchmarks/scale.py --repeats 3   # the same, each point three times: goes on from one
    python experiments/benchmarks/scale.py --draw        # the figure from scale.json alone

The embedded model, one process, one thread, its processor time, so that what else the machine does counts little.
Four axes, each from the smallest size to the largest with all else equal:

- tasks, 2 to 50: training time against tasks, and evaluation time against the cells of R that it must fill, T (T + 1);
- seeds: time of a study against its runs;
- capabilities, all of the same cost: evaluation time of a run against columns of G;
- data: time and memory of a run of equal steps against training examples.

To each is fitted t = a + b xᵖ (least squares on log t, a ≥ 0): p is how time grows, a what is paid once. Each point is
measured in a process forked from the same warm one, and written down before the next: what is interrupted goes on where
it stopped. Memory is the growth of the resident set's peak (VmHWM, reset before), pages of mapped files included.

The harness's share is measured in one run: the steps of ``ContinualTrainer`` on data in an Arrow file against a bare
PyTorch loop over the same batches, in memory, with the same optimizer, schedule and clipping, a step of each in turn;
the share is of the median ratio of two steps, with a 95% interval (bootstrap). Both must have the same losses, or the
comparison is refused.
"""

from __future__ import annotations

import argparse
import copy
import csv
import ctypes
import gc
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "scale"
COMMAND = "python experiments/benchmarks/scale.py"
AXES: dict[str, tuple[int, ...]] = {
    "data": (300, 1000, 3000, 10000, 30000),  # hundredfold
    "tasks": (2, 5, 10, 20, 50),
    "seeds": (1, 2, 4, 8),
    "capabilities": (1, 4, 16, 64),
}
PROBE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
"""A capability: a copy of the embedded world's probe of facts under another name, so that all cost the same."""
MEASURES = {
    "training": ("tasks", "tasks learned", "training"),
    "evaluation": ("tasks", "cells of R, T (T + 1)", "evaluation"),
    "seeds": ("seeds", "runs of a study", "whole"),
    "capabilities": ("capabilities", "capabilities", "evaluation"),
    "data": ("data", "training examples", "whole"),
}
"""What is fitted, by name: the axis, what x counts, and which time."""
LABELS = {"tasks": "tasks", "seeds": "runs of a study", "capabilities": "capabilities", "data": "training examples"}


def rows(count: int, shift: int = 0) -> str:
    """Lines of a JSONL file: a task whose answers depend on its number."""
    words = ("red", "blue", "green", "white")
    choices = [f" {word}" for word in words]
    return "".join(
        json.dumps({"prompt": f"box {i} colour:", "completion": choices[(i + shift) % 4], "choices": choices}) + "\n"
        for i in range(count)
    )


def study(folder: Path, axis: str, size: int) -> Any:
    """The study of one point of an axis; its data are written into the folder."""
    from forgetting.config import parse_study
    from forgetting.micro.probes import probe_directory

    tasks = size if axis == "tasks" else 2
    train = size if axis == "data" else 32
    for number in range(tasks):
        (folder / f"train{number}.jsonl").write_text(rows(train, number))
        (folder / f"test{number}.jsonl").write_text(rows(8, number))
    files = [
        {
            "name": f"task{number}",
            "train": str(folder / f"train{number}.jsonl"),
            "test": str(folder / f"test{number}.jsonl"),
            "validation_size": 4,
        }
        for number in range(tasks)
    ]
    suite = folder / "suite"
    suite.mkdir()
    data = probe_directory() / "micro_facts.jsonl"
    for number in range(size if axis == "capabilities" else 1):
        (suite / f"facts_{number}.yaml").write_text(PROBE.format(name=f"facts_{number}", data=data))
    return parse_study(
        {
            "name": "scale",
            "sequence": {"name": "scale", "tasks": files},
            "seeds": size if axis == "seeds" else 1,
            "training": {"steps": 4, "batch_size": 8, "max_length": 64},
            "evaluation": {
                "suite": str(suite),
                "limit": 8,
                "drift": False,
            },
            "pretraining": {"documents": 20, "held_out_documents": 4},
        }
    )


class Meter:
    """Processor seconds within training and evaluation."""

    def __init__(self) -> None:
        self.seconds = {"training": 0.0, "evaluation": 0.0}

    def timed(self, kind: str, function: Callable) -> Callable:
        """The function, its time counted."""

        def call(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[kind] += time.process_time() - begun

        return call


@contextmanager
def metered() -> Iterator[Meter]:
    """Count the time of every task's training and of every row's evaluation within."""
    from forgetting import run
    from forgetting.evaluation.evaluator import Evaluator

    meter = Meter()
    with (
        patch.object(run, "train_task", meter.timed("training", run.train_task)),
        patch.object(Evaluator, "evaluate", meter.timed("evaluation", Evaluator.evaluate)),
    ):
        yield meter


def status(key: str) -> int:
    """A value of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def point(axis: str, size: int) -> dict[str, Any]:
    """Run one study; return its times and the growth of memory."""
    from forgetting.results import ResultStore
    from forgetting.run import release, run_sequence

    with tempfile.TemporaryDirectory() as scratch:
        config = study(Path(scratch), axis, size)
        release()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        store = ResultStore.create(Path(scratch) / "scale", config)
        with metered() as meter:
            begun = time.process_time()
            statuses = [run_sequence(run, store).status for run in config.runs()]
            whole = time.process_time() - begun
        assert set(statuses) == {"finished"}, statuses
        return {
            "axis": axis,
            "size": size,
            "whole_seconds": round(whole, 4),
            **{f"{kind}_seconds": round(seconds, 4) for kind, seconds in meter.seconds.items()},
            "memory_bytes": status("VmHWM") - before,
        }


def forked(axis: str, size: int) -> dict[str, Any]:
    """Measure a point in a child of this process: all begin with the same libraries and the same memory."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        point("tasks", 2)  # a child has none of its parent's pages of files: they count when they are first used
        sender.send(point(axis, size))

    child = context.Process(target=measure)
    child.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{axis} {size}: the process that measured it failed") from None
    child.join()
    return found


def sizes(measure: str, points: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The x and the seconds of a measure, medians over repeats."""
    axis, _, kind = MEASURES[measure]
    found = sorted({point["size"] for point in points if point["axis"] == axis})
    seconds = [
        statistics.median(p[f"{kind}_seconds"] for p in points if p["axis"] == axis and p["size"] == size)
        for size in found
    ]
    return [float(size * (size + 1) if measure == "evaluation" else size) for size in found], seconds


def fit(x: list[float], seconds: list[float]) -> dict[str, float]:
    """Fit t = a + b xᵖ on log t; ``constant_share`` is a's part of the time at the largest x."""
    import numpy as np
    from scipy.optimize import least_squares

    size, log_time = np.array(x) / x[-1], np.log(seconds)

    def residuals(values: Any) -> Any:
        constant, scale, power = values
        return np.log(constant + scale * size**power) - log_time

    start = [seconds[0] / 2, seconds[-1] - seconds[0] / 2, 1.0]
    found = least_squares(residuals, start, bounds=([0.0, 1e-9, 0.0], [np.inf, np.inf, 4.0]))
    constant, scale, power = found.x
    return {
        "exponent": round(float(power), 3),
        "constant_seconds": round(float(constant), 4),
        "constant_share": round(float(constant / (constant + scale)), 3),
        "largest_deviation": round(float(np.abs(np.expm1(found.fun)).max()), 3),
    }


def harness_share(steps: int) -> dict[str, Any]:
    """Steps of the package's trainer against those of a bare loop over the same batches, in turn."""
    import numpy as np
    import torch
    from scipy.stats import bootstrap
    from torch.utils.data import Dataset

    from forgetting.config import TrainingConfig
    from forgetting.micro.corpus import pretraining_documents
    from forgetting.mitigations import build_mitigation
    from forgetting.models import load_model
    from forgetting.tasks.encode import BOOKKEEPING, Collator, encode_texts
    from forgetting.tasks.rows import Rows, write_rows
    from forgetting.trainer import ContinualTrainer, training_arguments

    batch_size, length = 32, 96
    base = load_model("micro")
    words = " ".join(pretraining_documents(3000, 1)).split()
    texts = [" ".join(words[i : i + 80]) for i in range(0, 80 * batch_size * 4, 80)]
    features = encode_texts(base.tokenizer, texts, length)
    with tempfile.TemporaryFile() as file:
        write_rows(features, file)
        stored = Rows(file, dict)
    config = TrainingConfig(steps=steps, batch_size=batch_size, max_length=length)

    class Noted(Dataset):
        """The features; which was asked for, in order, is noted."""

        def __init__(self) -> None:
            self.order: list[int] = []

        def __len__(self) -> int:
            return len(stored)

        def __getitem__(self, index: int) -> Any:
            self.order.append(index)
            return stored[index]

    def bare(order: list[int]) -> Iterator[tuple[float, float]]:
        """A step of the bare loop after the other: processor seconds, and the loss."""
        model = copy.deepcopy(base.model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
        warm = max(1, round(config.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: step / warm if step < warm else (steps - step) / max(1, steps - warm)
        )
        collate = Collator.for_tokenizer(base.tokenizer)
        for step in range(steps):
            begun = time.process_time()
            batch = collate([features[i] for i in order[step * batch_size : (step + 1) * batch_size]])
            loss = model(**{key: value for key, value in batch.items() if key not in BOOKKEEPING}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            value = float(loss.detach())
            yield time.process_time() - begun, value

    dataset = Noted()
    beside = bare(dataset.order)
    with_harness: list[float] = []
    alone: list[tuple[float, float]] = []
    mark = 0.0

    def in_turn(step: int, of: int) -> None:
        nonlocal mark
        with_harness.append(time.process_time() - mark)
        alone.append(next(beside))
        mark = time.process_time()

    with tempfile.TemporaryDirectory() as scratch:
        trainer = ContinualTrainer(
            copy.deepcopy(base.model),
            dataset,
            build_mitigation("naive"),
            training_arguments(config, seed=0, output=scratch),
            base.tokenizer,
            on_step=in_turn,
        )
        trainer.train()
    worst = max(abs(one - loss) for one, (_, loss) in zip(trainer.losses, alone, strict=True))
    if worst > 1e-3:
        raise RuntimeError(f"the two loops train differently: their losses are {worst:.3g} apart")
    both = np.array([(one, other) for one, (other, _) in zip(with_harness, alone, strict=True)])[3:]  # (steps - 3, 2)
    found = bootstrap((both[:, 0] / both[:, 1],), np.median, rng=0, method="percentile").confidence_interval
    ratio = float(np.median(both[:, 0] / both[:, 1]))
    return {
        "steps": len(both),
        "batch": [batch_size, length],
        "ratio": round(ratio, 4),
        "share": round(1 - 1 / ratio, 4),
        "share_95": [round(1 - 1 / float(bound), 4) for bound in found],
        "milliseconds_per_step": {
            name: round(1000 * float(value), 2)
            for name, value in zip(("harness", "bare"), np.median(both, axis=0), strict=True)
        },
        "losses_apart_by_at_most": worst,
    }


def plain_ticks(axis: Any, x: list[float], *, log_y: bool = False) -> None:
    """Ticks where something was measured, as plain numbers; those of a logarithmic y at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_xticks(x, [f"{value:.0f}" for value in x])
    axis.minorticks_off()
    if log_y:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def memory(points: list[dict[str, Any]], axis: str) -> tuple[list[float], list[float]]:
    """The sizes of an axis, and the growth of memory in MB, medians over repeats."""
    found = sorted({point["size"] for point in points if point["axis"] == axis})
    megabytes = [
        statistics.median(p["memory_bytes"] for p in points if p["axis"] == axis and p["size"] == size) / 1e6
        for size in found
    ]
    return [float(size) for size in found], megabytes


def draw(content: dict[str, Any], folder: Path) -> None:
    """A panel per measure, seconds against work, both logarithmic, and one per axis of memory."""
    import numpy as np

    from forgetting.report.style import new_canvas, panels, save, styled

    points, largest = content["points"], max(AXES["data"])
    with styled():
        canvas = new_canvas(9.0, 8.1)
        axes = panels(canvas, len(MEASURES) + len(AXES), 3)
        for axis, (name, (_, label, kind)) in zip(axes, MEASURES.items(), strict=False):
            x, seconds = sizes(name, points)
            found = content["fits"][name]
            axis.loglog(x, seconds, "o", color="black", markersize=4)
            grid = np.geomspace(x[0], x[-1], 50)
            scale = found["constant_seconds"] * (1 / found["constant_share"] - 1) if found["constant_share"] else None
            scale = seconds[-1] if scale is None else scale
            curve = found["constant_seconds"] + scale * (grid / x[-1]) ** found["exponent"]
            axis.loglog(grid, curve, color="black", linewidth=1)
            what = {"whole": "whole study", "training": "training", "evaluation": "evaluation"}[kind]
            plain_ticks(axis, x, log_y=True)
            axis.set(xlabel=label, ylabel=f"{what} (processor s)", title=f"exponent {found['exponent']:.2f}")
        for axis, name in zip(axes[len(MEASURES) :], AXES, strict=True):
            x, megabytes = memory(points, name)
            axis.semilogx(x, megabytes, "o-", color="black", markersize=4, linewidth=1)
            plain_ticks(axis, x)
            axis.set(
                xlabel=LABELS[name],
                ylabel="peak memory, growth (MB)",
                title=f"{x[-1] / x[0]:.0f} times the work: {megabytes[-1] / megabytes[0]:.2f} times",
            )
            axis.set_ylim(0, 1.25 * max(megabytes))
        caption = (
            f"Processor time and memory of studies of the embedded model as the work grows, one thread, median of "
            f"{content['repeats']} per point; lines of time: a + b xᵖ; data up to {largest} examples per task."
        )
        save(canvas, folder, "scale", "Cost as work grows", caption)


def written(path: Path) -> list[dict[str, Any]]:
    """The points of a table that an earlier call began."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [
            {key: text if key == "axis" else (float if "seconds" in key else int)(text) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--draw", action="store_true", help="the figure from scale.json alone")
    parser.add_argument("--repeats", type=int, default=1, help="of every point")
    parser.add_argument("--steps", type=int, default=100, help="of the harness's comparison")
    options = parser.parse_args()
    from forgetting.results import write_atomically

    path, table = options.output / "scale.json", options.output / "scale.csv"
    if options.draw:
        draw(json.loads(path.read_text()), options.output)
        return
    import torch

    from forgetting.provenance import provenance

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it does not survive a fork
    torch.set_num_threads(1)
    point("tasks", 2)  # libraries are loaded, caches are warm
    points = written(table)
    for repeat in range(options.repeats):
        for axis, values in AXES.items():
            for size in values:
                if sum(p["axis"] == axis and p["size"] == size for p in points) > repeat:
                    continue
                points.append(forked(axis, size))
                print(json.dumps(points[-1]), flush=True)
                text = io.StringIO()
                writer = csv.DictWriter(text, fieldnames=list(points[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(points)
                write_atomically(table, text.getvalue().encode())
    share = harness_share(options.steps)
    fits = {name: fit(*sizes(name, points)) for name in MEASURES}
    grown = {name: [round(value, 1) for value in memory(points, name)[1]] for name in AXES}
    print(json.dumps({"harness": share, "fits": fits, "memory_megabytes": grown}, indent=1), flush=True)
    content = {
        "command": f"{COMMAND} --repeats {options.repeats}",
        "repeats": options.repeats,
        "harness": share,
        "fits": fits,
        "memory_megabytes": grown,
        "points": points,
        "provenance": provenance(),
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    draw(content, options.output)


if __name__ == "__main__":
    main()
