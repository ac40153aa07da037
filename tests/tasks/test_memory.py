"""What is remembered of earlier states, and the minibatches drawn from it."""

from __future__ import annotations

from dataclasses import replace

import torch

from forgetting.tasks.memory import Memory, remembered, some_of_task, some_text, stored_tokens
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context

CPU = torch.device("cpu")


def test_some_of_a_task_is_the_same_whenever_asked_and_drawn_from_all_of_it() -> None:
    features = context().encode_task(TASKS[0])
    some = some_of_task(context(), TASKS[0], 1, 6)
    assert some == some_of_task(context(), TASKS[0], 1, 6) != features[:6]
    assert len(some) == 6 and all(feature in features for feature in some)
    assert some != some_of_task(context(seed=1), TASKS[0], 1, 6)
    assert len(some_of_task(context(), TASKS[0], 1, 99)) == 16


def test_states_are_remembered_in_order_and_empty_ones_are_left_out() -> None:
    text, first, second = remembered(context(), TASKS, 3, pretraining=True)
    assert text == context().encode_text(TEXT[:3]) and first == some_of_task(context(), TASKS[0], 1, 3)
    assert remembered(context(), TASKS, 3, pretraining=False) == [first, second]
    assert remembered(context(), TASKS, 0, pretraining=True) == []
    assert stored_tokens(text) == 3 * 6


def test_a_document_without_a_predicted_token_is_no_example() -> None:
    empty = {"input_ids": [5], "labels": [-100], "source": 1, "truncated": 0}
    real = context().encode_text
    given = replace(context(), encode_text=lambda texts: [empty, *real(texts)], encode_task=lambda task: [empty])
    assert some_text(given, 2) == real(TEXT[:2]) and some_of_task(given, TASKS[0], 1, 4) == []


def test_every_feature_is_drawn_before_any_is_drawn_again() -> None:
    memory = Memory.for_task(context().encode_text(TEXT[:6]), context(), batch_size=2, position=1)
    drawn = [index for _ in range(6) for index in memory.draw()]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))
    assert Memory.for_task(memory.features, context(), batch_size=None, position=0).batch_size == 4  # the training's
    assert Memory.for_task(memory.features, context(), batch_size=9, position=0).batch_size == 6


def test_own_randomness_comes_from_the_memorys_seed_and_leaves_the_global_state() -> None:
    draws = []
    for seed in (0, 1):
        memory = Memory(context().encode_text(TEXT[:6]), TOKENIZER, batch_size=2, seed=7)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        for _ in range(2):
            with memory.own_randomness(CPU):
                draws.append(torch.rand(3))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])
    assert not torch.equal(draws[0], draws[1])
