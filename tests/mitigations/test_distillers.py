"""LwF and the KL to the base model against the formulas written out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forgetting.distillation import teach
from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import padded_batches
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context, run, train_one, weights
from tests.models_for_tests import tiny_llama


def batch_of(position: int) -> dict[str, Tensor]:
    return padded_batches(context().encode_task(TASKS[position])[:6], TOKENIZER, 6)[0]


def rows(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits at the predicted tokens, found one by one."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    places = [(b, t) for b, row in enumerate(batch["labels"].tolist()) for t, y in enumerate(row) if t and y != -100]
    return torch.stack([logits[b, t - 1] for b, t in places])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Mean KL(p ‖ q) of rows of logits."""
    p, q = p.softmax(-1), q.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1).mean()


def test_lwf_distils_from_the_model_before_the_task(tmp_path: Path) -> None:
    mitigation = build_mitigation("lwf:strength=0.7,temperature=3")
    model = mitigation.setup(tiny_llama(), context())
    for position in range(2):
        before = copy.deepcopy(model)
        model = mitigation.before_task(model, TASKS[position])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(position)))
        batch = batch_of(position)
        outputs = model(**batch)
        got = mitigation.loss(model, batch, outputs, outputs.loss)
        distance = divergence(rows(before, batch) / 3, rows(model, batch) / 3)
        torch.testing.assert_close(got, outputs.loss + 0.7 * 9 * distance)
        assert float(distance.detach()) > 1e-4
        gradient = torch.autograd.grad(got, list(model.parameters()))
        assert all(g is not None for g in gradient)
        mitigation.after_task(model, TASKS[position])
    assert mitigation.stored_floats() == 0 and mitigation.state_dict() == {}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_on_the_tasks_inputs_in_both_directions(direction: str) -> None:
    mitigation = build_mitigation(f"kl_to_base:strength=2,direction={direction}")
    model = mitigation.setup(tiny_llama(), context())
    base = tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch_of(0)
    outputs = model(**batch)
    got = mitigation.loss(model, batch, outputs, outputs.loss)
    pair = (rows(base, batch), rows(model, batch))
    expected = divergence(*pair) if direction == "forward" else divergence(*reversed(pair))
    torch.testing.assert_close(got, outputs.loss + 2 * expected)
    assert mitigation.stored_floats() == sum(p.numel() for p in base.parameters())


def test_kl_on_text_draws_training_text_only_and_leaves_data_and_generator_alone() -> None:
    mitigation = build_mitigation("kl_to_base:on=text")
    model = mitigation.setup(tiny_llama(seed=1), context())
    dataset = ExampleDataset(context().encode_task(TASKS[0]))
    state = torch.get_rng_state()
    assert mitigation.train_dataset(dataset, TASKS[0], []) is dataset
    assert mitigation._memory.features == context().encode_text(TEXT[:16])  # type: ignore[attr-defined]
    first = [mitigation._memory.draw() for _ in range(3)]  # type: ignore[attr-defined]
    mitigation.train_dataset(dataset, TASKS[1], TASKS[:1])
    assert [mitigation._memory.draw() for _ in range(3)] != first  # type: ignore[attr-defined]
    mitigation.train_dataset(dataset, TASKS[0], [])
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    batch = batch_of(0)
    outputs = model(**batch)
    got = mitigation.loss(model, batch, outputs, outputs.loss)
    drawn = padded_batches([context().encode_text(TEXT[:16])[i] for i in first[0]], TOKENIZER, 4)[0]
    assert len(drawn["input_ids"]) == 4  # the task's batch size
    torch.testing.assert_close(got, outputs.loss + divergence(rows(tiny_llama(seed=1), drawn), rows(model, drawn)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("text", ["lwf:strength=1e3", "kl_to_base:strength=1e3", "kl_to_base:strength=1e3,on=text"])
def test_the_stronger_the_nearer_to_the_base(text: str, tmp_path: Path) -> None:
    texts = padded_batches(context().encode_text(TEXT[:16]), TOKENIZER, 16)[0]
    batch = texts if "on=text" in text else padded_batches(context().encode_task(TASKS[0]), TOKENIZER, 16)[0]
    base = teach(tiny_llama(), batch)
    away, naive_away = (
        divergence(base, teach(run(each, tmp_path, tasks=[0])[0].eval(), batch)) for each in (text, "naive")
    )
    assert 0 < float(away) < 0.7 * float(naive_away)


def test_the_base_of_the_second_task_is_still_the_pretrained_model(tmp_path: Path) -> None:
    mitigation = build_mitigation("kl_to_base")
    model = mitigation.setup(tiny_llama(), context())
    model, _ = train_one(model, mitigation, 0, tmp_path)
    base = weights(tiny_llama())
    kept = weights(mitigation._teacher)  # type: ignore[attr-defined]
    assert all(torch.equal(kept[name], value) for name, value in base.items())
    assert not any(p.requires_grad for p in mitigation._teacher.parameters())  # type: ignore[attr-defined]


def test_teachers_of_an_adapted_model_do_not_train_with_it(tmp_path: Path) -> None:
    """A copy of a wrapped model has an adapter of its own: two tasks, each with a fresh one."""
    model, mitigation = run("lora:r=2+kl_to_base+lwf", tmp_path)
    teacher = mitigation.parts[1]._teacher  # type: ignore[attr-defined]
    batch = batch_of(1)
    torch.testing.assert_close(teach(teacher, batch), teach(tiny_llama(), batch), rtol=0, atol=0)
    assert not torch.equal(teach(model.eval(), batch), teach(tiny_llama(), batch))


@pytest.mark.parametrize("text", ["lwf:temperature=0", "kl_to_base:direction=both", "kl_to_base:on=held_out"])
def test_bad_options_are_one_line(text: str) -> None:
    field, value = text.split(":")[1].split("=")
    with pytest.raises(UsageError, match=f"{field} = '{value}'"):
        build_mitigation(text)
