"""An audit of a real model's fine-tunes: stories260K against its full fine-tune on agnews, and against a LoRA adapter.

Model: stories260K (a Llama of 260,032 parameters pretrained on TinyStories by Karpathy, MIT). Own task: agnews of the
long-sequence benchmark (O-LoRA, arXiv 2310.14152), 100 steps, the rates of ``results/real_model``. Capabilities: the
BLiMP paradigms (arXiv 1912.00582) on which the base model is above 70%, found on other items than the audit's. General
text: a sample of TinyStories. Command (the data are not part of the package)::

    python experiments/audit_real_model.py --data FOLDER

It writes the fine-tunes to ``build/audit``, and verdict, items, report, card and table of both audits to
``results/audit``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from forgetting.audit.extras import add_extras, input_digests, prepare_extras
from forgetting.audit.load import load_input
from forgetting.audit.run import audit_models
from forgetting.audit.schema import Settings
from forgetting.audit.write import write_audit
from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.evaluation.suite import load_suite
from forgetting.models import load_model
from forgetting.results import ResultStore
from forgetting.run import fine_tuned

MITIGATIONS = {"naive": "naive", "lora": "lora:r=8,lr_factor=10"}
TESTED = 300
"""Items of agnews' test split that are the own task."""
LIMIT = 100
"""Items of each paradigm; as many others choose the paradigms."""
THRESHOLD = 0.70


def fine_tune(data: Path, folder: Path) -> Path:
    """Train and save both fine-tunes; the own task's items are written beside them, as the audit reads them."""
    study = StudyConfig(
        name="audit-real-model",
        model=str(data / "stories260K-hf"),
        sequence=SequenceConfig(
            name="long-sequence",
            data_dir=str(data / "long_sequence"),
            tasks=("agnews",),
            train_size=1600,
            test_size=5 * TESTED,  # the audit tests on a fifth of a file
        ),
        mitigations=tuple(MITIGATIONS.values()),
        training=TrainingConfig(learning_rate=3e-4, steps=100, batch_size=16, max_length=128),
        evaluation=EvaluationConfig(limit=1, drift=False),
        pretraining=PretrainingConfig(source=str(data / "text" / "tinystories_sample.txt"), documents=4),
    )
    store = ResultStore.create(folder / "study", study)
    for run, name in zip(study.runs(), MITIGATIONS, strict=True):
        setting, model = fine_tuned(run, store)
        model.save_pretrained(folder / name)
        setting.base.tokenizer.save_pretrained(folder / name)
    (task,) = setting.sequence.tasks
    rows = [{"prompt": e.prompt, "completion": e.completion, "choices": list(e.choices or ())} for e in task.test]
    own = folder / "agnews.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return own


def known_paradigms(data: Path) -> list[str]:
    """Paradigms above the threshold on items after the audit's: on the same ones the base would look too good."""
    base = load_model(str(data / "stories260K-hf"))
    suite = load_suite(["blimp"], data_dir=data / "blimp", limit=LIMIT, offset=LIMIT)
    scores = suite.evaluate(base.model, base.tokenizer)
    return sorted(name for name, score in scores.items() if score.value > THRESHOLD)


def main() -> None:
    """Fine-tune, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with stories260K-hf, long_sequence, blimp, text"
    )
    parser.add_argument("--models", type=Path, default=Path("build/audit"), help="folder for the fine-tunes")
    parser.add_argument("--output", type=Path, default=Path("results/audit"))
    arguments = parser.parse_args()
    data, models = arguments.data, arguments.models
    shutil.rmtree(models, ignore_errors=True)
    own = fine_tune(data, models)
    paradigms = known_paradigms(data)
    settings = Settings(limit=LIMIT)
    for name in MITIGATIONS:
        given = load_input(
            str(data / "stories260K-hf"),
            str(models / name),
            suite=paradigms,
            suite_dir=data / "blimp",
            data=own,
            limit=LIMIT,
        )
        wanted = prepare_extras(given, text=str(data / "text" / "tinystories_sample.txt"), advise=True)
        done = audit_models(given, settings, print)
        done.verdict.inputs_sha256 = input_digests(given, wanted)
        add_extras(done.verdict, given, wanted, print)
        paths = write_audit(done, arguments.output / name)
        shutil.rmtree(paths.samples)  # megabytes, and all of it is in items.parquet
        print(name, done.verdict.verdict, done.verdict.why)


if __name__ == "__main__":
    main()
