"""Every mitigation on micro-5 with the embedded decoder, each with the same number of tuning runs.

Commands (they go on where they were stopped; the second draws the figures and the table again, from results alone)::

    python experiments/leaderboard.py --workers 2 --hours 2
    python experiments/leaderboard.py --draw

Protocol. Every method gets the settings of its row in GROUPS, four each, on a tuning sequence of two other tasks
(micro-tuning), with another seed and other items of each probe than are reported. Chosen is the setting that retains
most among those whose learning accuracy is within MARGIN of the best naive one; where none is, the one that learns
most (a mean of the two would reward not learning: what learns nothing retains everything). It is run on micro-5, with
5 seeds for HEADLINE and 3 for the rest. Naive fine-tuning's row is a sweep of its own learning rate: it is the
baseline to beat. The other methods keep the base rate where their row does not say otherwise. Each has 80 steps per
task of its own examples; a method that mixes others in (replay) takes more, a reference as many as its tasks: the
table has the steps, and the tokens of all passes that train. What a step costs in time is
``experiments/benchmarks/step_time.py``'s to say. What acts through the number of tasks (sums of penalties or of task
vectors) was tuned for two and is reported for five. Adapter methods are listed with the adapter on; ``views.csv`` has
them off, and the curves of the methods that act after training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import pandas as pd

from forgetting.analysis.pareto import pareto_front
from forgetting.config import EvaluationConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.mitigations import get_mitigation, parse_mitigation
from forgetting.report import summarise
from forgetting.report.ranking import draw_pareto, draw_ranking
from forgetting.report.summary import aggregate
from forgetting.results import ResultStore, write_atomically
from forgetting.studies import run_grids

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "leaderboard"


def _over(template: str, *values: object) -> tuple[str, ...]:
    """A method's settings: the template with one value after the other."""
    return tuple(template.format(value) for value in values)


GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "baseline": {
        "naive": ("naive", *_over("low_lr:factor={}", 0.1, 0.3, 3)),
    },
    "few_weights": {
        "few_steps": _over("few_steps:fraction={}", 0.1, 0.25, 0.5, 0.75),
        "early_stopping": _over("early_stopping:metric=pretraining,max_increase={}", 0.05, 0.1, 0.3, 1),
        "feature_extraction": _over("feature_extraction+low_lr:factor={}", 0.3, 1, 3, 10),
        "freeze": ("freeze:first=2,embeddings=true", *_over("freeze:all_but_last={}", 1, 2, 3)),
        "gradual_unfreezing": _over("gradual_unfreezing:lr_factor={}", 0.1, 0.3, 1, 3),
        "llrd": _over("llrd:decay={}", 0.3, 0.5, 0.7, 0.9),
        "bitfit": _over("bitfit:lr_factor={}", 1, 3, 10, 30),
    },
    "adapters": {
        "lora": _over("lora:r=16,lr_factor={}", 1, 2, 5, 10),
        "lora, rsLoRA": _over("lora:r=16,rslora=true,lr_factor={}", 1, 2, 5, 10),
        "lora, DoRA": _over("lora:r=16,dora=true,lr_factor={}", 1, 2, 5, 10),
        "lora, PiSSA": _over("lora:r=16,init=pissa,lr_factor={}", 0.3, 1, 2, 5),
        "o_lora": (*_over("o_lora:r=16,lr_factor={}", 1, 2, 5), "o_lora:r=16,lr_factor=5,strength=5"),
        "task_lora": _over("task_lora:r=16,lr_factor={}", 1, 2, 5, 10),
        "ia3": _over("ia3:lr_factor={}", 3, 10, 30, 100),
        "osf": (*_over("osf:preserve={}", 0.25, 0.5, 0.75), "osf:preserve=0.5,lr_factor=0.3"),
        "prompt_tuning": _over("prompt_tuning:lr_factor={}", 10, 30, 100, 300),
        "prefix_tuning": _over("prefix_tuning:lr_factor={}", 3, 10, 30, 100),
        "in_context": _over("in_context:shots={}", 1, 2, 3, 4),
    },
    "regularisation": {
        "l2sp": _over("l2sp:strength={}", 1, 10, 30, 100),
        "ewc": _over("ewc:strength={}", 100, 1000, 10000, 100000),
        "ewc, K-FAC": _over("ewc:mode=kfac,strength={}", 100, 1000, 10000, 100000),
        "si": _over("si:strength={}", 10, 100, 1000, 10000),
        "mas": _over("mas:strength={}", 0.001, 0.01, 0.1, 1),
        "rwalk": _over("rwalk:strength={}", 100, 1000, 10000, 100000),
        "lwf": _over("lwf:strength={}", 0.3, 1, 3, 10),
        "kl_to_base, task": _over("kl_to_base:on=task,strength={}", 0.3, 1, 3, 10),
        "kl_to_base, text": _over("kl_to_base:on=text,strength={}", 0.1, 0.3, 1, 3),
        "sam": _over("sam:rho={}", 0.02, 0.05, 0.1, 0.3),
        "flow": ("flow", "flow:strength=0.5", *_over("flow:temperature={}", 0.5, 2)),
    },
    "rehearsal": {
        "replay": _over("replay:fraction={}", 0.1, 0.25, 0.5, 0.7),
        "replay, both": _over("replay:source=both,fraction={}", 0.1, 0.25, 0.5, 0.7),
        "replay + ewc": _over("replay:fraction=0.25,source=both+ewc:tasks=false,strength={}", 10, 100, 1000, 10000),
        "replay, equal steps": _over("replay:equal_steps=true,fraction={}", 0.1, 0.25, 0.5, 0.7),
        "self_replay": _over("self_replay:strength={}", 0.1, 0.3, 1, 3),
        "der": _over("der:alpha={}", 0.03, 0.1, 0.3, 1),
        "derpp": (*_over("derpp:alpha=0.1,beta={}", 0.5, 1), *_over("derpp:alpha=0.3,beta={}", 0.5, 1)),
        "gem": _over("gem:margin={}", 0, 0.25, 0.5, 1),
        "agem": _over("agem:examples={}", 64, 128, 256, 512),
    },
    "projection": {
        "ogd": _over("ogd:directions={}", 16, 32, 64, 128),
        "gpm": _over("gpm:threshold={}", 0.8, 0.9, 0.95, 0.99),
    },
    "merging": {
        "wise_ft": _over("wise_ft:curve=none,alpha={}", 0.3, 0.5, 0.7, 0.85),
        "ema": _over("ema:decay={}", 0.9, 0.97, 0.99, 0.995),
        "task_arithmetic": _over("task_arithmetic:curve=none,scale={}", 0.1, 0.2, 0.4, 0.7),
        "merge_previous": _over("merge_previous:weight={}", 0.2, 0.4, 0.6, 0.8),
        "fisher_merge": _over("fisher_merge:weight={}", 0.1, 0.3, 0.5, 0.7),
    },
    "references": {
        "joint": ("joint",),
        "cumulative": ("cumulative",),
        "single_task": ("single_task",),
    },
}
"""By group, method to the settings it is tuned over: four, or one where there is nothing to choose. Naive's first is
the base rate of all others. A group is a study of its own: methods can be added without running the rest again."""

METHODS = {method: settings for group in GROUPS.values() for method, settings in group.items()}

TUNING_SEED = 100
MARGIN = 0.1

HEADLINE = (
    "naive",
    "few_steps",
    "freeze",
    "lora",
    "l2sp",
    "ewc",
    "lwf",
    "kl_to_base, text",
    "replay",
    "replay + ewc",
    "derpp",
    "wise_ft",
)
"""With five seeds; the others have three."""


def protocol(
    sequence: str, mitigations: tuple[str, ...], seeds: tuple[int, ...], name: str, offset: int
) -> StudyConfig:
    """The protocol; tuning and reported studies differ in tasks, settings, seeds and the probes' items alone."""
    return StudyConfig(
        name=name,
        sequence=SequenceConfig(name=sequence, test_size=100),
        mitigations=mitigations,
        seeds=seeds,
        training=TrainingConfig(learning_rate=1e-3, steps=80, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(suite=("micro",), limit=100, offset=offset, drift=False),
    )


def run(config: StudyConfig, folder: Path, workers: int, until: float) -> pd.DataFrame:
    """Run (or continue) a study until a moment of ``time.monotonic``; what its finished runs show."""
    run_grids({folder: config}, workers, until)
    return summarise(ResultStore(folder))


def choose(frame: pd.DataFrame, methods: dict[str, tuple[str, ...]], target: float) -> dict[str, str]:
    """The setting of each method that retains the most of those that learn up to ``target``, once all have run."""
    scores = frame[(frame["view"] == "") & (frame["status"] == "finished")].set_index("mitigation")
    worth = {
        setting: (1.0, row["retention"]) if row["LA"] >= target else (0.0, row["LA"])
        for setting, row in scores.iterrows()
    }
    done = set(frame.loc[frame["status"].isin(["finished", "failed"]), "mitigation"])
    return {
        method: max(settings, key=lambda setting: worth.get(setting, (-1.0, 0.0)))
        for method, settings in methods.items()
        if done.issuperset(settings)
    }


def target() -> float:
    """The learning accuracy that a setting must reach to be chosen for what it retains."""
    folder = OUTPUT / "tuning" / "baseline"
    if not folder.exists():
        raise SystemExit("tune the group baseline first: the others are chosen at its learning accuracy")
    frame = summarise(ResultStore(folder))
    return float(frame.loc[frame["status"] == "finished", "LA"].max()) - MARGIN


def tune(group: str, workers: int, until: float) -> dict[str, str]:
    """Tune a group's methods; the chosen setting of each that has had all its runs."""
    methods = {method: settings for method, settings in GROUPS[group].items() if len(settings) > 1}
    chosen = {method: settings[0] for method, settings in GROUPS[group].items() if len(settings) == 1}
    if methods:
        settings = tuple(setting for row in methods.values() for setting in row)
        config = protocol("micro-tuning", settings, (TUNING_SEED,), f"tuning-{group}", offset=100)
        chosen |= choose(run(config, OUTPUT / "tuning" / group, workers, until), methods, target())
    return chosen


def report(group: str, chosen: dict[str, str], workers: int, until: float) -> None:
    """Run a group's methods on the reported sequence, once all of it is tuned: its choice is then final."""
    if set(chosen) != set(GROUPS[group]):
        return
    for name, seeds in (("headline", 5), ("others", 3)):
        methods = [method for method in chosen if (method in HEADLINE) == (name == "headline")]
        # One run gives the whole curve of a method that acts after training.
        settings = tuple(chosen[method].replace("curve=none", "curve=0.25|0.75") for method in methods)
        if settings:
            config = protocol("micro-5", settings, tuple(range(seeds)), f"{group}-{name}", offset=0)
            run(config, OUTPUT / group / name, workers, until)


def kind(method: str, setting: str) -> str:
    """What a row is: a method, the baseline, an oracle, or a reference."""
    classes = [get_mitigation(name) for name, _ in parse_mitigation(setting)]
    if method == "naive":
        return "baseline"
    if any(cls.reference for cls in classes):
        return "reference"
    return "oracle" if any(cls.task_oracle for cls in classes) else "method"


def collect(chosen: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table (a row per method that has run) and the same of the methods' views."""
    folders = [OUTPUT / group / name for group in GROUPS for name in ("headline", "others")]
    frames = [summarise(ResultStore(folder)) for folder in folders if folder.exists()]
    if not frames:
        raise SystemExit("nothing was reported yet: run without --draw first")
    methods = {setting.replace("curve=none", "curve=0.25|0.75"): method for method, setting in chosen.items()}
    points = pd.concat([aggregate(frame) for frame in frames], ignore_index=True)
    named = points.assign(method=points["mitigation"].map(methods)).dropna(subset=["method"])
    named["kind"] = [kind(m, s) for m, s in zip(named["method"].astype(str), named["mitigation"], strict=True)]
    return named[named["view"] == ""], named[named["view"] != ""]


def markdown(table: pd.DataFrame, front: set[str]) -> str:
    """The leaderboard as a table; intervals are half-widths over seeds."""
    lines = [
        "| method | setting | n | LA | retention | BWT | steps | tokens (thousands) | stored floats |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in table.sort_values(["kind", "retention"], ascending=[True, False]).iterrows():
        mark = {"reference": " (reference)", "oracle": " (told the task)"}.get(row["kind"], "")
        mark += " **front**" if row["method"] in front else ""
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        cells = [
            f"{100 * row[c]:.1f} ± {50 * (row[f'{c}_high'] - row[f'{c}_low']):.1f}" for c in ("LA", "retention", "BWT")
        ]
        lines.append(
            f"| {row['method']}{mark} | `{row['mitigation']}` | {row['n']}{failed} | {' | '.join(cells)} "
            f"| {row['steps']:.0f} | {row['tokens'] / 1000:.0f} | {row['stored_floats']:,.0f} |"
        )
    if missing := not_run(table):
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def not_run(table: pd.DataFrame) -> list[str]:
    """The methods of which not every seed has come to its end."""
    return sorted(set(METHODS) - set(table["method"]))


def draw(chosen: dict[str, str]) -> None:
    """Write table and figures from what is stored, of the methods whose seeds have all come to their end."""
    points, views = collect(chosen)
    views = views[views["method"].isin(points.loc[points["unfinished"] == 0, "method"])]
    table = points[points["unfinished"] == 0].reset_index(drop=True)
    ran = table[table["n"] > 0].reset_index(drop=True)
    ordinary = ran[ran["kind"].isin(["method", "baseline"])]
    front = set(ordinary["method"].iloc[pareto_front(ordinary[["LA", "retention"]])])
    columns = [
        "method",
        "mitigation",
        "kind",
        "n",
        "failed",
        "steps",
        "tokens",
        "stored_floats",
        "trainable_parameters",
    ]
    columns += [f"{c}{end}" for c in ("ACC", "LA", "retention", "BWT") for end in ("", "_low", "_high")]
    write_atomically(OUTPUT / "leaderboard.csv", table[columns].to_csv(index=False).encode())
    write_atomically(OUTPUT / "views.csv", views[[*columns[:5], "view", *columns[9:]]].to_csv(index=False).encode())
    write_atomically(OUTPUT / "leaderboard.md", markdown(table, front).encode())
    write_atomically(OUTPUT / "not_run.json", (json.dumps(not_run(table), indent=1) + "\n").encode())
    draw_ranking(ran, OUTPUT / "figures")
    draw_pareto(ran, OUTPUT / "figures")
    print(markdown(table, front))


def main() -> None:
    """Tune, choose, run, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no run after so many hours")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="of methods to run")
    parser.add_argument("--draw", action="store_true", help="figures and table from results alone")
    arguments = parser.parse_args()
    until = time.monotonic() + 3600 * arguments.hours
    path = OUTPUT / "chosen.json"
    chosen = json.loads(path.read_text()) if path.exists() else {}
    for group in () if arguments.draw else arguments.groups:
        tuned = tune(group, arguments.workers, until)
        chosen |= tuned
        write_atomically(path, json.dumps(chosen, indent=1, sort_keys=True).encode())
        report(group, tuned, arguments.workers, until)
    draw(chosen)


if __name__ == "__main__":
    main()
