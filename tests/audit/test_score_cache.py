"""Scores that are kept: found for the same model, prompts, code and precision alone, and never when damaged."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.audit import score_cache
from forgetting.audit.load import AuditInput, load_input
from forgetting.audit.measure import measure
from forgetting.audit.run import audit_models
from forgetting.audit.schema import Settings
from forgetting.audit.score_cache import ScoreCache, score_key
from forgetting.errors import UsageError
from forgetting.evaluation.budget import Slots
from forgetting.evaluation.suite import Suite, load_suite
from forgetting.models import LoadedModel, load_model
from tests.evaluation.test_lm import request
from tests.models_for_tests import save_tiny, tiny_llama, tiny_tokenizer

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
ANSWERS: list[Any] = [(-1.5, True), -0.1 - 0.2, "w3 é\n"]


@pytest.fixture
def key() -> dict[str, Any]:
    return {"weights": "a", "prompts": "b"}


def changed(model: PreTrainedModel) -> PreTrainedModel:
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = next(other.parameters()).view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(1.0))
    return other


def keyed(
    model: PreTrainedModel, texts: tuple[str, str] = ("w3", " w4"), size: Any = 64, **more: Any
) -> dict[str, Any]:
    requests = [request("loglikelihood", texts, 0, "task"), request("loglikelihood_rolling", ("w5 w6",), 1, "task")]
    return score_key(model, more.get("tokenizer", tiny_tokenizer()), requests, size)


def test_each_part_of_the_key_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    first = keyed(model)
    assert keyed(tiny_llama()) == first == json.loads(json.dumps(first))

    def differing(other: dict[str, Any]) -> set[str]:
        return {name for name in first if first[name] != other[name]}

    assert differing(keyed(changed(model))) == {"weights"}  # by the last bit of one weight
    shorter = tiny_llama()
    shorter.config.rms_norm_eps *= 2
    assert differing(keyed(shorter)) == {"weights"}
    assert differing(keyed(model, ("w3", " w5"))) == differing(keyed(model, ("w3 w4", ""))) == {"prompts"}
    lower = tiny_tokenizer()
    lower.add_tokens(["w3 "])
    assert differing(keyed(model, tokenizer=lower)) == {"prompts"}
    assert differing(keyed(model, size=32)) == differing(keyed(model, size=Slots(64))) == {"batch_size"}
    assert differing(keyed(tiny_llama(dtype=torch.bfloat16))) == {"weights", "precision"}
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert differing(keyed(model)) == {"precision"}
    finally:
        torch.set_float32_matmul_precision(before)
    monkeypatch.setattr(score_cache, "source_digest", lambda: "changed")
    assert differing(keyed(model)) == {"code"}


def test_what_was_scored_is_found_bit_for_bit(tmp_path: Path, key: dict[str, Any]) -> None:
    cache = ScoreCache(tmp_path / "new" / "folder")
    assert cache.responses(key, KINDS, lambda: ANSWERS) == ANSWERS and cache.found == 0
    again = ScoreCache(cache.folder).responses(key, KINDS, lambda: pytest.fail("scored again"))
    assert again == ANSWERS and [type(answer) for answer in again] == [tuple, float, str]
    other = ScoreCache(cache.folder)
    assert other.responses({**key, "weights": "c"}, KINDS, lambda: [(0.0, False), 1.0, ""]) == [(0.0, False), 1.0, ""]
    assert other.found == 0 and len(list(cache.folder.iterdir())) == 2


def swap(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def rewritten(text: str, **changes: Any) -> str:
    """A file whose checksum is right."""
    content = json.loads(text) | changes
    return json.dumps(content | {"sha256": score_cache._digest(content["responses"])})


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a digit": lambda text: swap(text, "-1.5", "-1.4"),
    "other key": lambda text: rewritten(text, key={"weights": "of another model"}),
    "version": lambda text: rewritten(text, version=0),
    "fewer": lambda text: rewritten(text, responses=[[-1.5, True]]),
    "kinds": lambda text: rewritten(text, responses=[["-1.5", True], -0.3, "w3"]),
    "no list": lambda text: rewritten(text, responses={"a": 1}),
    "no object": lambda text: "[]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_passed_over_in_one_line(
    damage: str, tmp_path: Path, key: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cache = ScoreCache(tmp_path)
    cache.responses(key, KINDS, lambda: ANSWERS)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        assert cache.responses(key, KINDS, lambda: ANSWERS) == ANSWERS
    (record,) = caplog.records
    assert path.name in record.getMessage() and "\n" not in record.getMessage() and cache.found == 0
    assert path.read_text() == whole  # written anew
    path.write_bytes(b"\xff\xfe")
    assert cache.responses(key, KINDS, lambda: ANSWERS) == ANSWERS and cache.found == 0


def test_a_base_is_scored_once_for_two_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_model("micro")
    asked: list[PreTrainedModel] = []
    ask = Suite.responses

    def noted(self: Suite, model: PreTrainedModel, *rest: Any) -> Any:
        asked.append(model)
        return ask(self, model, *rest)

    monkeypatch.setattr(Suite, "responses", noted)
    settings, found, suite = Settings(limit=4), {}, load_suite(["micro_copying"], limit=4)
    for name, tuned in (("one", changed(base.model)), ("two", changed(changed(base.model))), ("again", None)):
        other = LoadedModel(name, tuned or changed(base.model), base.tokenizer)
        cache = ScoreCache(tmp_path)
        found[name] = audit_models(AuditInput(base, other, suite, None, 64, True, cache=cache), settings).verdict
        # Base, base at another batch size, and tuned: the A/A run is not answered with what it is compared to.
        assert cache.found == {"one": 0, "two": 2, "again": 3}[name]
    assert [model is base.model for model in asked] == [True, True, False, False]
    assert found["again"].capabilities == found["one"].capabilities
    told = "that were kept are not computed again"
    assert not any(told in note for note in found["one"].notes) and any(told in note for note in found["two"].notes)
    panel = measure(base, suite, 64)
    kept = measure(base, suite, 64, ScoreCache(tmp_path))
    assert [i.log_probs for c in kept.values() for i in c.items] == [
        i.log_probs for c in panel.values() for i in c.items
    ]


def test_a_folder_that_cannot_be_made_is_told_before_models_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--cache .*file': cannot be a folder"):
        load_input("no model", "no model", cache=tmp_path / "file")
    folder = str(save_tiny(tmp_path / "model"))
    given = load_input(folder, folder, suite=["micro_copying"], limit=2, cache=tmp_path / "kept")
    assert given.cache is not None and given.cache.folder == tmp_path / "kept" and given.slots is None
