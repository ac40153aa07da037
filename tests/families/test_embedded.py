"""The shipped models of each family, and whole runs on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgetting.config import RunConfig, SequenceConfig, StudyConfig, parse_study
from forgetting.errors import UsageError
from forgetting.models import embedded_path, load_model
from forgetting.results import ResultStore, RunRecord
from forgetting.study import plan_study, run_study

MODELS = {
    "micro-encoder": ("encoder", "micro-labels"),
    "micro-t5": ("encoder_decoder", "micro-labels"),
    "micro-vision": ("vision", "digits-split"),
}
MITIGATIONS = (
    "naive",
    "low_lr:factor=1e-9",
    "freeze:pattern=^base",
    "replay:fraction=0.5,source=both",
    "ewc:strength=100,examples=8",
    "lora:r=2",
)


def small_study(model: str, **changes: object) -> StudyConfig:
    values: dict = {
        "name": "small",
        "model": model,
        "sequence": {"name": MODELS[model][1], "train_size": 24, "validation_size": 4, "test_size": 8},
        "training": {"steps": 4, "batch_size": 8, "max_length": 48},
        "evaluation": {"limit": 4, "drift_tokens": 100},
        "pretraining": {"documents": 24, "held_out_documents": 8},
    }
    return parse_study(values | changes)


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_model_is_small_and_of_its_family(name: str) -> None:
    loaded = load_model(name)
    assert loaded.family == MODELS[name][0] and not loaded.model.training
    assert sum(file.stat().st_size for file in embedded_path(name).iterdir()) < 1.6e6
    card = (embedded_path(name) / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in card and f"forgetting-{name}" in card and f"{loaded.model.num_parameters():,}" in card


@pytest.mark.parametrize("text", ["self_replay", "in_context", "prompt_tuning", "osf", "derpp", "ewc+avalanche"])
def test_methods_of_another_family_are_refused_before_anything_runs(text: str, tmp_path: Path) -> None:
    config = small_study("micro-vision", mitigations=[text])
    with pytest.raises(UsageError, match=r"works on decoder, and model 'micro-vision' is of family vision"):
        plan_study(config, tmp_path / "small")


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_loop_runs(name: str, tmp_path: Path) -> None:
    mitigations = [m for m in MITIGATIONS if name != "micro-t5" or "base" not in m]  # all of it is the base model
    records = run_study(small_study(name, mitigations=mitigations), tmp_path / "small")
    assert [record.reason for record in records] == [None] * len(records)
    assert len({json.dumps([r.R[0], r.G[0]]) for r in records}) == 1
    by_name = {record.config.mitigation: record for record in records}
    for record in records:
        assert len(record.rows) == 4 and all(len(row) == 3 for row in record.R)
        assert all(len(row) == len(record.capabilities) for row in record.G)
        assert all(drift.kl_forward == 0 for drift in record.rows[0].drift.values()) and record.rows[0].drift
        assert all(change == 0 for change in record.rows[0].weight_change.values())
        assert all(cost.flops > 0 and cost.tokens["task"] > 0 for cost in record.cost.tasks)
    naive, still = by_name["naive"], by_name["low_lr:factor=1e-9"]
    assert naive.rows[-1].drift["pretraining"].kl_forward > 1e-3 > still.rows[-1].drift["pretraining"].kl_forward
    assert still.G[-1] == still.G[0]
    if "freeze:pattern=^base" in by_name:  # feature extraction forgets nothing
        frozen = by_name["freeze:pattern=^base"]
        assert frozen.G[-1] == frozen.G[0] and frozen.rows[-1].drift["pretraining"].kl_forward == 0
        assert frozen.cost.trainable_parameters < naive.cost.trainable_parameters
    replayed = by_name["replay:fraction=0.5,source=both"].cost.tasks[-1].examples
    assert replayed["pretraining"] > 0 and replayed["earlier"] > 0
    ewc = by_name["ewc:strength=100,examples=8"]
    assert ewc.rows[-1].drift["pretraining"].kl_forward != naive.rows[-1].drift["pretraining"].kl_forward
    stored = [RunRecord.model_validate_json(record.model_dump_json()) for record in records]
    assert [r.R for r in stored] == [r.R for r in records]
    assert next(iter(ResultStore(tmp_path / "small").records())).R == records[0].R


def test_naive_fine_tuning_forgets_the_pretrained_digits_and_feature_extraction_does_not(tmp_path: Path) -> None:
    config = small_study(
        "micro-vision",
        mitigations=["naive", "feature_extraction"],
        sequence={"name": "digits-split", "tasks": ["4 or 5"], "test_size": 60},
        training={"steps": 40, "batch_size": 16},
        evaluation={"drift_tokens": 100},
        pretraining={"documents": 50, "held_out_documents": 100},
    )
    naive, frozen = run_study(config, tmp_path / "small")
    assert naive.G[0][0] > 0.95 and naive.G[1][0] < naive.G[0][0] - 0.2 and naive.R[1][0] > 0.9
    assert frozen.G[1] == frozen.G[0] and frozen.R[0][0] < frozen.R[1][0] < naive.R[1][0]


def test_scenarios_decide_what_is_known_at_test_time(tmp_path: Path) -> None:
    chances = {}
    for scenario in ("task", "class"):
        sequence = {"name": "digits-split", "scenario": scenario, "train_size": 24, "validation_size": 4}
        (record,) = run_study(small_study("micro-vision", sequence=sequence), tmp_path / scenario)
        chances[scenario] = {task.chance for task in record.tasks}
    assert chances == {"task": {1 / 2}, "class": {1 / 6}}


def test_runs_from_before_there_were_scenarios_keep_their_names() -> None:
    plain = RunConfig(model="micro", sequence=SequenceConfig(name="micro-5"), mitigation="naive", seed=0)
    named = RunConfig(
        model="micro", sequence=SequenceConfig(name="micro-5", scenario="task"), mitigation="naive", seed=0
    )
    assert plain.hash == "863bae75edea" and named.hash != plain.hash


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("micro-vision", {"evaluation": {"suite": "blimp"}}, "is of text; a vision model's capability"),
        ("micro-vision", {"pretraining": {"source": "self"}}, "is a classifier of images; give an npz file"),
        ("micro-encoder", {"pretraining": {"source": "self"}}, "is an encoder, which writes none; give a text"),
        ("micro-encoder", {"training": {"steps": 4, "packing": True}}, "packing: is for decoders"),
        ("micro-encoder", {"sequence": "micro-5"}, "metric 'exact_match' needs a model that writes"),
        ("micro-encoder", {"sequence": "digits-split"}, "is of images, and model 'micro-encoder' reads text"),
        ("micro-vision", {"sequence": "micro-5"}, "is of text, and model 'micro-vision' reads images"),
    ],
)
def test_what_does_not_fit_is_one_line_before_training(model: str, changes: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        run_study(small_study(model, **changes), tmp_path / "small")
    assert said in str(error.value) and "\n" not in str(error.value)
