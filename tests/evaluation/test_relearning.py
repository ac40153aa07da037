"""Relearning: the tuned model stays as it is, k steps are k steps, and what was hidden comes back before the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.analysis.recovery import recovery_table
from forgetting.errors import RunFailed
from forgetting.evaluation.relearning import STEPS, relearning_curve
from forgetting.evaluation.suite import CapabilityScore
from forgetting.micro.corpus import pretraining_documents
from forgetting.models import load_model
from forgetting.tasks.encode import encode_examples, encode_texts
from forgetting.tasks.task import Example
from forgetting.trainer import mean_loss, padded_batches
from tests.evaluation.test_lm import TOKENIZER
from tests.mitigations.test_conformance import TEXT
from tests.models_for_tests import tiny_llama

FEATURES = encode_texts(TOKENIZER, TEXT, 16)


def copied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def curve(model: PreTrainedModel, **changes: Any) -> list[tuple[int, dict[str, torch.Tensor]]]:
    options = {"learning_rate": 1e-3, "steps": (0, 1, 3), "batch_size": 4, **changes}
    return relearning_curve(model, FEATURES, TOKENIZER, copied, **options)


def test_the_model_stays_as_it_is_and_a_step_does_not_depend_on_those_after_it() -> None:
    model = tiny_llama()
    before = copied(model)
    points = curve(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and not model.training
    assert [step for step, _ in points] == [0, 1, 3]
    assert all(torch.equal(points[0][1][name], before[name]) for name in before)
    assert not any(torch.equal(points[1][1][name], before[name]) for name in before)
    fewer, others = curve(model, steps=[1]), curve(model, steps=[1], seed=1)
    assert [step for step, _ in fewer] == [1]
    assert all(torch.equal(points[1][1][name], fewer[0][1][name]) for name in before)
    assert not all(torch.equal(others[0][1][name], fewer[0][1][name]) for name in before)


def test_the_first_step_is_adams_at_the_full_rate() -> None:
    """AdamW's first step moves every weight with a gradient by the learning rate: m/√v is its sign."""
    (_, start), (_, end) = curve(tiny_llama(tied=False), steps=[0, 1], learning_rate=1e-3)
    moved = (end["lm_head.weight"] - start["lm_head.weight"]).abs().flatten()
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-2)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="features: there is none"):
        relearning_curve(tiny_llama(), [], TOKENIZER, copied, learning_rate=1e-3)
    for steps in ([], [0], [-1, 2]):
        with pytest.raises(ValueError, match="give steps from 0 on, at least one above 0"):
            curve(tiny_llama(), steps=steps)
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="loss is nan"):
        curve(broken)


def test_a_hidden_capability_comes_back_sooner_than_one_that_was_never_there() -> None:
    """The embedded model, tuned to answer everything with one word, against one of random weights."""
    loaded = load_model("micro")
    tokenizer = loaded.tokenizer
    texts = pretraining_documents(60, 0, "validation")
    batches = [padded_batches([feature], tokenizer, 1) for feature in encode_texts(tokenizer, texts[:12], 32)]

    def score(model: PreTrainedModel) -> dict[str, CapabilityScore]:
        items = [mean_loss(model, batch) for batch in batches]
        return {"text": CapabilityScore(sum(items) / len(items), items)}

    narrow = encode_examples(tokenizer, [Example(text, " the") for text in texts[12:28]], 48)
    *_, (_, tuned) = relearning_curve(
        loaded.model, narrow, tokenizer, copy.deepcopy, learning_rate=1e-3, steps=[15], batch_size=8
    )
    blank = type(loaded.model)(loaded.model.config)
    base = score(loaded.model)
    relearn = encode_texts(tokenizer, texts[28:], 48)
    tables = []
    for model in (tuned, blank):
        points = relearning_curve(model, relearn, tokenizer, score, learning_rate=1e-3, steps=[0, 2, 10])
        assert points[0][1]["text"].items == score(model)["text"].items
        tables.append(recovery_table(points, base).set_index("step"))
    hidden, gone = tables
    assert hidden.loc[0, "score"] > base["text"].value + 0.5
    assert hidden.loc[0, "recovered"] == 0 and hidden.loc[10, "low"] > 0.5
    assert gone.loc[10, "high"] < hidden.loc[10, "low"]
    assert max(STEPS) == 20
