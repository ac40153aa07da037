"""Does an audit's advice predict what retraining gives? Edits of a finished fine-tune against the real remedies.

Papers: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT), arXiv 2109.01903; Kirkpatrick et al.
2017, arXiv 1612.00796 (EWC); Hu et al. 2021, arXiv 2106.09685 (LoRA). Command::

    forgetting study run audit_advice --scale laptop
"""

from __future__ import annotations

from forgetting.config import EvaluationConfig, PretrainingConfig, SequenceConfig, StudyConfig, TrainingConfig
from forgetting.studies import Results, Scale, Study, main
from forgetting.verdicts import Claim, Verdict

TASKS = ("new_facts", "routing", "sorting", "second_language", "formal")
SETTINGS = {"mild": (1e-3, 40), "harsh": (3e-3, 20)}
"""Peak learning rate and steps of the fine-tunes that are audited."""
REMEDIES = (
    "naive",
    "low_lr:factor=0.3",
    "low_lr:factor=0.6",
    "freeze:first=2,embeddings=true",
    "freeze:pattern=layers.[23]",
    "lora:r=4",
    "ewc:strength=10000,examples=64,tasks=false",
    "replay:fraction=0.2",
)

def grids(scale: Scale) -> dict[str, StudyConfig]:
    """A grid per task and setting: the fine-tune (naive), and what it is retrained with."""
    smoke = scale == "smoke"
    seeds = 1 if smoke else 10 if scale == "gpu" else 3
    return {
        f"{task}-{label}": StudyConfig(
            name="audit_advice",
            sequence=SequenceConfig(
                name="micro-5", tasks=(task,), train_size=32 if smoke else None, test_size=8 if smoke else 100
            ),
            mitigations=REMEDIES,
            seeds=tuple(range(seeds)),
            training=TrainingConfig(learning_rate=rate, steps=2 if smoke else steps, batch_size=16, max_length=128),
            evaluation=EvaluationConfig(limit=8 if smoke else 60, drift_tokens=200 if smoke else 2000),
            pretraining=PretrainingConfig(
                documents=100 if smoke else 400, held_out_documents=20 if smoke else 100
            ),
        )
        for task in TASKS[: 1 if smoke else None]
        for label, (rate, steps) in list(SETTINGS.items())[: 1 if smoke else None]
    }

STUDY = Study("audit_advice", (), grids, lambda results: [], lambda results, folder: None)
