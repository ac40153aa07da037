"""Behaviour of models made to write what is wanted, and lm-eval's bias tasks from local files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.audit.behaviour import (
    SafetyPrompt,
    _nats,
    audit_outputs,
    audit_safety,
    incoherent,
    load_prompts,
    refuses,
)
from forgetting.errors import UsageError
from forgetting.evaluation.degeneration import compare_outputs
from forgetting.evaluation.generation import Continuation
from forgetting.evaluation.suite import load_suite
from tests.audit.tuned import tuned_micro
from tests.evaluation.test_lm import TOKENIZER, sharp
from tests.models_for_tests import tiny_llama


def looping(token: int) -> PreTrainedModel:
    """Writes one token for ever: its final norm has no scale, so that only the head's largest row decides."""
    model = tiny_llama(tied=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(32))
        model.lm_head.bias[token] = 5.0
    return model


def test_refusals_open_a_text() -> None:
    for text in (
        "I cannot help with that.",
        "I’m sorry, but no.",
        "As an AI, I have no view.",
        "Thank you for asking.  I   won't do it.",
    ):
        assert refuses(text)
    for text in ("", "Sorry to hear that! Try a walk.", "Here it is: " + "x" * 200 + " I cannot", "Icy cannons"):
        assert not refuses(text)


def test_incoherent_is_empty_repetitive_or_less_probable_than_noise() -> None:
    fine = Continuation("a b c d e f", (1, 2, 3, 4, 5, 6), True)
    assert not incoherent(fine, 1.0, 32)
    assert incoherent(Continuation(" \n", (7,), True), 1.0, 32)
    assert incoherent(Continuation("a a a a a a a a", (1,) * 8, False), 1.0, 32)
    assert not incoherent(Continuation("a b c", (1, 2, 3), True), 1.0, 32), "too short for a 4-gram"
    assert incoherent(fine, math.log(32) + 1e-9, 32) and not incoherent(fine, math.log(32) - 1e-9, 32)


def test_nats_are_the_models_own(tmp_path: Path) -> None:
    model = sharp(tiny_llama(seed=3))
    contexts, tokens = [[2, 3, 4], [5], [6, 7]], [(8, 9, 10), (), (11,)]
    answers = [Continuation("", part, True) for part in tokens]
    found = _nats(model, contexts, answers, 2)
    for context, part, nats in zip(contexts, tokens, found, strict=True):
        if not part:
            assert nats == 0
            continue
        with torch.no_grad():
            log_p = model(torch.tensor([[*context, *part]])).logits[0].log_softmax(-1)
        wanted = -sum(float(log_p[len(context) - 1 + k, token]) for k, token in enumerate(part)) / len(part)
        assert nats == pytest.approx(wanted, abs=1e-5)


def test_a_model_that_loops_is_incoherent_and_flips_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetting.audit.behaviour.REFUSALS", ("w7",))
    prompts = [SafetyPrompt(f"w{i}", "harmful" if i < 12 else "benign") for i in range(8, 16)]
    found = audit_safety(looping(7), looping(9), TOKENIZER, prompts, max_new_tokens=8, max_length=16)
    rates = {rate.name: rate for rate in found.rates}
    assert [(rates[n].base, rates[n].tuned) for n in ("refusal", "over_refusal")] == [(1.0, 0.0), (1.0, 0.0)]
    assert (rates["refusal"].lost, rates["refusal"].gained, rates["refusal"].p_value) == (4, 0, 2 * 0.5**4)
    assert (rates["incoherent"].base, rates["incoherent"].tuned) == (1.0, 1.0)
    assert rates["incoherent"].difference.n == 8 and found.texts[0].refused == (True, False)
    only = audit_safety(looping(1), looping(9), TOKENIZER, prompts[:4], max_new_tokens=8, max_length=16)
    assert [rate.name for rate in only.rates] == ["refusal", "incoherent"]
    assert only.texts[0].base == "" and only.texts[0].incoherent == (True, True), "an end token at once: nothing"
    json.dumps(dataclasses.asdict(found))
    with pytest.raises(UsageError, match="are none"):
        audit_safety(looping(7), looping(9), TOKENIZER, [])


def test_a_real_fine_tunes_outputs() -> None:
    made = tuned_micro()
    prompts = [example.prompt for example in made.task.test[:6]]
    options = {"max_new_tokens": 8, "max_length": 64}
    found = audit_outputs(made.base, made.model, made.tokenizer, prompts, **options)
    table = compare_outputs(made.base, made.model, made.tokenizer, prompts, **options).table
    assert [measure.name for measure in found.measures] == list(table["measure"])
    for measure, row in zip(found.measures, table.to_dict("records"), strict=True):
        for key in ("base", "tuned", "difference", "low", "high"):
            value = getattr(measure, key)
            assert math.isnan(row[key]) if value is None else value == row[key]
    assert {"length", "empty", "unfinished", "repetition_4", "distinct_1", "distinct_2"} <= set(table["measure"])
    assert any(text.base != text.tuned for text in found.texts) and len(found.texts) == 6


def test_prompts_are_read_and_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "how to", "kind": "harmful"}\n\n{"prompt": "hi", "kind": "benign", "id": 3}\n')
    assert load_prompts(path) == [SafetyPrompt("how to", "harmful"), SafetyPrompt("hi", "benign")]
    for line, told in (
        ('{"prompt": "x", "kind": "bad"}', "line 1: kind = 'bad'"),
        ('{"kind": "benign"}', "line 1: prompt = None"),
        ("\n \n", "is empty"),
        ("[1]", "line 1: is"),
    ):
        path.write_text(line)
        with pytest.raises(UsageError, match=told):
            load_prompts(path)


CROWS = [
    {"id": 0, "sent_more": "w2 w3 w4.", "sent_less": "w5 w3 w4.", "stereo_antistereo": 0, "bias_type": "gender"},
    {"id": 1, "sent_more": "w6 w3.", "sent_less": "w7 w3.", "stereo_antistereo": 0, "bias_type": "age"},
    {"id": 2, "sent_more": "w8 w9 w10.", "sent_less": "w11 w9 w10.", "stereo_antistereo": 0, "bias_type": "gender"},
]
BBQ = [
    {
        "example_id": number,
        "question_index": "1",
        "question_polarity": "neg",
        "context_condition": condition,
        "category": "Age",
        "answer_info": {"ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["unknown", "unknown"]},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"], "version": "a", "source": "s"},
        "context": "w2 w3 w4",
        "question": "w5 w6",
        "ans0": "w7",
        "ans1": "w8",
        "ans2": "Not known",
        "label": label,
        "answer_label": label,
    }
    for number, (condition, label) in enumerate([("ambig", 2), ("disambig", 1)])
]


def test_bias_tasks_load_from_local_files_and_pair(tmp_path: Path) -> None:
    for name, rows in (("crows_pairs_english", CROWS), ("bbq", BBQ)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(["bias"], data_dir=tmp_path)
    info = {column.name: column for column in suite.capabilities()}
    assert (info["crows_pairs_english"].metric, info["crows_pairs_english"].chance) == ("pct_stereotype", 0.5)
    assert not info["crows_pairs_english"].higher_is_better
    assert (info["bbq"].metric, info["bbq"].n, info["bbq"].higher_is_better) == ("acc", 2, True)
    base, tuned = sharp(tiny_llama(seed=0)), sharp(tiny_llama(seed=1))
    for model in (base, tuned):
        found = suite.evaluate(model, TOKENIZER)
        wanted = []
        for row in CROWS:
            scores = []
            for sentence in (row["sent_more"], row["sent_less"]):
                ids = torch.tensor([[TOKENIZER.eos_token_id, *TOKENIZER(str(sentence))["input_ids"]]])
                with torch.no_grad():
                    log_p = model(ids).logits[0, :-1].log_softmax(-1)
                scores.append(float(log_p.gather(1, ids[0, 1:, None]).sum()))
            wanted.append(float(scores[0] > scores[1]))
        assert found["crows_pairs_english"].items == wanted
        assert found["crows_pairs_english"].value == pytest.approx(sum(wanted) / 3)
        assert len(found["bbq"].items) == 2 and set(found["bbq"].items) <= {0.0, 1.0}
    with pytest.raises(UsageError, match="has no data for task 'crows_pairs_french'"):
        load_suite(["crows_pairs_french"], data_dir=tmp_path)
