"""The downstream sequences: sizes, no overlap, fair choices, and what they teach."""

import random
from collections import Counter

import pytest

from forgetting.errors import UsageError
from forgetting.micro.probes import load_probe, probe_names
from forgetting.micro.sequences import SEQUENCES, load_micro_sequence
from forgetting.micro.skills.base import comparable
from forgetting.micro.world import build_world


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_sequence(name, seed):
    before = random.getstate()
    sequence = load_micro_sequence(name, seed=seed)
    assert random.getstate() == before
    assert sequence == load_micro_sequence(name, seed=seed)
    assert [task.name for task in sequence.tasks] == list(SEQUENCES[name])
    for task in sequence.tasks:
        assert (len(task.train), len(task.validation), len(task.test)) == (500, 100, 200)
        prompts = [e.prompt for e in (*task.train, *task.validation, *task.test)]
        assert len(set(prompts)) == len(prompts)
        for example in (*task.train, *task.validation, *task.test):
            assert example.completion.startswith(" ")
            assert not example.prompt.endswith(" ")
            if task.metric == "accuracy":
                others = [c for c in example.choices if c != example.completion]
                assert len(others) == len(set(others)) == len(example.choices) - 1
                assert all(comparable(example.completion, c) for c in others)
        if task.metric == "accuracy":
            assert 0.25 <= task.chance <= 0.5
            places = Counter(e.choices.index(e.completion) / len(e.choices) for e in task.test)
            assert max(places.values()) <= 0.65 * len(task.test)
        else:
            assert task.chance == 0


@pytest.mark.parametrize("name", SEQUENCES)
def test_seeds_differ_and_the_test_split_does_not_depend_on_the_training_size(name):
    first, other = load_micro_sequence(name), load_micro_sequence(name, seed=1)
    small = load_micro_sequence(name, train_size=20, validation_size=10)
    for a, b, c in zip(first.tasks, other.tasks, small.tasks, strict=True):
        assert a.test != b.test
        assert a.test == c.test
        assert (len(c.train), len(c.validation)) == (20, 10)


def test_no_task_states_a_probe_item():
    items = {item.text for name in probe_names() for item in load_probe(name)}
    for name in SEQUENCES:
        for task in load_micro_sequence(name).tasks:
            assert not items & {e.prompt + e.completion for e in (*task.train, *task.validation)}


def test_half_of_the_known_people_are_practised_and_never_as_a_probe_asks():
    world, task = build_world(), load_micro_sequence("micro-relearn").tasks[1]
    probed = {item.text for item in load_probe("micro_facts")}
    practised, stated = set(world.people[::2]), set()
    assert 0.3 < sum(not practised.isdisjoint(item.split()) for item in probed) / len(probed) < 0.7
    for example in (*task.train, *task.validation, *task.test):
        lines = f"{example.prompt}{example.completion}".splitlines()
        people = [set(world.people) & set(line.split()) for line in lines]
        assert len(lines) == 2 and not probed & set(lines)
        assert all(len(named) == 1 and named <= practised for named in people) and people[0] != people[1]
        assert example.completion.strip() in world.facts[people[1].pop()].values()
        stated.add(lines[1])
    assert len(stated) > 200


def test_conflict_contradicts_pretraining():
    flipped, changed, wrong = load_micro_sequence("micro-conflict").tasks
    world = build_world()
    for example in changed.test:
        line = example.prompt.split("\n")[1]
        (person,) = set(line.split()) & set(world.facts)
        values = set(world.facts[person].values())
        assert example.completion.strip() not in values
        assert values & {choice.strip() for choice in example.choices}
    for example in wrong.test:
        a, sign, b = example.prompt.split()[:3]
        result = int(a) + int(b) if sign in ("+", "plus") else int(a) - int(b)
        assert example.completion == f" {result + 1}"
        assert f" {result}" in example.choices
    assert flipped.chance == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "micro5"}, "did you mean 'micro-5'"),
        ({"name": "micro-5", "test_size": 0}, "test_size: 0"),
        ({"name": "micro-5", "train_size": 5000}, "different examples, 5300 were asked for"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        load_micro_sequence(**arguments)
