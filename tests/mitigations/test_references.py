"""References that know all tasks: what they train on, for how many steps, and from where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.errors import UsageError
from forgetting.mitigations import Mitigation, build_mitigation, get_mitigation
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.mitigations.test_conformance import TASKS, TOKENIZER, TRAINING, context, run, train_one, weights
from tests.models_for_tests import tiny_llama


def train(model: PreTrainedModel, mitigation: Mitigation, position: int, seed: int, folder: Path) -> ContinualTrainer:
    """As a run trains a task, with a seed of one's own for the order of the data."""
    torch.manual_seed(seed)
    task, seen = TASKS[position], TASKS[:position]
    mitigation.before_task(model, task)
    dataset = mitigation.train_dataset(ExampleDataset(context().encode_task(task)), task, seen)
    args = mitigation.training_arguments(training_arguments(TRAINING, seed=seed, output=str(folder)))
    trainer = ContinualTrainer(model, dataset, mitigation, args, TOKENIZER)
    trainer.train()
    return trainer


def inputs(dataset: object) -> list[list[int]]:
    return [dataset[i]["input_ids"] for i in range(len(dataset))]  # type: ignore[index, arg-type]


def own(position: int) -> list[list[int]]:
    return [feature["input_ids"] for feature in context().encode_task(TASKS[position])]


def test_joint_trains_on_the_union_once(tmp_path: Path) -> None:
    mitigation = build_mitigation("joint")
    model = mitigation.setup(tiny_llama(), context())
    dataset = mitigation.train_dataset(ExampleDataset(context().encode_task(TASKS[0])), TASKS[0], [])
    assert inputs(dataset) == own(0) + own(1)
    model, first = train_one(model, mitigation, 0, tmp_path)
    before = weights(model)
    assert len(first.losses) == 8 and first.examples["task"] == 32
    model, second = train_one(model, mitigation, 1, tmp_path)
    assert second.losses == [] and second.state.total_flos == 0 and not second.examples
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_cumulative_trains_on_the_tasks_so_far(tmp_path: Path) -> None:
    mitigation = build_mitigation("cumulative")
    model = mitigation.setup(tiny_llama(), context())
    for position, tasks in ((0, own(0)), (1, own(0) + own(1))):
        dataset = ExampleDataset(context().encode_task(TASKS[position]))
        assert inputs(mitigation.train_dataset(dataset, TASKS[position], TASKS[:position])) == tasks
    _, first = train_one(model, mitigation, 0, tmp_path)
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    assert all(torch.equal(value, naive[name]) for name, value in weights(model).items())  # task 1 is as without
    _, second = train_one(model, mitigation, 1, tmp_path)
    assert (len(first.losses), len(second.losses)) == (4, 8)
    assert mitigation.stored_floats() == 0


def test_cumulative_from_the_base_ends_as_joint_bit_for_bit(tmp_path: Path) -> None:
    """With the same order of the data; a run gives each task a seed of its own."""
    joint, cumulative = build_mitigation("joint"), build_mitigation("cumulative:reset=true")
    once, again = joint.setup(tiny_llama(), context()), cumulative.setup(tiny_llama(), context())
    losses = train(once, joint, 0, 5, tmp_path).losses
    train(again, cumulative, 0, 3, tmp_path)
    assert train(again, cumulative, 1, 5, tmp_path).losses == losses
    expected = weights(once)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    assert cumulative.stored_floats() == sum(p.numel() for p in again.parameters())


@pytest.mark.parametrize("name", ["joint", "cumulative"])
def test_a_budget_in_epochs_stays(name: str, tmp_path: Path) -> None:
    mitigation = build_mitigation(name)
    mitigation.setup(tiny_llama(), context())
    dataset = ExampleDataset(context().encode_task(TASKS[0]))
    training = TRAINING.model_copy(update={"steps": None, "epochs": 2.0})
    for position in (0, 1):
        mitigation.train_dataset(dataset, TASKS[position], TASKS[:position])
        args = mitigation.training_arguments(training_arguments(training, seed=0, output=str(tmp_path)))
        later_joint = name == "joint" and position == 1
        assert (args.max_steps, args.num_train_epochs) == (0 if later_joint else -1, 2)


@pytest.mark.parametrize("model", ["", "lora:r=2+", "lora:r=2,merge=false+"])
def test_single_task_is_a_fine_tune_of_the_base_on_that_task(model: str, tmp_path: Path) -> None:
    alone = weights(run(f"{model}naive", tmp_path, tasks=[1])[0])
    after = weights(run(f"{model}single_task", tmp_path)[0])
    assert after.keys() == alone.keys() and all(torch.equal(value, alone[name]) for name, value in after.items())


def test_replay_after_the_union_mixes_into_it(tmp_path: Path) -> None:
    mitigation = build_mitigation("joint+replay:fraction=0.5")
    model = mitigation.setup(tiny_llama(), context())
    _, trainer = train_one(model, mitigation, 0, tmp_path)
    assert len(trainer.losses) == 16 and sum(trainer.examples.values()) == 64
    assert trainer.examples["task"] == 32


def test_references_say_so_and_refuse_what_sees_one_task_alone() -> None:
    assert all(get_mitigation(name).reference for name in ("joint", "cumulative", "single_task"))
    assert build_mitigation("joint+replay").reference and not build_mitigation("replay").reference
    for text, said in (
        ("early_stopping+joint", "mitigation 'joint': 'early_stopping' would look at one task's"),
        ("cumulative+early_stopping", "write early_stopping:metric=pretraining"),
        ("replay+joint", "write joint+replay"),
        ("single_task+lora", "write lora+single_task"),
        ("cumulative:reset=true+lora", "write lora+cumulative"),
        ("cumulative:reset=true+wise_ft", "'cumulative' and 'wise_ft': each gives the model other weights"),
    ):
        with pytest.raises(UsageError) as error:
            build_mitigation(text)
        assert said in str(error.value) and "\n" not in str(error.value)
    build_mitigation("joint+early_stopping:metric=pretraining")
    build_mitigation("cumulative+lora")
    build_mitigation("cumulative+wise_ft")
