"""Cuts, draws, chance and notes."""

import json

import pytest

from forgetting.config import TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.build import load_task


def rows(count, choices=("a", "b"), prefix="q"):
    return [{"prompt": f"{prefix}{i}:", "completion": choices[i % 2], "choices": list(choices)} for i in range(count)]


@pytest.fixture
def task(tmp_path):
    def load(train, **options):
        paths = {"train": train, **{k: options.pop(k) for k in ("validation", "test") if k in options}}
        for split, items in paths.items():
            (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, items)))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in paths}
        return load_task(TaskConfig(name="t", **files, **options))

    return load


def prompts(split):
    return [item.prompt for item in split]


def test_cuts_are_a_fifth_and_a_tenth_and_disjoint(task):
    loaded = task(rows(100))
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [72, 8, 20]
    everything = prompts(loaded.train) + prompts(loaded.validation) + prompts(loaded.test)
    assert sorted(everything) == sorted(f"q{i}:" for i in range(100))
    assert loaded.notes == {"test_cut_from_train": 20}


def test_validation_is_cut_from_train_when_there_is_a_test_file(task):
    test = rows(30, prefix="r")
    loaded = task(rows(40), test=test)
    assert prompts(loaded.test) == [item["prompt"] for item in test]
    assert len(loaded.validation) == 4 and all(p.startswith("q") for p in prompts(loaded.validation))


def test_validation_is_at_most_200(task):
    loaded = task(rows(3000), test=rows(2, prefix="r"))
    assert len(loaded.validation) == 200 and len(loaded.train) == 2800


def test_smallest_file_has_one_example_per_split(task):
    loaded = task(rows(3))
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [1, 1, 1]


@pytest.mark.parametrize(("count", "split"), [(1, "test"), (2, "validation")])
def test_too_few_examples_to_cut(task, count, split):
    with pytest.raises(UsageError, match=rf"task 't': {split}: 1 to be cut from 1 training examples"):
        task(rows(count))


def test_split_seed_decides_the_cut(task):
    first, again, other = task(rows(50)), task(rows(50)), task(rows(50), split_seed=1)
    assert first == again
    assert prompts(first.test) != prompts(other.test)


def test_sizes_draw_nested_subsets_and_leave_the_test_split_alone(task):
    large, small = task(rows(200), train_size=60), task(rows(200), train_size=30)
    assert len(large.train) == 60 and len(small.train) == 30
    assert set(small.train) < set(large.train)
    assert small.test == large.test and small.validation == large.validation
    assert small.notes["train_left_out_by_size"] == 144 - 30
    drawn = task(rows(200), test_size=7, validation_size=5)
    assert len(drawn.test) == 7 and len(drawn.validation) == 5
    assert set(drawn.test) < set(large.test)


def test_a_size_beyond_the_data_is_noted(task):
    loaded = task(rows(20), test=rows(5, prefix="r"), train_size=1000)
    assert len(loaded.train) == 18 and loaded.notes["train_smaller_than_asked"] == "18 of 1000"


def test_default_metric_and_chance(task):
    mixed = [
        {"prompt": "x:", "completion": "a", "choices": ["a", "b"]},
        {"prompt": "y:", "completion": "a", "choices": ["a", "b", "c", "d"]},
    ]
    loaded = task(rows(20), test=mixed)
    assert loaded.metric == "accuracy" and loaded.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    free = [{"prompt": f"p{i}:", "completion": "a"} for i in range(20)]
    assert (task(free).metric, task(free).chance) == ("exact_match", 0.0)
    assert (task(rows(20), metric="rouge_l").metric, task(rows(20), metric="rouge_l").chance) == ("rouge_l", 0.0)


def test_duplicates_between_train_and_test_are_counted(task):
    test = [
        {"prompt": "q0:", "completion": "a", "choices": ["a", "b"]},  # in train (or validation) as it stands
        {"prompt": "q2:", "completion": "b", "choices": ["a", "b"]},  # its prompt only
        {"prompt": "new:", "completion": "b", "choices": ["a", "b"]},
    ]
    loaded = task(rows(4), validation=rows(2, prefix="v"), test=test)
    assert loaded.notes == {"duplicates_train_test": 1, "duplicate_prompts_train_test": 2}
    loaded = task(rows(4, prefix="z"), validation=test[:1], test=test)
    assert loaded.notes == {"duplicates_validation_test": 1, "duplicate_prompts_validation_test": 1}
