"""Task scores against plain loops over the model, and against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.errors import UsageError
from forgetting.evaluation.encoding import encode_pair
from forgetting.evaluation.scores import TaskScore, TaskScorer, exact_match, rouge_l, token_f1
from forgetting.tasks.task import Example, Metric, Task
from tests.evaluation.test_lm import MODELS, TOKENIZER
from tests.models_for_tests import tiny_llama

MODEL = MODELS["llama"]


def task(metric: Metric, examples: list[Example], max_new_tokens: int = 4) -> Task:
    split = tuple(examples)
    return Task("t", split, split, split, metric, max_new_tokens=max_new_tokens)


def score_of(scored: Task, max_length: int = 16) -> TaskScore:
    return TaskScorer(scored, TOKENIZER, batch_size=3, max_length=max_length).score(MODEL)


def nats(model: PreTrainedModel, example: Example, completion: str) -> tuple[float, int]:
    """log p of a completion in float64, token by token, and its number of tokens."""
    context, target = encode_pair(TOKENIZER, example.prompt, completion)
    total = 0.0
    for k, token in enumerate(target):
        logits = model.double()(torch.tensor([context + target[:k]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
    model.float()
    return total, len(target)


CHOICES = [
    Example("w2 w3", " w4", (" w4", " w5 w6", " w7")),
    Example("w8", " w9 w10", (" w9", " w9 w10", " w9 w11")),
    Example("w12 w13 w14", " w15", (" w16", " w15")),
    Example("", "w17", ("w17", "w18 w19")),
]


def test_accuracy_is_the_argmax_of_summed_log_probabilities() -> None:
    right = []
    for example in CHOICES:
        assert example.choices is not None
        sums = [nats(MODEL, example, choice)[0] for choice in example.choices]
        right.append(float(example.choices[sums.index(max(sums))] == example.completion))
    assert 0 < sum(right) < len(right)
    score = score_of(task("accuracy", CHOICES))
    assert score.items == right
    assert score.value == pytest.approx(sum(right) / len(right))


def test_of_equal_choices_the_first_wins() -> None:
    # Unknown words are all the padding token here, so the two choices are the same tokens.
    tied = [Example("w2", " x", (" y", " x")), Example("w2", " y", (" y", " x"))]
    assert score_of(task("accuracy", tied)).items == [0.0, 1.0]


def test_perplexity_is_minus_nats_per_token_and_items_recover_it() -> None:
    examples = [Example("w2 w3", " w4"), Example("w5", " w6 w7 w8 w9"), Example("w2", " w10 w11")]
    expected = [nats(MODEL, example, example.completion) for example in examples]
    tokens = sum(n for _, n in expected)
    scorer = TaskScorer(task("perplexity", examples), TOKENIZER, batch_size=2, max_length=16)
    score = scorer.score(MODEL)
    assert score.value == pytest.approx(sum(total for total, _ in expected) / tokens, abs=1e-5)
    assert sum(score.items) / len(score.items) == pytest.approx(score.value)
    per_token = [item / weight for item, weight in zip(score.items, scorer.weights, strict=True)]
    assert per_token == pytest.approx([total / n for total, n in expected], abs=1e-5)
    assert math.exp(-score.value) > 1


def greedy(model: PreTrainedModel, prompt: str, max_new_tokens: int) -> str:
    ids = TOKENIZER(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < max_new_tokens:
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            break
        new.append(token)
    return TOKENIZER.decode(new, skip_special_tokens=True)


def test_generations_are_greedy_and_scored_by_each_metric() -> None:
    prompts = ["w2 w3 w4", "w5", "w6 w7", "w8 w9 w10 w11"]
    texts = [greedy(MODEL, prompt, 4) for prompt in prompts]
    words = texts[2].split()
    assert all(texts) and len(words) == 4
    completions = [f" {texts[0]}\n", " w31 w31", " " + " ".join(words[:2]), f" {texts[3]}"]
    examples = [Example(p, c) for p, c in zip(prompts, completions, strict=True)]
    assert score_of(task("exact_match", examples), 64).items == [1.0, 0.0, 0.0, 1.0]
    for metric, function in (("token_f1", token_f1), ("rouge_l", rouge_l)):
        score = score_of(task(metric, examples), 64)  # type: ignore[arg-type]
        assert score.items == [function(t, c) for t, c in zip(texts, completions, strict=True)]
        assert score.items[0] == 1.0 and 0 < score.items[2] < 1
        assert score.value == pytest.approx(sum(score.items) / 4)


def test_text_metrics_by_hand() -> None:
    assert exact_match(" yes\n", "yes") == 1 and exact_match("Yes", "yes") == 0
    # normalised: [cat, sat] against [cat, sat, down]: precision 1, recall 2/3
    assert token_f1("The cat sat.", "a cat sat down") == pytest.approx(0.8)
    assert token_f1("", "") == 1 and token_f1("the", "cat") == 0
    # longest common subsequence [a, c] of [a, b, c] and [a, c, d, e]: precision 2/3, recall 1/2
    assert rouge_l("a b c", "a c d e") == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_a_scorer_serves_many_models_and_leaves_them_as_they_were() -> None:
    scorer = TaskScorer(task("accuracy", CHOICES), TOKENIZER, batch_size=8, max_length=16)
    model = tiny_llama(seed=3).train()
    assert scorer.score(model).items == TaskScorer(task("accuracy", CHOICES), TOKENIZER, 64, 256).score(model).items
    assert scorer.score(MODEL) == scorer.score(MODEL)
    assert model.training and not MODEL.training


def test_too_little_room_is_said() -> None:
    with pytest.raises(UsageError, match="max_new_tokens 4: leaves no room for a prompt within max_length 4"):
        TaskScorer(task("exact_match", [Example("w2", " w3")]), TOKENIZER, batch_size=1, max_length=4)
