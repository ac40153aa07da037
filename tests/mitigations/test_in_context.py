"""In-context learning: nothing is trained, and what stands before a test item is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.evaluation.scores import TaskScorer
from forgetting.mitigations import build_mitigation
from forgetting.tasks.task import Example, Task
from tests.mitigations.test_conformance import TASKS, TOKENIZER, context, train_one, weights
from tests.models_for_tests import tiny_llama


def met(text: str, tmp_path: Path, seed: int = 0, **changes: Any) -> Any:
    mitigation = build_mitigation(text)
    mitigation.setup(tiny_llama(), replace(context(seed), **changes))
    mitigation.before_task(tiny_llama(), TASKS[0])
    return mitigation


def test_no_weight_changes_bit_for_bit(tmp_path: Path) -> None:
    mitigation = build_mitigation("in_context")
    model = mitigation.setup(tiny_llama(), context())
    base = weights(model)
    for position in range(2):
        model, trainer = train_one(model, mitigation, position, tmp_path)
        assert not trainer.losses
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    assert mitigation.stored_floats() == 0


def test_demonstrations_are_drawn_from_the_training_split_of_what_was_met(tmp_path: Path) -> None:
    task = replace(TASKS[0], max_new_tokens=2)
    mitigation = met("in_context:shots=3", tmp_path)
    text = mitigation.demonstrations(task)
    lines = text.splitlines()
    allowed = {example.prompt + example.completion for example in task.train}
    assert len(lines) == len(set(lines)) == 3 and set(lines) <= allowed and text.endswith("\n")
    assert mitigation.demonstrations(TASKS[1]) == ""
    assert met("in_context:shots=3", tmp_path).demonstrations(task) == text
    assert met("in_context:shots=3", tmp_path, seed=1).demonstrations(task) != text
    assert met("in_context:shots=0", tmp_path).demonstrations(task) == ""
    assert mitigation.dropped == {}


def test_what_leaves_no_room_for_the_longest_item_is_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 16 tokens: the longest item has 2 and is continued by up to 5, so that three shots of 3 tokens find room.
    task = replace(TASKS[0], max_new_tokens=5)
    mitigation = met("in_context:shots=5", tmp_path)
    text = mitigation.demonstrations(task)
    assert len(text.splitlines()) == 3 and mitigation.dropped == {"one": 2}
    assert "2 of 5 examples of task 'one' leave no room" in caplog.text
    long = Example("w2 " * 12, " w3")
    task = replace(task, name="two", train=(long, *task.train[:1]), max_new_tokens=2)
    mitigation.before_task(tiny_llama(), task)
    assert mitigation.demonstrations(task) == "w2 w3 w10\n".replace("w10", task.train[1].completion.strip())
    assert mitigation.dropped == {"one": 2, "two": 1}


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_room_is_kept_for_the_longest_choice_and_the_scores_are_those_of_whole_prompts(
    metric: Any, tmp_path: Path
) -> None:
    items = tuple(Example(f"w{i} w{i + 1}", f" w{i + 2}", (f" w{i + 2}", " w9 w9 w9")) for i in range(2, 10))
    task = Task("one", items, items, items, metric)
    mitigation = met("in_context:shots=8", tmp_path, tasks=(task, TASKS[1]))
    text = mitigation.demonstrations(task)
    longest = 5 if metric == "accuracy" else 3
    assert len(TOKENIZER(text)["input_ids"]) + longest <= 16
    assert len(text.splitlines()) == (16 - longest) // 3
    model = tiny_llama()
    scorer = TaskScorer(task, TOKENIZER, batch_size=4, max_length=16).after(text)
    roomy = TaskScorer(task, TOKENIZER, batch_size=4, max_length=64).after(text)
    assert scorer.score(model).items == pytest.approx(roomy.score(model).items, rel=1e-5)
