"""A real pretrained model learns four tasks and forgets its stories: which mitigation keeps them?

Model: stories260K (a Llama of 260,032 parameters pretrained on TinyStories by Karpathy, MIT). Sequence: agnews,
amazon, sst2, boolq of the long-sequence benchmark (O-LoRA, arXiv 2310.14152). Capabilities: the BLiMP paradigms
(arXiv 1912.00582) on which the base model is above 70%, and bits per byte on held-out stories. Replay and EWC see
stories sampled from the base model itself, since its pretraining data are not needed at hand.

Command (the data are not part of the package; see README, "Your own data")::

    python experiments/real_model.py --data ../shared/data --workers 2

Every method gets the same tuning budget: as many settings as its row in GRID, each one run with one seed on a
tuning sequence of other tasks (rte, cb), chosen by the mean of learning accuracy gained and
retention kept. The reported sequence is run once, with the chosen setting and three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.display import RunProgress, print_outcome, print_plan
from forgetting.report import summarise, write_report
from forgetting.results import ResultStore, write_atomically
from forgetting.study import Plan, run_study

REPORTED = ("agnews", "amazon", "sst2", "boolq")
TUNING = ("rte", "cb")
THRESHOLD = 0.70
SELECTION_ITEMS = 300  # minimal pairs of each paradigm that the threshold is applied to
ITEMS = 200  # the first of them, scored after every task

GRID: dict[str, tuple[str, ...]] = {
    "naive": ("naive", "low_lr:factor=3"),
    "low rate": ("low_lr:factor=0.1", "low_lr:factor=0.3"),
    "replay": ("replay:fraction=0.2", "replay:fraction=0.5"),
    "ewc": ("ewc:strength=100", "ewc:strength=10000"),
    "freezing": ("freeze:first=3,embeddings=true", "freeze:all_but_last=1"),
    "lora": ("lora:r=8,lr_factor=3", "lora:r=8,lr_factor=10"),
}


def study(
    name: str,
    data: Path,
    tasks: tuple[str, ...],
    mitigations: tuple[str, ...],
    seeds: int,
    paradigms: list[str],
) -> StudyConfig:
    """The protocol; tuning and reported studies differ in tasks and seeds alone."""
    return StudyConfig(
        name=name,
        model=str(data / "stories260K-hf"),
        sequence=SequenceConfig(
            name="long-sequence",
            data_dir=str(data / "long_sequence"),
            tasks=tasks,
            train_size=1600,
            test_size=200,
        ),
        mitigations=mitigations,
        seeds=tuple(range(seeds)),
        training=TrainingConfig(learning_rate=1e-3, steps=100, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(
            suite=tuple(f"blimp_{paradigm}" for paradigm in paradigms),
            data_dir=str(data / "blimp"),
            limit=ITEMS,
            batch_size=32,
        ),
        pretraining=PretrainingConfig(
            source="self",
            documents=1000,
            held_out_documents=100,
            held_out=(str(data / "text" / "tinystories_sample.txt"),),
            max_length=200,
        ),
    )


def paradigms_above(data: Path, output: Path) -> list[str]:
    """BLiMP paradigms on which the base model is above the threshold; scores of all are kept in ``output``."""
    path = output / "base_blimp.json"
    if not path.exists():
        from forgetting.evaluation.suite import load_suite
        from forgetting.models import load_model

        base = load_model(str(data / "stories260K-hf"))
        suite = load_suite(["blimp"], data_dir=data / "blimp", limit=SELECTION_ITEMS)
        scores = suite.evaluate(base.model, base.tokenizer, batch_size=32)
        table = {name.removeprefix("blimp_"): round(score.value, 4) for name, score in scores.items()}
        write_atomically(path, json.dumps(table, indent=1, sort_keys=True).encode())
    table = json.loads(path.read_text())
    return sorted(name for name, value in table.items() if value > THRESHOLD)


def run(config: StudyConfig, folder: Path, workers: int) -> pd.DataFrame:
    """Run (or continue) a study and write its report."""
    with RunProgress() as progress:

        def announce(plan: Plan) -> None:
            print_plan(plan, folder)
            progress.expect(plan)

        run_study(config, folder, workers=workers, progress=progress.update, on_plan=announce)
    print_outcome(folder, write_report(folder))
    return summarise(ResultStore(folder))


def choose(table: pd.DataFrame) -> dict[str, str]:
    """The setting of each method with the best mean of learning accuracy and retention on the tuning tasks."""
    scores = table[table["view"] == ""].set_index("mitigation")
    value = ((scores["LA"] + scores["retention"]) / 2).fillna(-1.0)  # a setting that diverged is never chosen
    return {method: max(settings, key=lambda s: float(value[s])) for method, settings in GRID.items()}


def main() -> None:
    """Tune, choose, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with stories260K-hf, long_sequence, blimp, text"
    )
    parser.add_argument("--output", type=Path, default=Path("results/real_model"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    paradigms = paradigms_above(data, output)
    settings = tuple(dict.fromkeys(s for row in GRID.values() for s in row))
    tuning = study("tuning", data, TUNING, settings, 1, paradigms)
    chosen = choose(run(tuning, output / "tuning", arguments.workers))
    write_atomically(output / "chosen.json", json.dumps(chosen, indent=1).encode())
    mitigations = tuple(dict.fromkeys(("naive", *chosen.values())))
    reported = study("reported", data, REPORTED, mitigations, arguments.seeds, paradigms)
    run(reported, output / "reported", arguments.workers)


if __name__ == "__main__":
    main()
