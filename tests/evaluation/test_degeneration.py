"""Degeneration by hand-counted n-grams and BLEU, and of models made to loop, to stop at once, and never to stop."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.errors import UsageError
from forgetting.evaluation.degeneration import (
    compare_continuations,
    compare_outputs,
    distinct_n,
    repetition_n,
    self_bleu,
)
from forgetting.evaluation.generation import Continuation, PreparedGenerations
from forgetting.micro.corpus import pretraining_documents
from forgetting.models import load_model
from tests.evaluation.test_lm import MODELS, TOKENIZER
from tests.families.small import family
from tests.models_for_tests import tiny_llama

PROMPTS = ["w2 w3 w4", "w5", "w6 w7", "w8 w9 w10 w11", "w12 w13"]


def test_distinct_n_counts_ngrams_within_sequences() -> None:
    sequences = [[1, 2, 1, 2], [2, 1], [3], []]
    assert distinct_n(sequences, 1) == 3 / 7
    assert distinct_n(sequences, 2) == 2 / 4  # 12 21 12 | 21: none across two sequences
    assert distinct_n(sequences, 3) == 1.0  # 121 212
    assert distinct_n(["a", "b", "ab"], 1) == 2 / 4
    assert math.isnan(distinct_n(sequences, 5)) and math.isnan(distinct_n([], 1))
    with pytest.raises(ValueError, match="n: 0 is less than 1"):
        distinct_n(sequences, 0)


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repetition_n([1, 2, 3, 4, 5, 6]) == 0
    assert repetition_n([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition_n([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert math.isnan(repetition_n([1, 2, 3]))
    rng = random.Random(0)
    for _ in range(20):
        sequence = [rng.randrange(2) for _ in range(rng.randrange(4, 30))]
        grams = [tuple(sequence[i : i + 4]) for i in range(len(sequence) - 3)]
        again = sum(grams[i] in grams[:i] for i in range(len(grams)))
        assert repetition_n(sequence) == pytest.approx(again / len(grams))


def bleu(hypothesis: str, references: list[str]) -> float:
    """BLEU-4 without smoothing: geometric mean of clipped precisions, and the brevity penalty (Papineni et al.)."""
    words, others = hypothesis.split(), [reference.split() for reference in references]
    product = 1.0
    for n in range(1, 5):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most: Counter = Counter()
        for other in others:
            most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        product *= sum((grams & most).values()) / sum(grams.values())
    nearest = min(others, key=lambda other: (abs(len(other) - len(words)), len(other)))
    return product**0.25 * min(1.0, math.exp(1 - len(nearest) / len(words)))


def test_self_bleu_is_each_text_against_all_others() -> None:
    # of 5, 4, 3 and 2 n-grams, 4, 3, 2 and 1 are shared; both are equally long
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    texts = ["a b c d e f g", "a b c d e", "x a b c d y", "c d e f g a b c d"]
    expected = [bleu(text, [other for other in texts if other != text]) for text in texts]
    assert 0.3 < min(expected) < max(expected) < 1.01
    assert self_bleu(texts) == pytest.approx(sum(expected) / 4, rel=1e-9)
    assert self_bleu([*texts, "", "  "]) == self_bleu(texts)
    assert self_bleu([*texts, *texts]) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h"]) < 0.15
    assert math.isnan(self_bleu(["a b c d", ""]))


def written(text: str, finished: bool = True) -> Continuation:
    return Continuation(text, tuple(int(word[1:]) for word in text.split()), finished)


def test_the_table_is_of_the_same_prompts_and_means_have_intervals() -> None:
    base = [written("w2 w3 w4 w5 w6"), written("w7 w8"), written("w9 w10 w11 w12"), written("w3")]
    tuned = [written("w2 w2 w2 w2 w2 w2", False), written(""), written("w9 w10 w11 w12"), written("w2 w2", False)]
    table = compare_continuations(base, tuned).set_index("measure")
    assert table.loc["length", ["base", "tuned", "difference"]].tolist() == [3.0, 3.0, 0.0]
    assert table.loc["empty", ["base", "tuned"]].tolist() == [0.0, 0.25]
    assert table.loc["unfinished", ["base", "tuned", "n"]].tolist() == [0.0, 0.5, 4]
    # both models wrote four tokens or more after the first and the third prompt alone
    assert table.loc["repetition_4", ["base", "tuned", "n"]].tolist() == [0.0, pytest.approx((2 / 3 + 0) / 2), 2]
    assert table.loc["distinct_1", "base"] == 11 / 12 and table.loc["distinct_1", "tuned"] == 5 / 12
    assert table.loc["distinct_2", "tuned"] == 4 / (5 + 3 + 1)
    assert table.loc["length", "low"] < 0 < table.loc["length", "high"]
    assert table.loc["self_bleu", "low"] != table.loc["self_bleu", "low"]
    with pytest.raises(ValueError, match="have 4 and 3 continuations"):
        compare_continuations(base, tuned[:3])
    with pytest.raises(ValueError, match="have 0 and 0"):
        compare_continuations([], [])


def greedy(model: PreTrainedModel, prompt: str, most: int) -> tuple[list[int], bool]:
    ids = TOKENIZER(prompt)["input_ids"]
    found: list[int] = []
    for _ in range(most):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + found])).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            return found, True
        found.append(token)
    return found, False


@pytest.mark.parametrize("name", MODELS)
def test_continuations_equal_one_token_at_a_time(name: str) -> None:
    model = copy.deepcopy(MODELS[name])
    head = model.get_output_embeddings()
    with torch.no_grad():  # the end token is now sometimes the best
        model.get_output_embeddings().weight = torch.nn.Parameter(head.weight.clone())
        model.get_output_embeddings().weight[1] *= 2
    prompts = [f"w{i} w{i + 3}" for i in range(2, 14)] + PROMPTS
    prepared = PreparedGenerations(prompts, TOKENIZER, batch_size=4, max_length=40, max_new_tokens=8)
    found = prepared.continuations(model)
    for prompt, continuation in zip(prompts, found, strict=True):
        assert (list(continuation.tokens), continuation.finished) == greedy(model, prompt, 8)
        assert continuation.text == TOKENIZER.decode(list(continuation.tokens), skip_special_tokens=True)
    assert len({continuation.finished for continuation in found}) == 2
    assert prepared.generate(model) == [continuation.text for continuation in found]


def test_a_stop_string_ends_a_text_too() -> None:
    model = always(9)
    prepared = PreparedGenerations(PROMPTS, TOKENIZER, batch_size=2, max_length=40, max_new_tokens=4, until=["w9"])
    assert {(c.text, c.finished) for c in prepared.continuations(model)} == {("", True)}


class _Always(torch.nn.Module):
    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full(hidden.shape[:-1], self.token), 32).to(hidden)


def always(token: int) -> PreTrainedModel:
    """A model that predicts one token, whatever it reads."""
    model = tiny_llama()
    model.lm_head = _Always(token)  # type: ignore[assignment]
    return model


def test_a_model_that_loops_and_one_that_stops_at_once_are_seen() -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "max_length": 40, "batch_size": 2}
    loops, stops = always(9), always(1)
    result = compare_outputs(loops, stops, TOKENIZER, PROMPTS, **options)
    table = result.table.set_index("measure")
    assert table.loc["length", ["base", "tuned", "difference"]].tolist() == [12, 0, -12]
    assert table.loc["unfinished", ["base", "tuned"]].tolist() == [1, 0]
    assert table.loc["empty", ["base", "tuned"]].tolist() == [0, 1]
    assert table.loc["repetition_4", "n"] == 0 and math.isnan(table.loc["repetition_4", "base"])
    assert table.loc["distinct_1", "base"] == 1 / 60 and math.isnan(table.loc["distinct_1", "tuned"])
    assert table.loc["self_bleu", "base"] == pytest.approx(1) and math.isnan(table.loc["self_bleu", "tuned"])
    assert {c.tokens for c in result.base} == {(9,) * 12} and {c.tokens for c in result.tuned} == {()}


def test_a_model_differs_from_itself_in_nothing() -> None:
    loaded = load_model("micro")
    prompts = [" ".join(document.split()[:4]) for document in pretraining_documents(6, 0, "held_out")]
    loaded.model.train()
    result = compare_outputs(
        loaded.model, loaded.model, loaded.tokenizer, prompts, max_new_tokens=12, max_length=64, batch_size=3
    )
    assert loaded.model.training
    assert result.base == result.tuned and set(result.table["difference"].dropna()) == {0.0}
    table = result.table.set_index("measure")["base"]
    assert table["length"] > 1 and table["empty"] < 0.5 and 0 < table["distinct_1"] < 1
    assert [len(list(group)) for _, group in itertools.groupby(result.table["n"])][-1] >= 3


def test_what_cannot_be_continued_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="have 0 and 0 continuations"):
        compare_outputs(model, model, TOKENIZER, [], max_new_tokens=4, max_length=40)
    with pytest.raises(UsageError, match="leaves no room"):
        compare_outputs(model, model, TOKENIZER, PROMPTS, max_new_tokens=40, max_length=40)
    for name in ("t5", "bert"):
        other = family(name).base.model.base
        with pytest.raises(ValueError, match="is no decoder"):
            compare_outputs(other, other, TOKENIZER, PROMPTS, max_new_tokens=4, max_length=40)
