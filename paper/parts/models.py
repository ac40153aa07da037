"""What training showed: embedded world, demo, leaderboard, a real language model, a real image classifier."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from forgetting.analysis.pareto import pareto_front
from forgetting.analysis.stats import Interval, seed_interval
from forgetting.report.cells import number, spread
from forgetting.results import ResultStore
from parts.latex import Output, code, escape, power, require
from parts.sources import ROOT, constant, points, read_json

CARD = "forgetting/micro/model/README.md"
NEAR = 0.05
"""Learning accuracies that differ by at most this are called equal in the demo's text."""


def seeds_note(n: int) -> str:
    """What a ± is, for a caption."""
    if n == 1:
        return "one seed, so there is no interval"
    return rf"mean $\pm$ half of the \Level{{}} t interval over {n} seeds"


def cell(row: Any, column: str, scale: float = 100.0, digits: int = 1) -> str:
    """``mean ± half`` of a row of :func:`points`."""
    mean, high = float(row[column]), float(row[f"{column}_high"])
    return escape(spread(scale * mean, scale * (high - mean), digits))


def told(interval: Interval, digits: int = 2) -> str:
    """``mean ± half`` of an interval."""
    return escape(spread(interval.mean, interval.half_width, digits))


def world(results: Path, out: Output) -> None:
    """The embedded model's card, and its second making with other instructions."""
    source = "results/benchmarks/micro_pretrain/avx2.json"
    made = read_json(results / "benchmarks/micro_pretrain/avx2.json")
    card = (ROOT / CARD).read_text("utf-8")
    for name, pattern in (
        ("WorldParameters", r"A language model of ([\d,]+) parameters"),
        ("WorldSteps", r"\| steps \| ([\d,]+) of"),
        ("WorldBatch", r"\| steps \| [\d,]+ of (\d+) sequences"),
        ("WorldContext", r"sequences of (\d+) tokens"),
        ("WorldTokens", r"\(([\d,]+) tokens\)"),
        ("WorldMinutes", r"\| time \| ([\d.]+) minutes"),
    ):
        match = re.search(pattern, card)
        require(match is not None, f"{CARD} gives {name}")
        assert match is not None
        out.macro(name, match[1], CARD)
    chance = dict(re.findall(r"\| `micro_(\w+)` \| [\d.]+ % \| (\d+) % \|", card))
    require(set(chance) == set(made["shipped"]), "the card has the probes of the second making")
    out.macro("WorldProbes", len(made["shipped"]), source)
    out.macro("WorldWorstProbe", min(made["shipped"].values()), source)
    out.macro("WorldBestProbe", max(made["shipped"].values()), source)
    out.macro("WorldRepeatDifference", max(abs(value) for value in made["difference"].values()), source)
    rows = [
        [escape(name), chance[name], number(made["shipped"][name]), number(made["again"][name])]
        for name in sorted(made["shipped"])
    ]
    half = -(-len(rows) // 2)
    paired = [first + second for first, second in zip(rows[:half], [*rows[half:], [""] * 4], strict=False)]
    out.table(
        "world",
        "lrrr@{\\qquad}lrrr",
        2 * ["probe", "chance", "shipped", "made again"],
        paired,
    )


def demo(results: Path, out: Output) -> None:
    """The demo's table."""
    source = "results/demo/summary.csv"
    table = points(results / "demo/summary.csv")
    table = table[table["view"] == ""].set_index("mitigation")
    settings = yaml.safe_load((results / "demo/study.yaml").read_text("utf-8"))
    naive: Any = table.loc["naive"]
    near = table[(table["LA"] - naive["LA"]).abs() <= NEAR].drop(index="naive")
    require(len(near) > 0 and bool((near["retention"] > naive["retention"]).all()), "methods at naive's LA retain more")
    less = table[table["LA"] < naive["LA"] - NEAR]
    n = int(table["n"].max())
    runs = pd.read_csv(results / "demo/summary.csv").fillna({"view": ""})
    minutes = float(runs.loc[runs["view"] == "", ["seconds", "evaluation_seconds"]].to_numpy().sum()) / 60
    out.macro("DemoSeedsNote", seeds_note(n), source)
    out.macro("DemoSteps", int(settings["training"]["steps"]), "results/demo/study.yaml")
    out.macro("DemoRate", power(settings["training"]["learning_rate"]), "results/demo/study.yaml")
    out.macro("DemoMethods", len(table), source)
    out.macro("DemoTasks", int(runs["tasks_done"].max()), source)
    out.macro("DemoMinutes", minutes, source, 0)
    out.macro("DemoProbes", int(naive["retention_defined"]), source)
    out.macro("DemoNaiveLA", cell(naive, "LA"), source)
    out.macro("DemoNaiveRetention", cell(naive, "retention"), source)
    out.macro("DemoNear", 100 * NEAR, "paper/parts/models.py", 0)
    out.macro("DemoNearMethods", ", ".join(code(str(name)) for name in near.index), source)
    out.macro("DemoNearLow", 100 * float(near["retention"].min()), source)
    out.macro("DemoNearHigh", 100 * float(near["retention"].max()), source)
    out.macro("DemoLessMethods", len(less), source)
    out.macro("DemoLessLow", 100 * float(less["retention"].min()), source)
    out.macro("DemoLessHigh", 100 * float(less["retention"].max()), source)
    rows = [
        [
            code(str(name)),
            *(cell(row, column) for column in ("LA", "ACC", "BWT", "retention")),
            cell(row, "delta_CE:pretraining", 1.0, 2),
        ]
        for name, row in table.iterrows()
    ]
    out.table(
        "demo",
        "lrrrrr",
        ["mitigation", "LA", "ACC", "BWT", r"retention (\%)", r"$\Delta$CE (nats/token)"],
        rows,
    )


def leaderboard(results: Path, out: Output) -> None:
    """Every method at its tuned setting, in two columns, and the Pareto front."""
    source = "results/leaderboard/leaderboard.csv"
    table = pd.read_csv(results / "leaderboard/leaderboard.csv")
    ran = table[table["n"] > 0].sort_values("retention", ascending=False).reset_index(drop=True)
    naive = ran[ran["method"] == "naive"].iloc[0]
    ordinary = ran[ran["kind"].isin(["method", "baseline"])].reset_index(drop=True)
    front = ordinary.iloc[pareto_front(ordinary[["LA", "retention"]])]
    waiting = read_json(results / "leaderboard/not_run.json")
    out.macro("BoardNotRun", "; ".join(map(escape, waiting)) or "none", "results/leaderboard/not_run.json")
    out.macro("BoardMethods", len(table), source)
    out.macro("BoardSeedsFew", int(ran["n"].min()), source)
    out.macro("BoardSeedsMany", int(ran["n"].max()), source)
    out.macro("BoardFailed", int(table["failed"].sum()), source)
    out.macro("BoardNaiveSetting", code(str(naive["mitigation"])), source)
    out.macro("BoardNaiveLA", cell(naive, "LA"), source)
    out.macro("BoardNaiveRetention", cell(naive, "retention"), source)
    out.macro("BoardFront", ", ".join(escape(str(name)) for name in front.sort_values("LA")["method"]), source)
    mark = {"reference": r"$^{\mathrm{r}}$", "oracle": r"$^{\mathrm{o}}$"}
    rows = [
        [
            escape(str(row["method"])) + mark.get(str(row["kind"]), ""),
            *(cell(row, column) for column in ("LA", "retention", "BWT")),
            str(row["n"]),
        ]
        for _, row in ran.iterrows()
    ]
    half = -(-len(rows) // 2)
    paired = [first + second for first, second in zip(rows[:half], [*rows[half:], [""] * 5], strict=False)]
    out.table(
        "leaderboard",
        "lrrrr@{\\quad}lrrrr",
        2 * ["method", "LA", "ret.", "BWT", "n"],
        paired,
    )
    out.figure("leaderboard", results / "leaderboard/figures/pareto.pdf")


def real_model(results: Path, out: Output) -> None:
    """stories260K on four tasks: table, drift figure, and what the text says of them."""
    folder, source = results / "real_model/reported", "results/real_model/reported/summary.csv"
    table = points(folder / "summary.csv")
    table = table[table["view"] == ""].set_index("mitigation")
    records = [record for record in ResultStore(folder).records() if record.status == "finished"]
    text = next(name for name in records[0].rows[0].drift if name != "pretraining")
    bits: dict[str, Interval] = {}
    for name in table.index:
        runs = [record for record in records if record.config.mitigation == name]
        bits[str(name)] = seed_interval([record.rows[-1].drift[text].bpb for record in runs])
    chosen = json.loads((results / "real_model/chosen.json").read_text("utf-8"))
    naive: Any = table.loc["naive"]
    for method in ("replay", "ewc", "low rate"):
        require(bits[chosen[method]].high < bits["naive"].low, f"{method} keeps the stories better than naive")
    require(bits[chosen["lora"]].low > bits["naive"].high, "LoRA at its tuned rate ruins the stories more than naive")
    others = table.drop(index="naive")
    around = (others["retention_low"] < naive["retention"]) & (naive["retention"] < others["retention_high"])
    runs = [record for record in records if record.config.mitigation == "naive"]
    learned = [(record.tasks[0].name, 100 * record.R[0][0], 100 * record.R[1][0]) for record in runs]
    gains = pd.DataFrame(
        [{t.name: record.R[j + 1][j] - record.R[0][j] for j, t in enumerate(record.tasks)} for record in runs]
    ).mean()
    require(str(gains.idxmax()) == learned[0][0], "the first task is the one that is learned")
    scores = read_json(results / "real_model/base_blimp.json")
    grid: dict[str, Sequence[str]] = constant("experiments/real_model.py", "GRID")
    script = "experiments/real_model.py"
    record_source = "results/real_model/reported/runs"
    out.macro("RealParameters", int(pd.read_csv(folder / "summary.csv")["parameters"].max()), source)
    out.macro("RealTasks", len(records[0].tasks), record_source)
    out.macro("RealTaskNames", ", ".join(escape(task.name) for task in records[0].tasks), record_source)
    out.macro("RealSteps", int(records[0].config.training.steps or 0), record_source)
    out.macro("RealSeeds", int(naive["n"]), source)
    out.macro("RealSeedsNote", seeds_note(int(naive["n"])), source)
    out.macro("RealParadigms", len(records[0].capabilities), record_source)
    out.macro("RealAllParadigms", len(scores), "results/real_model/base_blimp.json")
    out.macro("RealThreshold", 100 * float(constant(script, "THRESHOLD")), script, 0)
    out.macro("RealTuningRuns", len(next(iter(grid.values()))), script)
    out.macro("RealRate", power(float(chosen["learning_rate"])), "results/real_model/chosen.json")
    out.macro("RealBaseBits", records[0].rows[0].drift[text].bpb, record_source, 2)
    for name, key in (
        ("Naive", "naive"),
        ("Replay", chosen["replay"]),
        ("Ewc", chosen["ewc"]),
        ("Lora", chosen["lora"]),
    ):
        out.macro(f"Real{name}Bits", told(bits[key]), record_source)
        out.macro(f"Real{name}LA", cell(table.loc[key], "LA"), source)
    out.macro("RealNaiveRetention", cell(naive, "retention"), source)
    out.macro("RealOthers", len(others), source)
    out.macro("RealOverlap", int(around.sum()), source)
    out.macro("RealLearnedTask", escape(learned[0][0]), record_source)
    out.macro("RealLearnedBefore", sum(row[1] for row in learned) / len(learned), record_source, 0)
    out.macro("RealLearnedAfter", sum(row[2] for row in learned) / len(learned), record_source, 0)
    out.macro("RealNextGain", 100 * float(gains.sort_values().iloc[-2]), record_source)
    rows = [
        [code(str(name)), cell(row, "LA"), cell(row, "BWT"), cell(row, "retention"), told(bits[str(name)])]
        for name, row in table.iterrows()
    ]
    out.table(
        "real",
        "lrrrr",
        ["mitigation", "LA", "BWT", r"retention (\%)", "bits per byte"],
        rows,
    )
    out.figure("real", folder / "figures/drift.pdf")


def vision(results: Path, out: Output) -> None:
    """ResNet-20 on three tasks: accuracy on CIFAR-10 with the kept head."""
    folder, source = results / "vision_forgetting", "results/vision_forgetting/runs"
    records = {
        record.config.mitigation: record for record in ResultStore(folder).records() if record.status == "finished"
    }
    names: dict[str, str] = constant("experiments/vision_forgetting.py", "METHODS")
    first = records["naive"]
    column = next(i for i, capability in enumerate(first.capabilities) if capability.name == "held_out_images")
    kept = {key: [100 * row.G[column] for row in records[text].rows] for key, text in names.items()}
    require(
        len(set(kept["feature extraction"])) == 1, "feature extraction keeps the pretrained head's accuracy exactly"
    )
    seeds = {record.config.seed for record in records.values()}
    require(len(seeds) == 1, "the image classifier was run with one seed")
    out.macro("VisionBase", kept["naive"][0], source)
    out.macro("VisionImages", first.capabilities[column].n, source)
    out.macro("VisionNaiveAfterFirst", kept["naive"][1], source)
    out.macro("VisionNaiveEnd", kept["naive"][-1], source)
    out.macro("VisionReplayEnd", kept["replay (30 %)"][-1], source)
    out.macro("VisionEwcEnd", kept["EWC"][-1], source)
    out.macro("VisionSteps", int(first.config.training.steps or 0), source)
    learned = {key: [100 * records[text].R[j + 1][j] for j in range(len(first.tasks))] for key, text in names.items()}
    out.macro("VisionNaiveLA", sum(learned["naive"]) / len(first.tasks), source)
    out.macro("VisionFeatureLA", sum(learned["feature extraction"]) / len(first.tasks), source)
    require(sum(learned["feature extraction"]) < sum(learned["naive"]), "feature extraction learns less than naive")
    header = ["method", *(f"after {escape(task.name)}" for task in first.tasks), *(escape(t.name) for t in first.tasks)]
    rows = [[escape(key), *map(number, kept[key][1:]), *map(number, learned[key])] for key in names]
    out.table(
        "vision",
        "l" + 2 * len(first.tasks) * "r",
        header,
        rows,
    )
    out.figure("vision", folder / "vision_forgetting.pdf")
