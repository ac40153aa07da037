"""A real pretrained model learns four tasks and forgets its stories: which mitigation keeps them?

Model: stories260K (a Llama of 260,032 parameters pretrained on TinyStories by Karpathy, MIT). Sequence: agnews,
amazon, sst2, boolq of the long-sequence benchmark (O-LoRA, arXiv 2310.14152). Capabilities: the BLiMP paradigms
(arXiv 1912.00582) on which the base model is above 70%, and bits per byte on held-out stories. Replay and EWC see
stories sampled from the base model itself, since its pretraining data are not needed at hand.

Command (the data are not part of the package; see README, "Your own data")::

    python experiments/real_model.py --data ../shared/data --workers 2

Tuning is on other tasks (a few intents of BANKING77 and of CLINC150) with one seed. First naive fine-tuning's own
learning rate is chosen among RATES; it is the base rate of every method. Then every other method gets as many runs, the
settings of its row in GRID, chosen by the mean of learning accuracy and retention. The reported sequence is run with
what was chosen, and three seeds. Paradigms are selected, methods tuned and results reported on three disjoint sets of
each paradigm's pairs, so that neither selection inflates what is reported.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd

from forgetting.config import (
    EvaluationConfig,
    PretrainingConfig,
    SequenceConfig,
    StudyConfig,
    TaskConfig,
    TrainingConfig,
)
from forgetting.display import print_outcome
from forgetting.report import summarise, write_report
from forgetting.results import ResultStore, write_atomically
from forgetting.studies import run_grids

REPORTED = ("agnews", "amazon", "sst2", "boolq")
TUNING = {
    "banking": ("card arrival", "exchange rate", "request refund", "top up failed", "transaction charged twice"),
    "assistant": ("alarm", "book flight", "calories", "play music", "spelling", "translate", "weather"),
}
THRESHOLD = 0.70
ITEMS = 200  # minimal pairs of each paradigm that are scored after every task
TUNING_OFFSET, REPORTED_OFFSET, SELECTION_OFFSET = 0, 200, 400  # where in a paradigm's 1,000 pairs each use begins

RATES = (3e-4, 1e-3, 3e-3)

GRID: dict[str, tuple[str, ...]] = {
    "low rate": ("low_lr:factor=0.03", "low_lr:factor=0.1", "low_lr:factor=0.3"),
    "replay": ("replay:fraction=0.1", "replay:fraction=0.2", "replay:fraction=0.5"),
    "ewc": ("ewc:strength=10", "ewc:strength=1000", "ewc:strength=100000"),
    "freezing": ("freeze:first=3,embeddings=true", "freeze:all_but_last=2", "freeze:all_but_last=1"),
    "lora": ("lora:r=8,lr_factor=1", "lora:r=8,lr_factor=3", "lora:r=8,lr_factor=10"),
}


def protocol(
    data: Path,
    paradigms: list[str],
    name: str,
    sequence: SequenceConfig,
    mitigations: tuple[str, ...],
    *,
    seeds: int,
    rate: float,
    offset: int,
) -> StudyConfig:
    """The protocol; tuning and reported studies differ in tasks, seeds, settings and BLiMP's pairs alone."""
    return StudyConfig(
        name=name,
        model=str(data / "stories260K-hf"),
        sequence=sequence,
        mitigations=mitigations,
        seeds=tuple(range(seeds)),
        training=TrainingConfig(learning_rate=rate, steps=100, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(
            suite=tuple(f"blimp_{paradigm}" for paradigm in paradigms),
            data_dir=str(data / "blimp"),
            limit=ITEMS,
            offset=offset,
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


def intents(data: Path, folder: Path) -> SequenceConfig:
    """The tuning sequence; its files are written to ``folder``, outside of the results."""
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "banking77" / "train.csv").open() as train, (data / "banking77" / "test.csv").open() as test:
        banking = [[(row["text"], row["category"]) for row in csv.DictReader(file)] for file in (train, test)]
    clinc = json.loads((data / "clinc150" / "data_full.json").read_text())
    tasks = []
    for name, splits in (("banking", banking), ("assistant", [clinc["train"], clinc["test"]])):
        paths = [folder / f"{name}-{split}.jsonl" for split in ("train", "test")]
        for path, rows in zip(paths, splits, strict=True):
            kept = [(text.strip(), label.replace("_", " ")) for text, label in rows]
            lines = [
                json.dumps({"prompt": f"{text}\nIntent:", "completion": label, "choices": TUNING[name]})
                for text, label in kept
                if label in TUNING[name]
            ]
            write_atomically(path, "\n".join(lines).encode())
        tasks.append(TaskConfig(name=name, train=str(paths[0]), test=str(paths[1])))
    return SequenceConfig(name="intents", tasks=tuple(tasks))


def paradigms_above(data: Path, output: Path) -> list[str]:
    """BLiMP paradigms on which the base model is above the threshold; scores of all are kept in ``output``."""
    path = output / "base_blimp.json"
    if not path.exists():
        from forgetting.evaluation.suite import load_suite
        from forgetting.models import load_model

        base = load_model(str(data / "stories260K-hf"))
        suite = load_suite(["blimp"], data_dir=data / "blimp", offset=SELECTION_OFFSET)
        scores = suite.evaluate(base.model, base.tokenizer, batch_size=32)
        table = {name.removeprefix("blimp_"): round(score.value, 4) for name, score in scores.items()}
        write_atomically(path, json.dumps(table, indent=1, sort_keys=True).encode())
    table = json.loads(path.read_text())
    return sorted(name for name, value in table.items() if value > THRESHOLD)


def run(config: StudyConfig, folder: Path, workers: int) -> pd.DataFrame:
    """Run (or continue) a study; what its runs show."""
    run_grids({folder: config}, workers)
    return summarise(ResultStore(folder))


def value(table: pd.DataFrame) -> pd.Series:
    """What is tuned for: the mean of learning accuracy and retention, by mitigation; -1 where a run diverged."""
    scores = table[table["view"] == ""].set_index("mitigation")
    return ((scores["LA"] + scores["retention"]) / 2).fillna(-1.0)


def main() -> None:
    """Tune, choose, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with stories260K-hf, long_sequence, blimp, text, banking77, clinc150",
    )
    parser.add_argument("--output", type=Path, default=Path("results/real_model"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    paradigms = paradigms_above(data, output)
    study = partial(protocol, data, paradigms)
    tuning = intents(data, Path(tempfile.gettempdir()) / "forgetting-real-model")
    reported = SequenceConfig(
        name="long-sequence", data_dir=str(data / "long_sequence"), tasks=REPORTED, train_size=1600, test_size=200
    )
    by_rate = {}
    for rate in RATES:
        config = study(f"naive-{rate:g}", tuning, ("naive",), seeds=1, rate=rate, offset=TUNING_OFFSET)
        by_rate[rate] = float(value(run(config, output / "tuning" / config.name, arguments.workers))["naive"])
    rate = max(by_rate, key=lambda candidate: by_rate[candidate])
    settings = tuple(setting for row in GRID.values() for setting in row)
    config = study("methods", tuning, settings, seeds=1, rate=rate, offset=TUNING_OFFSET)
    by_setting = value(run(config, output / "tuning" / "methods", arguments.workers))
    chosen = {method: max(row, key=lambda setting: float(by_setting[setting])) for method, row in GRID.items()}
    write_atomically(output / "chosen.json", json.dumps({"learning_rate": rate, **chosen}, indent=1).encode())
    mitigations = ("naive", *chosen.values())
    config = study("reported", reported, mitigations, seeds=arguments.seeds, rate=rate, offset=REPORTED_OFFSET)
    run(config, output / "reported", arguments.workers)
    print_outcome(output / "reported", write_report(output / "reported"))


if __name__ == "__main__":
    main()
