"""A task goes on from any of its steps: the same data, the same random numbers, the same weights, bit for bit."""

from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from forgetting import training_state
from forgetting.checkpoint import Interval, latest_step, step_path, steps_of
from forgetting.config import StudyConfig, TrainingConfig, parse_study
from forgetting.interruption import Interrupted
from forgetting.mitigations import Mitigation, build_mitigation
from forgetting.mitigations.base import Options
from forgetting.results import ResultStore
from forgetting.stopping import StopOnLoss
from forgetting.study import run_study
from forgetting.tasks.encode import ExampleDataset, encode_examples
from forgetting.tasks.task import Example
from forgetting.trainer import ContinualTrainer, training_arguments
from forgetting.training_state import TaskCheckpoints
from tests.models_for_tests import tiny_gpt2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
UNEVEN = tuple(Example(f"w{i} " * (1 + i % 3) + f"w{i + 1}", f" w{30 - i}" * (1 + i % 2)) for i in range(2, 15))


class Killed(BaseException):
    pass


class Watch(Mitigation[Options]):
    """Notes the stream of examples by their first token, and draws from every global generator in each step."""

    resumes_within_task = True

    def __init__(self) -> None:
        super().__init__(Options())
        self.stream: list[list[int]] = []
        self.drawn: list[tuple[float, float, float]] = []

    def loss(self, model: Any, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor) -> torch.Tensor:
        self.stream.append(batch["input_ids"][:, 0].tolist())
        return loss

    def after_step(self, model: Any, learning_rate: float) -> None:
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def trained(
    checkpoints: TaskCheckpoints | None,
    training: TrainingConfig,
    *,
    killed_in: int | None = None,
    callbacks: Callable[[], list] = list,
) -> tuple[ContinualTrainer, Watch]:
    """Train one task from the same start, from the newest checkpoint if there is one; a model with dropout."""
    model, watch = tiny_gpt2(), Watch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3

    def on_step(step: int, steps: int) -> None:
        if step == killed_in:
            raise Killed

    dataset = ExampleDataset(encode_examples(TOKENIZER, UNEVEN, 16))
    args = training_arguments(training, seed=3, output="unused")
    trainer = ContinualTrainer(model, dataset, watch, args, TOKENIZER, callbacks(), on_step, checkpoints)
    newest = latest_step(checkpoints.folder, checkpoints.row) if checkpoints else None
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except Killed:
        assert killed_in is not None
    return trainer, watch


def assert_same(one: ContinualTrainer, other: ContinualTrainer) -> None:
    weights = dict(other._trained.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in one._trained.named_parameters())
    assert one.losses == other.losses and one.truncated == other.truncated
    assert (one.tokens, one.examples) == (other.tokens, other.examples)
    assert one.state.global_step == other.state.global_step and one.state.total_flos == other.state.total_flos


@pytest.mark.parametrize("accumulation", [1, 3])
def test_from_a_kill_at_every_step_data_dropout_and_weights_are_the_uninterrupted_ones(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over epochs that do not divide evenly, with accumulation, warmup, a schedule, and lengths that differ."""
    monkeypatch.setattr(training_state, "KEPT", 100)
    training = TrainingConfig(
        epochs=2, batch_size=4, gradient_accumulation=accumulation, warmup=0.3, scheduler="cosine", weight_decay=0.1
    )
    plain, watched = trained(None, training)
    whole, same = trained(TaskCheckpoints(tmp_path, 0, Interval("1 steps")), training)
    assert_same(plain, whole)
    assert same.stream == watched.stream and same.drawn == watched.drawn  # saving draws nothing
    steps = len(whole.losses)
    assert len(watched.stream) == 8 and steps == {1: 8, 3: 4}[accumulation]
    assert steps_of(tmp_path, 0) == list(range(1, steps + 1))
    assert watched.stream[:4] != watched.stream[4:]  # another order in each epoch
    for step in steps_of(tmp_path, 0):
        place = tmp_path / f"killed after {step}"
        shutil.copytree(step_path(tmp_path, 0, step), step_path(place, 0, step))
        again, rest = trained(TaskCheckpoints(place, 0, Interval("never")), training)
        assert_same(plain, again)
        assert rest.drawn == watched.drawn[step:]
        assert rest.stream == watched.stream[len(watched.stream) - len(rest.stream) :]
        seen = step if accumulation == 1 else [0, 3, 4, 7, 8][step]
        assert len(watched.stream) - len(rest.stream) == seen


def test_a_checkpoint_is_safetensors_and_json_alone(tmp_path: Path) -> None:
    trained(TaskCheckpoints(tmp_path, 0, Interval("2 steps")), TrainingConfig(steps=3, batch_size=3))
    assert steps_of(tmp_path, 0) == [2, 3]
    for file in step_path(tmp_path, 0, 2).iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            with safe_open(file, framework="pt") as opened:
                assert {name.split("/")[0] for name in opened.keys()} == {"weights", "optimizer", "random"}  # noqa: SIM118


def test_rotation_keeps_two_and_never_loses_the_best_weights(tmp_path: Path) -> None:
    """The lowest validation loss is at the start, of which no checkpoint is kept; the end goes back there."""
    from forgetting.trainer import padded_batches

    batches = padded_batches(encode_examples(TOKENIZER, UNEVEN[:4], 16), TOKENIZER, 4)
    training = TrainingConfig(steps=20, batch_size=4, learning_rate=0.3, scheduler="constant", warmup=0)

    def stopping() -> list:
        return [StopOnLoss(batches, every=1, patience=6)]

    whole, _ = trained(None, training, callbacks=stopping)
    best = len(whole.losses) - 6
    assert len(whole.losses) < 20 and best < 3
    checkpoints = TaskCheckpoints(tmp_path, 0, Interval("1 steps"))
    trained(checkpoints, training, killed_in=6, callbacks=stopping)
    assert steps_of(tmp_path, 0) == [4, 5] and best < 4
    resumed, rest = trained(TaskCheckpoints(tmp_path, 0, Interval("1 steps")), training, callbacks=stopping)
    assert_same(whole, resumed)
    assert len(rest.stream) == len(whole.losses) - 5
    ended, nothing = trained(TaskCheckpoints(tmp_path, 0, Interval("1 steps")), training, callbacks=stopping)
    assert_same(whole, ended)
    assert nothing.stream == []  # what stopped early does not train on


def test_a_torn_one_is_trained_again_from_the_one_before(tmp_path: Path) -> None:
    training = TrainingConfig(steps=6, batch_size=4)
    whole, watched = trained(None, training)
    trained(TaskCheckpoints(tmp_path, 0, Interval("1 steps")), training, killed_in=5)
    tensors = step_path(tmp_path, 0, 4) / training_state.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-8])
    resumed, rest = trained(TaskCheckpoints(tmp_path, 0, Interval("never")), training)
    assert_same(whole, resumed)
    assert rest.stream == watched.stream[3:]


def test_of_the_two_that_are_kept_none_is_a_torn_one_of_a_later_step(tmp_path: Path) -> None:
    checkpoints = TaskCheckpoints(tmp_path, 0, Interval("never"))
    for step in (90, 100):
        checkpoints.save(step, {"x": torch.zeros(2)}, {}, "{}")
    (step_path(tmp_path, 0, 100) / training_state.TENSORS).write_bytes(b"")
    (step_path(tmp_path, 1, 200)).mkdir()  # of another task: not its business
    newest = latest_step(tmp_path, 0)
    assert newest is not None and newest.name == "row-0-step-90"
    for step, kept in ((91, [90, 91]), (92, [91, 92]), (93, [92, 93])):
        checkpoints.save(step, {"x": torch.zeros(2)}, {}, "{}")
        assert steps_of(tmp_path, 0) == kept
    assert steps_of(tmp_path, 1) == [200]


def test_when_a_task_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [1000.0]
    monkeypatch.setattr(training_state.time, "monotonic", lambda: moment[0])
    timed = TaskCheckpoints(tmp_path, 0, Interval("10 minutes"))
    moment[0] += 59
    assert not timed.due(5, last=False) and not timed.due(6, last=True)
    moment[0] += 2
    assert not timed.due(7, last=False) and timed.due(7, last=True)
    moment[0] += 540
    assert timed.due(8, last=False) and timed.seconds() == 601
    counted = TaskCheckpoints(tmp_path, 0, Interval("4 steps"))
    assert [step for step in range(1, 10) if counted.due(step, last=step == 9)] == [4, 8, 9]
    assert not TaskCheckpoints(tmp_path, 0, Interval("never")).due(1, last=True)


def test_states_of_every_global_generator_survive_json() -> None:
    random.gauss(0, 1)  # leaves the second of a pair
    np.random.standard_normal()
    torch.rand(3)
    tensors, values = training_state.random_state()

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.standard_normal(), float(torch.rand(()))]

    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn() != expected
    training_state.set_random_state(tensors, json.loads(json.dumps(values)))
    assert drawn() == expected


def small_study() -> StudyConfig:
    return parse_study(
        {
            "name": "small",
            "model": "micro",
            "sequence": {"name": "micro-5", "tasks": ["new_facts", "sorting"], "train_size": 24, "test_size": 8},
            "mitigations": ["lora:r=2,dropout=0.3,merge=false+si+early_stopping:every=2,patience=2"],
            "training": {"steps": 6, "batch_size": 4, "max_length": 96},
            "evaluation": {"suite": "micro", "limit": 4, "drift_tokens": 200},
            "pretraining": {"documents": 16, "held_out_documents": 4},
        }
    )


def test_a_signal_saves_and_the_study_goes_on_with_the_next_step(tmp_path: Path) -> None:
    """SIGTERM in step 3 of task 2: R, G, items, drift and losses are those of the uninterrupted study."""
    config = small_study()
    (whole,) = run_study(config, tmp_path / "whole")
    store, run_id = ResultStore(tmp_path / "killed"), whole.run_id
    before = signal.getsignal(signal.SIGTERM)

    def preempted(run: str, share: float, doing: str) -> None:
        if doing == "sorting, step 3/6":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        run_study(config, store.folder, progress=preempted, checkpoint_every="never")
    assert signal.getsignal(signal.SIGTERM) is before and not (store.folder / ".lock").exists()
    assert sorted(path.name for path in store.checkpoint_path(run_id).iterdir()) == ["row-1", "row-1-step-3"]
    record = store.load(run_id)
    assert record is not None and record.status == "running" and len(record.rows) == 2

    done: list[str] = []
    (resumed,) = run_study(config, store.folder, progress=lambda run, share, doing: done.append(doing))
    steps = [doing for doing in done if "step" in doing]
    assert steps and all(doing.startswith("sorting") for doing in steps) and steps[0] == "sorting, step 4/6"
    assert (resumed.R, resumed.G) == (whole.R, whole.G)
    assert [row.drift for row in resumed.rows] == [row.drift for row in whole.rows]
    assert [row.views for row in resumed.rows] == [row.views for row in whole.rows]
    for one, other in zip(resumed.cost.tasks, whole.cost.tasks, strict=True):
        assert one.model_dump(exclude={"seconds"}) == other.model_dump(exclude={"seconds"}) and one.seconds > 0
    assert store.load_items(run_id) == ResultStore(tmp_path / "whole").load_items(run_id)
    assert not (store.folder / "checkpoints").exists()


def test_resume_can_be_given_nothing_that_changes_a_number() -> None:
    from forgetting.cli import resume

    where = {"launcher", "cpus_per_run", "gpus_per_run", "address", "sbatch", "dry_run"}
    how = {"workers", "hours", "checkpoint_every", "wandb"}
    assert set(inspect.signature(resume).parameters) == {"folder", "only"} | where | how


def test_state_of_a_method_that_gathers_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="gathers nothing within a task"):
        build_mitigation("naive").load_task_state({"x": torch.zeros(1)})
