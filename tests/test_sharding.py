"""A model divided between two processes (FSDP2 over gloo): in float64 the same results as on one, and no whole kept.

The two processes are those of ``tests/test_distributed.py``, which calls :func:`run_sharded` in each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.config import (
    EvaluationConfig,
    PretrainingConfig,
    RunConfig,
    SequenceConfig,
    StudyConfig,
    TrainingConfig,
)
from forgetting.distributed import FSDP2, begin, rank, sharded, world_size
from forgetting.errors import UsageError
from forgetting.fisher import DiagonalPenalty, diagonal_fisher, kfac_fisher
from forgetting.fisher.estimators import Targets
from forgetting.fisher.examples import examples_of
from forgetting.fisher.shards import local
from forgetting.mitigations import build_mitigation
from forgetting.results import ResultStore
from forgetting.study import run_study

MITIGATIONS = (
    "naive",
    "freeze:first=1+l2sp:strength=3,update=gradient,reference=task+ewc:strength=300,examples=9",
    "replay:fraction=0.3+few_steps:fraction=0.7+low_lr:factor=0.5+l2sp:strength=30"
    "+ewc:strength=30,examples=5,mode=online,decay=0.5,estimator=empirical,update=gradient",
)
STOPPED = MITIGATIONS[1]
"""The one that is stopped within the second task, and resumed from the shards that were written after the first."""


class Stopped(Exception):
    """What the test stops it with."""


def configuration(mitigation: str) -> RunConfig:
    """Batches of 5 for two processes: one has 2, the other 3; frozen blocks, replayed rows, accumulated gradients."""
    return RunConfig(
        model="micro",
        sequence=SequenceConfig(name="micro-5", tasks=("new_facts", "sorting"), test_size=8, train_size=21),
        mitigation=mitigation,
        seed=1,
        training=TrainingConfig(steps=3, batch_size=5, gradient_accumulation=2, max_length=64, weight_decay=0.1),
        evaluation=EvaluationConfig(limit=4, drift_tokens=200, fisher_distance=True),
        pretraining=PretrainingConfig(documents=12, held_out_documents=6, max_length=64),
    )


@contextmanager
def in_float64() -> Iterator[None]:
    """Within, runs load their model in float64."""
    import forgetting.run
    from forgetting.models import load_model

    def loaded(name: str, **options: bool) -> object:
        found = load_model(name, **options)
        found.model.double()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting.run, "load_model", loaded)
        forgetting.run._setting.cache_clear()
        yield
    forgetting.run._setting.cache_clear()


def run_whole(folder: Path) -> None:
    """What one process does."""
    from forgetting.run import run_sequence

    with in_float64():
        for mitigation in MITIGATIONS:
            run_sequence(configuration(mitigation), ResultStore(folder))


def run_sharded(folder: Path) -> None:
    """What each of several does."""
    from forgetting.run import prepare, run_sequence

    def stop(run_id: str, share: float, doing: str) -> None:
        if doing == "sorting, step 2/3":
            raise Stopped

    store = ResultStore(folder)
    with pytest.MonkeyPatch.context() as patch, in_float64():
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        patch.setenv("FSDP_VERSION", "2")
        assert sharded()
        with pytest.raises(Stopped):
            run_sequence(configuration(STOPPED), store, progress=stop)
        written = store.checkpoint_path(configuration(STOPPED).run_id) / "row-1"
        assert sorted(path.name for path in written.glob("*.safetensors")) == sorted(
            f"{what}-{part}-of-2.safetensors" for what in ("model", "mitigation") for part in range(2)
        )
        for mitigation in MITIGATIONS:
            run_sequence(configuration(mitigation), store)
        setting = prepare(configuration("naive"), store)
        assert setting.another is not None
        check_shards(setting.another())
        for text, why in {
            "lwf+naive": "mitigation 'lwf.naive': lwf as it is set needs whole weights, and FSDP divides them among 2",
            "ewc:mode=kfac": "mitigation 'ewc:mode=kfac': ewc as it is set needs whole weights",
            "der": "mitigation 'der': der trains in one process only, and 2 were started",
        }.items():
            fields = configuration(text).model_dump(exclude={"mitigation", "seed"})
            with pytest.raises(UsageError, match=why):
                run_study(StudyConfig(mitigations=(text,), name="refused", **fields), folder.with_name("refused"))


def batches() -> list[dict[str, torch.Tensor]]:
    """Padded; of one row for two processes; of as many rows for each as it has tokens."""
    ids = torch.randint(5, 1000, (5, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:], mask[4, 5:] = 0, 0
    padded = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    one = {key: value[:1] for key, value in padded.items()}
    square = {"input_ids": ids[:4, :2], "labels": ids[:4, :2]}
    return [padded, one, square]


def part_of(whole: torch.Tensor) -> torch.Tensor:
    """This process's rows."""
    parts = whole.chunk(world_size())
    return parts[rank()] if rank() < len(parts) else whole[:0]


def check_shards(model: Any) -> None:
    """The Fisher information of a sharded model is that of the whole, in parts; a penalty's too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "false")
        from forgetting.models import load_model

        whole = load_model("micro").model.double()
    for estimator, samples in (("empirical", 1), ("sample", 2), ("positionwise", 1)):
        expected, found = (
            diagonal_fisher(
                one,
                batches(),
                estimator=estimator,  # type: ignore[arg-type]
                samples=samples,
                max_examples=9,
                generator=torch.Generator().manual_seed(1),
                accumulate_dtype=torch.float64,
            )
            for one in (whole, model)
        )
        assert (found.examples, found.tokens) == (expected.examples, expected.tokens)
        for name, value in expected.values.items():
            torch.testing.assert_close(local(found.values[name]), part_of(value), rtol=1e-12, atol=1e-15)
    penalty = DiagonalPenalty()
    penalty.consolidate(found, dict(model.named_parameters()))
    kept = [*penalty.fisher.values(), *penalty.weighted.values()]
    assert penalty.stored_floats() == 2 * sum(p.numel() for p in whole.parameters())
    assert all(2 * local(value).numel() == value.numel() for value in kept), "a process holds more than its half"
    assert all(parameter.grad is None for parameter in model.parameters())
    for call in (
        lambda: diagonal_fisher(model, batches(), estimator="batched"),
        lambda: diagonal_fisher(model, batches(), backend="reference"),
        lambda: kfac_fisher(model, batches()),
        lambda: found.save("nowhere.safetensors"),
    ):
        with pytest.raises(ValueError, match="sharded model"):
            call()


def compare(one: Path, two: Path) -> None:
    """What :func:`run_whole` and :func:`run_sharded` stored."""
    for mitigation in MITIGATIONS:
        config = configuration(mitigation)
        alone, divided = (ResultStore(folder).load(config.run_id) for folder in (one, two))
        assert alone is not None and divided is not None
        assert alone.status == divided.status == "finished", (alone.reason, divided.reason)
        assert divided.provenance["hardware"]["processes"] == {"number": 2, "weights": "sharded (FSDP2)"}
        assert ResultStore(one).load_items(config.run_id)["R"] == ResultStore(two).load_items(config.run_id)["R"]
        assert len(divided.rows) == 3
        for mine, theirs in zip(alone.rows, divided.rows, strict=True):
            assert pytest.approx(mine.R, abs=1e-9) == theirs.R
            assert pytest.approx(mine.G, abs=1e-9) == theirs.G
            assert theirs.drift["pretraining"].ce == pytest.approx(mine.drift["pretraining"].ce, abs=1e-9)
            assert theirs.weight_change == pytest.approx(mine.weight_change, rel=1e-9, abs=1e-12)
            assert theirs.fisher_distance == pytest.approx(mine.fisher_distance, rel=1e-5, abs=1e-12)
        assert alone.rows[-1].weight_change != alone.rows[0].weight_change
        for cost, other in zip(alone.cost.tasks, divided.cost.tasks, strict=True):
            assert (other.tokens, other.examples, other.steps) == (cost.tokens, cost.examples, cost.steps)
        for name in ("parameters", "trainable_parameters", "stored_floats"):
            assert getattr(alone.cost, name) == getattr(divided.cost, name), name


def test_rows_of_a_batch_draw_what_they_draw_in_it() -> None:
    batch = batches()[0]
    labels = batch["labels"]
    targets = Targets(labels, examples_of({"attention_mask": batch["attention_mask"]}, labels), shift=True)
    uniform = targets._uniform(3, torch.Generator().manual_seed(2))
    parts = [targets.rows(part) for part in (slice(0, 2), slice(2, 2), slice(2, 5))]
    drawn = [part._uniform(3, torch.Generator().manual_seed(2)) for part in parts]
    assert torch.equal(torch.cat(drawn, dim=1), uniform)
    assert drawn[1].shape == (3, 0) and bool((parts[1].labels == -100).all()) and len(parts[1].labels) == 1
    assert [part.examples for part in parts] == [5] * 3, "counts are the batch's"


def test_what_trains_sharded_says_so() -> None:
    for text in MITIGATIONS:
        assert build_mitigation(text).processes == "sharded", text
    for text in ("ewc:mode=kfac", "ewc:estimator=batched", "naive+lwf", "si", "sam", "kl_to_base:on=task"):
        assert build_mitigation(text).processes == "replicated", text
    for text in ("der", "derpp", "self_replay", "kl_to_base:on=text", "ewc+der", "avalanche:plugin=replay"):
        assert build_mitigation(text).processes == "one", text


@pytest.mark.parametrize("name", FSDP2)
def test_a_layout_that_mitigations_cannot_use_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    begin()  # one process: nothing to divide
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(name, "other")
    with pytest.raises(UsageError, match=f"{name} = 'other': give "):
        begin()
