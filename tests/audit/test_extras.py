"""Drift and advice of a real fine-tune: measured, written as JSON, and shown from that JSON alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetting.audit import extras
from forgetting.audit.edits import check_mixable
from forgetting.audit.extras import as_json, general_documents, measure_extras, prepare_extras
from forgetting.audit.load import AuditInput, load_input, other_base
from forgetting.audit.page import render_page
from forgetting.audit.run import audit_samples
from forgetting.audit.samples import write_samples
from forgetting.audit.schema import Settings, Verdict
from forgetting.audit.sections import sections
from forgetting.cli import main
from forgetting.errors import UsageError
from forgetting.models import LoadedModel, load_model
from tests.audit.panels import panel
from tests.models_for_tests import tiny_llama, tiny_tokenizer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DOCUMENTS": 8, "SAMPLES": 2, "LENGTH": 48, "TOKENS": 300, "PROMPTS": 8}.items():
        monkeypatch.setattr(extras, name, value)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """The embedded model with one layer moved: what is measured needs no training."""
    loaded = load_model("micro")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.model.layers[2].parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    loaded.model.save_pretrained(tmp_path / "tuned")
    loaded.tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def a_verdict(tmp_path: Path) -> Verdict:
    for name in ("x", "y"):
        write_samples(panel(a=np.ones(60)), tmp_path / name, name, "2026-01-31T12-00-00.000000")
    return audit_samples(tmp_path / "x", tmp_path / "y", Settings()).verdict


def test_drift_behaviour_and_advice_of_a_fine_tune(small: None, tuned: Path, tmp_path: Path) -> None:
    own = [
        {"prompt": f"{i} plus 1 is", "completion": f" {i + 1}", "choices": [f" {i}", f" {i + 1}"]} for i in range(40)
    ]
    asked = [{"prompt": f"question {kind} :", "kind": kind} for kind in ("harmful", "benign")]
    data, prompts = write_lines(tmp_path / "own.jsonl", own), write_lines(tmp_path / "asked.jsonl", asked)
    given = load_input("micro", str(tuned), data=data, limit=2)
    said: list[str] = []
    wanted = prepare_extras(given, prompts=prompts, advise=True, save_best=tmp_path / "best")
    found = measure_extras(given, wanted, said.append)
    assert found.notes == [] and found.drift is not None and found.advice is not None
    texts = found.drift["texts"]
    assert set(texts) == {"general text", "the base's own samples", "task_inputs", "task_answers"}
    assert texts["general text"]["mean"] > 1e-4 and texts["general text"]["p999"] is None  # too few tokens for one
    weights = found.drift["weights"]
    assert {layer["layer"] for layer in weights["layers"] if layer["change"] > 0} == {"block 2"}
    assert weights["measured_kl"] == texts["general text"]["mean"] and weights["predicted_kl"] > 0
    assert "advice 1/18, base" in said
    behaviour = found.behaviour
    assert behaviour is not None and behaviour["outputs"]["measures"][0]["n"] == 8
    assert [rate["name"] for rate in behaviour["safety"]["rates"]] == ["refusal", "over_refusal", "incoherent"]
    alpha = found.advice["best"]["alpha"]
    saved, base, moved = (load_model(str(m)).model.state_dict() for m in (tmp_path / "best", "micro", tuned))
    name = "model.layers.2.self_attn.q_proj.weight"
    torch.testing.assert_close(saved[name], base[name] + alpha * (moved[name] - base[name]))
    # From what verdict.json says, after a round trip, alone.
    verdict = a_verdict(tmp_path)
    verdict.drift, verdict.behaviour, verdict.advice = found.drift, found.behaviour, found.advice
    again = Verdict.model_validate_json(verdict.model_dump_json())
    assert again == verdict
    drift, wrote, advice = sections(again)
    assert [table.name for table in wrote.tables] == ["outputs", "safety"] and len(wrote.tables[1].rows) == 3
    assert [table.name for table in drift.tables] == ["drift", "weights"] and len(drift.bars[0].rows) == 6
    assert len(advice.tables[0].rows) == 18 and advice.scatter is not None and len(advice.scatter.points) == 18
    page = render_page(again, [])
    assert "What would have helped" in page and "rank 4 of Δ" in page and page.count("<circle") >= 18


def test_of_other_tokenizers_nothing_is_compared_by_token(small: None) -> None:
    base = load_model("micro")
    other = LoadedModel("other", tiny_llama(), tiny_tokenizer())
    given = AuditInput(base, other, None, None, 8, False)  # type: ignore[arg-type]  # no suite is read
    found = measure_extras(given, prepare_extras(given))
    assert found.drift is not None and found.drift["texts"] is None and found.drift["weights"] is None
    assert found.drift["bits_per_byte"]["tuned"] > found.drift["bits_per_byte"]["base"] > 0
    assert len(found.notes) == 1 and found.notes[0].startswith("Weights are not compared: tuned model:")
    assert general_documents(replace(given, base=other), None) == []  # no text is known of it
    with pytest.raises(UsageError, match="--advise: needs the own task"):
        prepare_extras(given, advise=True)


def test_a_short_text_is_shared_between_drift_and_fisher(small: None, tuned: Path, tmp_path: Path) -> None:
    story = "Biki lives in Lella . the hunter with the dogs swims . " * 2
    (tmp_path / "text.txt").write_text("\n\n".join(f"{k} minus 1 is {k - 1} . {story}" for k in range(1, 11)))
    given = load_input("micro", str(tuned), limit=2)
    found = measure_extras(given, prepare_extras(given, text=str(tmp_path / "text.txt")))
    assert found.drift is not None and found.notes == [] and found.behaviour is None
    assert found.drift["texts"]["general text"]["tokens"] > 20 and found.drift["weights"]["predicted_kl"] > 0


def test_what_is_not_finite_is_no_json_number() -> None:
    content = as_json({1: (float("nan"), float("inf"), 2.0), "a": None})
    assert content == {"1": [None, None, 2.0], "a": None} and json.dumps(content, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--save-best", "best"], "--save-best: is what --advise chooses"),
        (["--advise"], "--advise: needs the own task"),
        (["--advise", "--data", "own.jsonl", "--no-drift"], "--no-drift: leaves nothing"),
        (["--diagnose", "--no-drift"], "--no-drift: leaves nothing"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["forgetting", "audit", "micro", "micro", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompts", "nowhere.jsonl"], "prompts 'nowhere.jsonl': no such file"),
        (["--advise", "--data", "own.jsonl", "--save-best", "."], "save-best '.': is not an empty folder"),
        (["--advise", "--data", "own.jsonl"], "--advise: the own task's test split has 1 items; it needs 2"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_lines(tmp_path / "own.jsonl", [{"prompt": f"{i} plus 1 is", "completion": f" {i + 1}"} for i in range(5)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["forgetting", "audit", "micro", "micro", "--limit", "2", *arguments])
    monkeypatch.setattr("forgetting.audit.run.audit_models", lambda *_: pytest.fail("scored first"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_diverged_fine_tune_has_its_verdict(
    small: None, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(tuned))
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    loaded.model.save_pretrained(tuned)
    own = [
        {"prompt": f"{i} plus 1 is", "completion": f" {i + 1}", "choices": [f" {i}", f" {i + 1}"]} for i in range(40)
    ]
    asked = [{"prompt": f"question {kind} :", "kind": kind} for kind in ("harmful", "benign")]
    data, prompts = write_lines(tmp_path / "own.jsonl", own), write_lines(tmp_path / "asked.jsonl", asked)
    options = ["--limit", "60", "--data", str(data), "--prompts", str(prompts), "--advise", "-o", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["forgetting", "audit", "micro", str(tuned), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    verdict = Verdict.model_validate_json((tmp_path / "out" / "verdict.json").read_text())
    assert stop.value.code == 3 and verdict.verdict == "REGRESSED"
    said = "layers.1.mlp.up_proj.weight of the tuned model has values that are not finite"
    assert set(verdict.inputs_sha256) == {"own_data", "general_text", "safety_prompts"}
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert verdict.inputs_sha256["own_data"] in card and "a fifth of the file" in card
    assert any(said in note for note in verdict.notes) and verdict.advice is None


def test_an_adapter_of_another_base_is_noted() -> None:
    base = load_model("micro")
    given = AuditInput(base, base, None, None, 8, True)  # type: ignore[arg-type]  # no suite is read
    assert other_base(given) == []
    for name in ("somewhere/micro", base.model.name_or_path, None):
        assert other_base(replace(given, adapter={"base_model_name_or_path": name})) == []
    (note,) = other_base(replace(given, adapter={"base_model_name_or_path": "owner/another"}))
    assert "'owner/another'" in note and "'micro'" in note


def test_models_that_compute_otherwise_are_not_mixed() -> None:
    base = load_model("micro")
    other = copy.deepcopy(base.model)
    other.config.attention_dropout, other.config.use_cache = 0.5, False
    check_mixable(base.model, other)  # nothing that is computed differs
    other.config.rms_norm_eps = 0.1
    with pytest.raises(UsageError, match=r"rms_norm_eps = 0\.1, the base model's"):
        check_mixable(base.model, other)
    more = copy.deepcopy(base.model)
    more.extra = torch.nn.Linear(1, 1)
    with pytest.raises(UsageError, match=r"has a parameter extra\.weight"):
        check_mixable(base.model, more)
