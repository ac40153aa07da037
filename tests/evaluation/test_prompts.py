"""Models that read virtual tokens before their input, against the base model that reads the tokens themselves."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.evaluation.drift import DriftMeter, weight_change
from forgetting.evaluation.encoding import encode_pair
from forgetting.evaluation.generation import PreparedGenerations
from forgetting.evaluation.lm import SharedContextLM
from forgetting.evaluation.scores import TaskScorer
from forgetting.evaluation.suite import Suite
from forgetting.mitigations import build_mitigation
from forgetting.models import logits_before, prompt_length
from tests.evaluation.test_drift import DOCUMENTS, brute_force
from tests.evaluation.test_lm import MODELS, TOKENIZER, multiple_choice, request, words
from tests.evaluation.test_scores import CHOICES, task
from tests.mitigations.test_conformance import context

VIRTUAL = [5, 6, 7]


class Prepended(torch.nn.Module):
    """The reference: the base model, with the tokens before what it is given, one sequence at a time."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids: torch.Tensor) -> Any:
        assert ids.shape[0] == 1
        return self.base(torch.cat([torch.tensor([VIRTUAL]), ids], 1))


@pytest.fixture(
    params=[(name, method) for name in MODELS for method in ("prompt_tuning", "prefix_tuning")],
    ids=lambda pair: f"{pair[0]}-{pair[1]}",
    scope="module",
)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    name, method = request.param
    base = MODELS[name]
    mitigation = build_mitigation(f"{method}:length=3,text=w5 w6 w7")
    return base, mitigation.setup(copy.deepcopy(base), context()).eval()


Pair = tuple[PreTrainedModel, PreTrainedModel]


def log_prob(base: PreTrainedModel, prompt: str, completion: str) -> tuple[float, bool]:
    ids, target = encode_pair(TOKENIZER, prompt, completion)
    total, greedy = 0.0, True
    for k, token in enumerate(target):
        logits = Prepended(base)(torch.tensor([ids + target[:k]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


def greedy(base: PreTrainedModel, prompt: str, new: int) -> str:
    ids = TOKENIZER(prompt)["input_ids"]
    start = len(ids)
    for _ in range(new):
        token = int(Prepended(base)(torch.tensor([ids])).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            break
        ids = [*ids, token]
    return TOKENIZER.decode(ids[start:], skip_special_tokens=True)


def test_the_lengths_are_told(pair: Pair) -> None:
    base, model = pair
    ids = torch.tensor([[2, 3, 4]])
    assert prompt_length(model) == 3 and prompt_length(base) == logits_before(base) == 0
    assert model(ids).logits.shape[1] == 3 + logits_before(model)
    with model.disable_adapter():  # type: ignore[operator]
        assert prompt_length(model) == logits_before(model) == 0


@torch.no_grad()
def test_choices_and_texts_equal_one_sequence_at_a_time(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    base, model = pair
    requests = multiple_choice(16)
    scores = SharedContextLM(model, TOKENIZER, batch_size=8).loglikelihood(requests)
    expected = [log_prob(base, *r.args) for r in requests]
    assert [s[0] for s in scores] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert [s[1] for s in scores] == [e[1] for e in expected]
    plain = SharedContextLM(base, TOKENIZER, batch_size=8).loglikelihood(requests)
    assert max(abs(s[0] - p[0]) for s, p in zip(scores, plain, strict=True)) > 1
    with model.disable_adapter():  # type: ignore[operator]
        assert SharedContextLM(model, TOKENIZER, batch_size=8).loglikelihood(requests) == plain
    texts = [request("loglikelihood_rolling", (words(random.Random(n), n),)) for n in (1, 4, 9)]
    rolling = SharedContextLM(model, TOKENIZER, batch_size=2).loglikelihood_rolling(texts)
    assert rolling == pytest.approx([log_prob(base, "", r.args[0])[0] for r in texts], abs=1e-4)
    assert not caplog.records


@torch.no_grad()
def test_generations_equal_one_sequence_at_a_time(pair: Pair) -> None:
    base, model = pair
    prompts = [words(random.Random(n), 1 + n % 5) for n in range(12)]
    prepared = PreparedGenerations(prompts, TOKENIZER, batch_size=3, max_length=40, max_new_tokens=8)
    expected = [greedy(base, prompt, 8) for prompt in prompts]
    assert prepared.generate(model) == expected
    assert expected != prepared.generate(base)
    with model.disable_adapter():  # type: ignore[operator]
        assert prepared.generate(model) == prepared.generate(base)


@torch.no_grad()
def test_task_scores_equal_one_sequence_at_a_time(pair: Pair) -> None:
    base, model = pair
    items = []
    for example in CHOICES:
        scores = [log_prob(base, example.prompt, choice)[0] for choice in example.choices or ()]
        items.append(float((example.choices or ())[scores.index(max(scores))] == example.completion))
    assert TaskScorer(task("accuracy", CHOICES), TOKENIZER, batch_size=3, max_length=16).score(model).items == items


@torch.no_grad()
def test_drift_equals_one_token_at_a_time_and_no_weight_changes(pair: Pair) -> None:
    base, model = pair
    documents = [TOKENIZER(document)["input_ids"] for document in DOCUMENTS]
    sums = brute_force(base, Prepended(base), documents, max_length=5)  # type: ignore[arg-type]
    *expected, tokens = sums
    drift = DriftMeter(base, TOKENIZER, {"text": DOCUMENTS}, max_length=5, max_tokens=99, batch_size=2).measure(model)
    found = drift["text"]
    assert [found.ce, found.kl_forward, found.kl_reverse, found.total_variation] == pytest.approx(
        [value / tokens for value in expected], rel=1e-3
    )
    assert found.kl_forward > 0.01 and math.isfinite(found.kl_reverse)
    assert set(weight_change(base, model).values()) == {0.0}


def test_a_capability_leaves_room_for_the_virtual_tokens(pair: Pair) -> None:
    base, model = pair
    suite = Suite([])
    assert suite._prepare(base, TOKENIZER, 4)._how["max_length"] == 64
    assert suite._prepare(model, TOKENIZER, 4)._how["max_length"] == 61
