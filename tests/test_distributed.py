"""One model on two processes (gloo): the same data, and in float64 the same results, as on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from forgetting.config import (
    EvaluationConfig,
    PretrainingConfig,
    RunConfig,
    SequenceConfig,
    StudyConfig,
    TrainingConfig,
)
from forgetting.distributed import (
    NOBODY,
    Share,
    StandIns,
    check_shareable,
    own_randomness,
    rank,
    total,
    union,
    world_size,
)
from forgetting.errors import UsageError
from forgetting.results import ResultStore
from forgetting.study import run_study
from tests import test_sharding

MITIGATIONS = ("replay:fraction=0.3,source=both+sam", "lwf+ewc:strength=100")


def configuration(mitigation: str) -> RunConfig:
    """37 examples in batches of 7, two per step: the last batch of an epoch has 2, and an epoch ends within a step."""
    return RunConfig(
        model="micro",
        sequence=SequenceConfig(name="micro-5", tasks=("new_facts", "sorting"), test_size=20, train_size=37),
        mitigation=mitigation,
        seed=0,
        training=TrainingConfig(steps=4, batch_size=7, gradient_accumulation=2, max_length=64),
        evaluation=EvaluationConfig(limit=10, drift_tokens=500),
        pretraining=PretrainingConfig(documents=30, held_out_documents=10, max_length=64),
    )


def run_all(folder: Path) -> None:
    """What every process of the job does, and one process alone."""
    from pytest import MonkeyPatch

    import forgetting.run
    from forgetting.models import load_model

    def in_float64(name: str, **options: bool) -> object:
        loaded = load_model(name, **options)
        loaded.model.double()
        return loaded

    with MonkeyPatch.context() as patch:
        patch.setattr(forgetting.run, "load_model", in_float64)
        forgetting.run._setting.cache_clear()
        for mitigation in MITIGATIONS:
            forgetting.run.run_sequence(configuration(mitigation), ResultStore(folder))
        if world_size() > 1:
            check_among_processes(folder)
        forgetting.run._setting.cache_clear()
    if world_size() > 1:
        test_sharding.run_sharded(folder.with_name("sharded"))
    else:
        test_sharding.run_whole(folder.with_name("whole"))


def check_among_processes(folder: Path) -> None:
    """What can be asked of a process among others alone."""
    assert union({5 * rank(), 2}) == {0, 2, 5}
    with own_randomness(3):
        mine = torch.rand(4)
    assert float(total(mine).sub(2 * mine).abs().min()) > 0, "dropout draws the same in both"
    torch.testing.assert_close(total(torch.rand(1)), 2 * torch.rand(1, generator=torch.Generator().manual_seed(3)))
    study = StudyConfig(
        mitigations=("der",), name="der", **configuration("der").model_dump(exclude={"mitigation", "seed"})
    )
    with pytest.raises(UsageError, match="mitigation 'der': der trains in one process only, and 2 were started"):
        run_study(study, folder.with_name("der"))


def batches(size: int, *, examples: int, batch_size: int) -> list[list[list[int]]]:
    """By process, its part of every batch."""
    sampler = BatchSampler(SequentialSampler(range(examples)), batch_size, drop_last=False)
    return [list(Share(sampler, part, size)) for part in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize(("examples", "batch_size"), [(37, 7), (8, 8), (9, 8), (3, 1)])
def test_parts_are_the_batch_in_its_order(size: int, examples: int, batch_size: int) -> None:
    parts = batches(size, examples=examples, batch_size=batch_size)
    whole = batches(1, examples=examples, batch_size=batch_size)[0]
    assert {len(part) for part in parts} == {len(whole)}, "every process makes as many steps"
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert [index for share in shares for index in share if index >= 0] == batch
        real = [sum(index >= 0 for index in share) for share in shares]
        assert max(real) - min(real) <= 1
        assert all(share for share in shares), "no process is without an example"


def test_a_share_shows_the_sampler_that_accelerate_seeds() -> None:
    sampler = RandomSampler(range(5))
    assert Share(BatchSampler(sampler, 2, drop_last=False), 0, 2).sampler is sampler


def test_a_stand_in_has_no_loss_and_is_nobodys() -> None:
    data = [{"input_ids": [3, 4], "labels": [-100, 4], "source": 0, "truncated": 1}]
    stand_in = StandIns(data)[-1]  # type: ignore[arg-type]
    assert stand_in == {"input_ids": [3, 4], "labels": [-100, -100], "source": NOBODY, "truncated": 0}
    assert StandIns(data)[0] is data[0]  # type: ignore[arg-type]


def test_a_plain_start_is_one_process() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert union({3}) == {3}
    state = torch.get_rng_state()
    with own_randomness(3):
        assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch import nn

    check_shareable(nn.BatchNorm2d(1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_shareable(nn.Linear(1, 1))
    with pytest.raises(UsageError, match="batch norm"):
        check_shareable(nn.BatchNorm2d(1))
    with pytest.raises(UsageError, match="workers = 2"):
        run_study(StudyConfig(name="two"), tmp_path / "two", workers=2)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE = 'many'"):
        world_size()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*job, "-m", "tests.test_distributed", str(two)],
        cwd=Path(__file__).parents[1],  # a script's own folder would come first in the path, and tests/avalanche in it
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_all(one)
    for mitigation in MITIGATIONS:
        config = configuration(mitigation)
        alone, shared = (ResultStore(folder).load(config.run_id) for folder in (one, two))
        assert alone is not None and shared is not None
        assert alone.status == shared.status == "finished", (alone.reason, shared.reason)
        assert ResultStore(one).load_items(config.run_id)["R"] == ResultStore(two).load_items(config.run_id)["R"]
        for mine, theirs in zip(alone.rows, shared.rows, strict=True):
            assert pytest.approx(mine.R, abs=1e-9) == theirs.R
            assert pytest.approx(mine.G, abs=1e-9) == theirs.G
            assert theirs.drift["pretraining"].ce == pytest.approx(mine.drift["pretraining"].ce, abs=1e-9)
        for cost, other in zip(alone.cost.tasks, shared.cost.tasks, strict=True):
            assert (other.tokens, other.examples, other.steps) == (cost.tokens, cost.examples, cost.steps)
            # transformers takes the cross-entropy in float32, and so is what is logged of it
            assert [loss for _, loss in other.log] == pytest.approx([loss for _, loss in cost.log], abs=1e-5)
    test_sharding.compare(tmp_path / "whole", tmp_path / "sharded")


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
