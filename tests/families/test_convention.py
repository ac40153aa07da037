"""What every family's model must keep to: the labels' convention, mixed batches, heads, checkpoints, the Fisher."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from forgetting.checkpoint import load_checkpoint, save_checkpoint
from forgetting.config import TrainingConfig
from forgetting.distillation import frozen_copy, inputs, kl_divergence, predicted_logits, teach
from forgetting.fisher import diagonal_fisher
from forgetting.mitigations import build_mitigation
from forgetting.trainer import mean_loss, padded_batches
from tests.families.small import MODELS, documents, family

NAMES = list(MODELS)


def batches(name: str, *kinds: str) -> list[dict[str, torch.Tensor]]:
    """All features of the kinds asked for in one batch: ``one`` and ``two`` (tasks), ``pretraining``."""
    known = family(name)
    features = []
    for kind in kinds:
        if kind == "pretraining":
            features += known.encode_pretraining(documents(name), 16)
        else:
            task = next(task for task in known.sequence.tasks if task.name == kind)
            features += known.encode(task, task.train[:4], 16)
    return padded_batches(features, known.tokenizer, len(features))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [("one",), ("pretraining",), ("one", "two", "pretraining")])
def test_the_loss_is_the_mean_over_what_is_predicted_at_the_column_before(name: str, kinds: tuple[str, ...]) -> None:
    model = family(name).base.model
    (batch,) = batches(name, *kinds)
    found = model(**batch)
    labels = batch["labels"]
    assert bool((labels[:, 0] == -100).all())
    logits = predicted_logits(found.logits, labels)
    wanted = labels[:, 1:][labels[:, 1:] != -100]
    assert found.logits.shape[:2] == labels.shape and len(logits) == len(wanted)
    assert float(found.loss) == pytest.approx(float(functional.cross_entropy(logits, wanted)), rel=1e-6)
    assert float(model(**batch, num_items_in_batch=7).loss) == pytest.approx(
        float(found.loss) * len(wanted) / 7, rel=1e-6
    )
    assert mean_loss(model, [batch]) == pytest.approx(float(found.loss), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_predicted_alike_whatever_it_is_batched_with(name: str) -> None:
    model = family(name).base.model
    alone = [batches(name, kind)[0] for kind in ("one", "two", "pretraining")]
    (together,) = batches(name, "one", "two", "pretraining")
    losses = [(float(model(**batch).loss), int((batch["labels"] != -100).sum())) for batch in alone]
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert float(model(**together).loss) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "t5"])
def test_only_the_head_of_a_row_predicts_and_learns(name: str) -> None:
    known = family(name, "task")
    model = known.base.model
    (batch,) = batches_of(known, name)
    found = model(**batch)
    probabilities = predicted_logits(found.logits, batch["labels"]).softmax(-1)
    assert bool(((probabilities > 0).sum(1) == 2).all())
    found.loss.backward()
    used, unused = (list(model.heads.heads[head].parameters()) for head in ("head0", "head1"))
    assert all(p.grad is not None and bool(p.grad.any()) for p in used)
    assert all(p.grad is None for p in unused)


def batches_of(known: object, name: str) -> list[dict[str, torch.Tensor]]:
    task = known.sequence.tasks[0]  # type: ignore[attr-defined]
    return padded_batches(known.encode(task, task.train[:4], 16), known.tokenizer, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [("one",), ("pretraining",), ("one", "two", "pretraining")])
def test_fisher_agrees_with_one_example_at_a_time(name: str, kinds: tuple[str, ...]) -> None:
    model = copy.deepcopy(family(name).base.model).double()
    (batch,) = batches(name, *kinds)
    ours = diagonal_fisher(model, [batch], estimator="empirical").values
    reference = diagonal_fisher(model, [batch], estimator="empirical", backend="reference").values
    assert ours.keys() == reference.keys()
    for key, value in reference.items():
        assert torch.allclose(ours[key].double(), value, rtol=1e-4, atol=1e-6 * max(1.0, float(value.max()))), key


@pytest.mark.parametrize("name", NAMES)
def test_distillation_works_on_every_family(name: str) -> None:
    model = family(name).base.model
    teacher = frozen_copy(model)
    (batch,) = batches(name, "one", "pretraining")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    student = predicted_logits(model(**batch).logits, batch["labels"])
    taught = teach(teacher, batch)
    assert "labels" not in inputs(batch) and student.shape == taught.shape
    for direction in ("forward", "reverse"):
        divergence = kl_divergence(taught, student, direction=direction)  # type: ignore[arg-type]
        assert bool(torch.isfinite(divergence)) and float(divergence) > 0
    assert float(kl_divergence(taught, taught)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_restores_every_weight_and_statistic(name: str, tmp_path: Path) -> None:
    model = family(name).base.model
    with torch.no_grad():
        for value in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            value.add_(0.01)
    save_checkpoint(tmp_path, 1, model, build_mitigation("naive"))
    fresh = family(name).base.model
    load_checkpoint(tmp_path, 1, fresh, build_mitigation("naive"))
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())


def test_frozen_batch_norms_keep_their_statistics() -> None:
    model = family("resnet").base.model
    (batch,) = batches("resnet", "one")
    model.base.requires_grad_(False)
    before = {key: value.clone() for key, value in model.base.state_dict().items()}
    model.train()
    model(**batch)
    assert all(torch.equal(value, before[key]) for key, value in model.base.state_dict().items())
    model.base.requires_grad_(True)
    model.train()
    model(**batch)
    assert any(not torch.equal(value, before[key]) for key, value in model.base.state_dict().items())


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "t5"])
def test_kl_to_base_needs_a_pretrained_head_where_tasks_add_heads(name: str, scenario: Any) -> None:
    from forgetting.errors import UsageError

    model, mitigation = family(name, scenario).base.model, build_mitigation("kl_to_base")
    if MODELS[name][0] == "vision":
        mitigation.check_model(model)
    else:
        with pytest.raises(UsageError, match="its head is new with the task; give on=text"):
            mitigation.check_model(model)
        build_mitigation("kl_to_base:on=text").check_model(model)


def moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))


def through(model: torch.nn.Module, batch: dict[str, torch.Tensor], head: int) -> torch.Tensor:
    """The logits of one head for all rows, by asking for it row by row."""
    given = {**inputs(batch), "head": torch.full_like(batch["head"], head)}
    logits = model(**given).logits[:, 0]
    return logits[:, (logits > -1e3).all(0)]


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "t5"])
def test_lwf_distils_every_old_head_on_the_new_task_and_no_other(name: str, scenario: Any) -> None:
    known = family(name, scenario)
    model, mitigation = known.base.model, build_mitigation("lwf:strength=0.7,temperature=2")
    given: Any = SimpleNamespace(seed=0)
    model = mitigation.setup(model, given)
    one, two = (padded_batches(known.encode(t, t.train[:4], 16), known.tokenizer, 4)[0] for t in known.sequence.tasks)
    first = 1 if MODELS[name][0] == "vision" else 0  # head 0 is the pretrained one there
    for task, batch, old in zip(known.sequence.tasks, (one, two), ([*range(first)], [*range(first + 1)]), strict=True):
        model = mitigation.before_task(model, task)
        teacher = copy.deepcopy(model)
        moved(model)
        outputs = model(**batch)
        expected = outputs.loss.detach().clone()
        for head in old:
            p, q = (through(m, batch, head).detach() / 2 for m in (teacher, model))
            expected += (
                0.7
                * 4
                * functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)
            )
        found = mitigation.loss(model, batch, outputs, outputs.loss)
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
        assert (float(found) > float(outputs.loss)) == bool(old)
        model.zero_grad()
        found.backward()
        learns = {name for name, module in model.heads.heads.items() if module.weight.grad is not None}
        assert learns == {f"head{head - first}" for head in [*old, int(batch["head"][0])] if head >= first}
        model = mitigation.after_task(model, task)
    again = build_mitigation("lwf:strength=0.7,temperature=2")
    again.setup(family(name, scenario).base.model, given)
    again.load_state_dict(mitigation.state_dict())
    assert again.state_dict()["old"].tolist() == list(range(first + (2 if scenario == "task" else 1)))


def test_kl_to_base_on_task_inputs_keeps_the_pretrained_head() -> None:
    known = family("vit", "task")
    mitigation = build_mitigation("kl_to_base:strength=0.5,direction=reverse")
    given: Any = SimpleNamespace(seed=0)
    model = mitigation.setup(known.base.model, given)
    base = copy.deepcopy(model)
    task = known.sequence.tasks[1]
    (batch,) = padded_batches(known.encode(task, task.train[:4], 16), known.tokenizer, 4)
    moved(model)
    outputs = model(**batch)
    p, q = (through(m, batch, 0).log_softmax(-1).detach() for m in (base, model))
    expected = float(outputs.loss) + 0.5 * float((q.exp() * (q - p)).sum(1).mean())
    assert float(mitigation.loss(model, batch, outputs, outputs.loss)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("text", ["fisher_merge:weight=0.5,examples=4", "merge_previous:weight=0.5"])
def test_merging_takes_running_statistics_along(text: str) -> None:
    known = family("resnet")
    given: Any = SimpleNamespace(
        seed=0,
        tokenizer=known.tokenizer,
        training=TrainingConfig(batch_size=4),
        pretraining=SimpleNamespace(train=documents("resnet")),
        encode_text=lambda texts: known.encode_pretraining(texts, 16),
        encode_task=lambda task: known.encode(task, task.train, 16),
    )
    task, mitigation = known.sequence.tasks[0], build_mitigation(text)
    model = mitigation.before_task(mitigation.setup(known.base.model, given), task)
    statistics = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    before = [buffer.clone() for buffer in statistics]
    model.train()(**batches("resnet", "one")[0])
    tuned = [buffer.clone() for buffer in statistics]
    model = mitigation.after_task(model.eval(), task)
    for buffer, old, new in zip(statistics, before, tuned, strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(buffer, (old + new) / 2)
