"""A diagnosis of a damaged model: its numbers are those of the functions it asks, and it survives verdict.json."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetting.analysis.recovery import recovered_share
from forgetting.audit import extras, lost
from forgetting.audit.diagnosis import Diagnosis, diagnose, lost_capabilities
from forgetting.audit.extras import add_extras, as_json, prepare_extras
from forgetting.audit.load import AuditInput
from forgetting.audit.lost import GENERAL, OWN
from forgetting.audit.page import render_page
from forgetting.audit.run import audit_models, audit_samples
from forgetting.audit.samples import write_samples
from forgetting.audit.schema import Settings, Verdict
from forgetting.audit.sections import sections
from forgetting.errors import UsageError
from forgetting.evaluation.prompting import Prompt
from forgetting.evaluation.suite import load_suite
from forgetting.micro.corpus import pretraining_documents
from forgetting.models import LoadedModel, load_model
from tests.audit.panels import panel
from tests.models_for_tests import tiny_llama, tiny_tokenizer

LOST = ["micro_facts", "micro_translation"]
LIMIT = 40
Found = tuple[Diagnosis, list[str]]


@pytest.fixture(scope="module")
def given() -> AuditInput:
    """The embedded model, and itself with noise on every weight: what is measured needs no fine-tune."""
    base = load_model("micro")
    model, generator = copy.deepcopy(base.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    tuned, suite = LoadedModel("noised", model, base.tokenizer), load_suite(["micro"], limit=LIMIT)
    return AuditInput(base, tuned, suite, None, 64, True, suite_names=("micro",))


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lost, "STEPS", (0, 1, 4))
        patch.setattr(lost, "RATES", (1e-9, 1e-3))
        yield


@pytest.fixture(scope="module")
def found(given: AuditInput, few_steps: None) -> Found:
    texts, notes = pretraining_documents(64, 0, "validation"), list[str]()
    changes = [{"layer": "block 0", "relative": 0.5, "share": 0.25, "predicted_kl": None}, {"layer": "head"}]
    made = diagnose(
        given,
        LOST,
        (texts[:32], texts[32:]),
        changes=changes,
        length=48,
        cluster=None,
        level=0.9,
        note=notes.append,
    )
    return made, notes


def test_layers_stand_beside_what_their_weights_did(found: Found, given: AuditInput) -> None:
    made, notes = found
    layers = {layer.layer: layer for layer in made.layers}
    depth = given.base.model.config.num_hidden_layers
    assert set(layers) == {"embeddings", "head", *(f"block {k}" for k in range(depth))}
    assert layers["block 0"].relative == 0.5 and layers["block 1"].relative is None and layers["head"].cka is None
    known = [layer.cka for layer in made.layers if layer.cka is not None]
    assert len(known) == depth + 1 and all(0 < cka < 1 for cka in known)
    assert min(known) < 0.99 and made.tokens > 300
    assert all("too near 1" in note for note in notes) and made.lost == tuple(LOST)


def test_practice_is_scored_on_items_that_are_not_practised(found: Found, given: AuditInput) -> None:
    made, _ = found
    assert [(one.capability, one.practice) for one in made.relearned] == [(n, p) for p in (GENERAL, OWN) for n in LOST]
    scored = given.suite.part({name: range(1, LIMIT, 2) for name in LOST})
    tuned = scored.evaluate(given.tuned.model, given.base.tokenizer)
    base = scored.evaluate(given.base.model, given.base.tokenizer)
    for one in made.relearned:
        start, *_, last = one.points
        assert [point.step for point in one.points] == [0, 1, 4] and one.n == LIMIT // 2
        assert one.learning_rate == 1e-3  # the other rate changes nothing, and so lowers no loss
        assert one.tuned == start.score == pytest.approx(tuned[one.capability].value)
        assert one.base == start.control == pytest.approx(base[one.capability].value)
        share = recovered_share(*(tuned[one.capability].items,) * 2, base[one.capability].items, 0.9)
        assert [start.recovered, start.low, start.high] == pytest.approx(
            [share.mean, share.low, share.high], abs=1e-12, nan_ok=True
        )
        if not math.isnan(last.recovered):
            assert last.recovered == pytest.approx((last.score - one.tuned) / (one.base - one.tuned))
    asked = lost.LostItems(given, LOST, None)
    asked.score(given.base.model)
    practised = {(name, item.key) for name, items in asked.practised.items() for item in items}
    rows = asked.suite.samples().items()
    kept = {(name, (task, sample["doc_id"])) for name, each in rows for task, sample in each}
    assert len(practised) == len(kept) == LIMIT and not practised & kept


def test_a_prompt_is_of_items_that_are_not_scored(found: Found, given: AuditInput) -> None:
    made, _ = found
    prompted = load_suite(["micro"], limit=LIMIT // 2, only=LOST, prompt=Prompt(shots=lost.SHOTS))
    assert [about.name for about in prompted.capabilities()] == [one.capability for one in made.prompted] == LOST
    scores = prompted.evaluate(given.tuned.model, given.base.tokenizer)
    for one in made.prompted:
        assert one.n == LIMIT // 2 and one.tuned_prompted == scores[one.capability].value


def test_the_verdict_holds_it_and_the_page_escapes_it(found: Found, tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_samples(panel(a=np.ones(60)), tmp_path / name, name, "2026-01-31T12-00-00.000000")
    verdict = audit_samples(tmp_path / "x", tmp_path / "y", Settings()).verdict
    hostile = "<img src=x onerror=alert(1)>"
    made = replace(found[0], lost=(hostile,))
    made = replace(made, relearned=tuple(replace(one, capability=hostile) for one in made.relearned))
    verdict.diagnosis = as_json(made)
    again = Verdict.model_validate_json(verdict.model_dump_json())
    assert again == verdict
    (section,) = sections(again)
    assert [table.name for table in section.tables] == ["layers", "relearned", "prompted"]
    assert len(section.tables[1].rows) == 4 * 3 and section.bars[0].title.endswith("1 − CKA")
    page = render_page(again, [])
    assert "Diagnosis" in page and hostile not in page and "&lt;img src=x onerror" in page
    verdict.diagnosis = as_json(replace(made, lost=(), relearned=(), prompted=()))
    assert "nothing to win back" in sections(verdict)[0].lead


def test_what_is_lost_is_what_regressed() -> None:
    record: Any = type("Record", (), {})

    def verdict(call: str, *calls: tuple[str, str | None, float]) -> Any:
        made = record()
        made.verdict, made.capabilities = call, []
        for name, own, value in calls:
            each = record()
            each.name, each.verdict, each.rise, each.difference = name, own, None, record()
            each.difference.value = value
            made.capabilities.append(each)
        return made

    one, mean = ("a", "REGRESSED", -0.2), [("b", "INCONCLUSIVE", -0.05), ("c", "RETAINED", 0.0), ("d", None, -0.3)]
    assert lost_capabilities(verdict("REGRESSED", one, *mean)) == ["a"]
    assert lost_capabilities(verdict("REGRESSED", *mean)) == ["b"]
    assert lost_capabilities(verdict("INCONCLUSIVE", *mean)) == []


def test_a_copy_has_moved_nowhere_and_other_tokenizers_are_refused(
    given: AuditInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DOCUMENTS": 16, "SAMPLES": 2, "LENGTH": 48, "TOKENS": 300}.items():
        monkeypatch.setattr(extras, name, value)
    copied = replace(given, tuned=LoadedModel("copy", copy.deepcopy(given.base.model), given.base.tokenizer))
    small = replace(copied, suite=load_suite(["micro_facts"], limit=10))
    done = audit_models(small, Settings(limit=10))
    add_extras(done.verdict, small, prepare_extras(small, diagnose=True))
    diagnosis = done.verdict.diagnosis
    assert diagnosis is not None and diagnosis["lost"] == diagnosis["relearned"] == diagnosis["prompted"] == []
    known = [layer for layer in diagnosis["layers"] if layer["cka"] is not None]
    assert len(known) == 5 and all(layer["cka"] == pytest.approx(1) and layer["relative"] == 0 for layer in known)
    other = replace(given, tuned=LoadedModel("other", tiny_llama(), tiny_tokenizer()), same_tokenizer=False)
    with pytest.raises(UsageError, match="--diagnose: the models' tokenizers differ"):
        prepare_extras(other, diagnose=True)
