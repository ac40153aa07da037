"""SAM against two gradients written out, and gradients that are computed again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.mitigations import Mitigation, Options, build_mitigation
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import ContinualTrainer, padded_batches, training_arguments
from tests.mitigations.test_conformance import TASKS, TOKENIZER, context, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama


def test_the_gradient_is_that_of_the_climbed_weights_and_the_weights_return_bit_for_bit() -> None:
    model = build_mitigation("freeze:first=1").setup(tiny_llama(dtype=torch.float64), context())
    batch = padded_batches(context().encode_task(TASKS[0])[:4], TOKENIZER, 4)[0]
    other = copy.deepcopy(model)
    trained = [p for p in other.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(other(**batch).loss, trained)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.add_(0.3 * gradient / norm)
    expected = torch.autograd.grad(other(**batch).loss, trained)

    def again() -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    again()
    before = weights(model)
    build_mitigation("sam:rho=0.3").after_backward(model, again)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    got = [p.grad for p in model.parameters() if p.requires_grad]
    for gradient, wanted, plain in zip(got, expected, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(gradient, plain, rtol=1e-3, atol=0)  # type: ignore[arg-type]


def test_the_weights_return_after_an_exception_too() -> None:
    model = tiny_llama()
    model(**padded_batches(context().encode_task(TASKS[0])[:4], TOKENIZER, 4)[0]).loss.backward()
    before = weights(model)

    def again() -> None:
        raise RuntimeError("not finite")

    with pytest.raises(RuntimeError):
        build_mitigation("sam").after_backward(model, again)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


class Again(Mitigation[Options]):
    """Computes the gradients anew where they were computed."""

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        again()
        assert all(torch.equal(a, p.grad) for a, p in zip(first, model.parameters(), strict=True) if p.grad is not None)


def test_gradients_anew_see_the_same_dropout_and_leave_the_generator(tmp_path: Path) -> None:
    """With dropout and two batches to a step, computing everything twice changes nothing, bit for bit."""
    config = TrainingConfig(learning_rate=3e-3, steps=3, batch_size=4, gradient_accumulation=2, max_length=16)
    results = []
    for mitigation in (build_mitigation("naive"), Again(Options())):
        model = tiny_gpt2()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        model = mitigation.setup(model, context())
        torch.manual_seed(5)
        dataset = ExampleDataset(context().encode_task(TASKS[0]))
        arguments = training_arguments(config, seed=0, output=str(tmp_path))
        ContinualTrainer(model, dataset, mitigation, arguments, TOKENIZER).train()
        results.append((weights(model), torch.get_rng_state()))
    (naive, state), (twice, state_twice) = results
    assert all(torch.equal(value, naive[name]) for name, value in twice.items())
    assert torch.equal(state, state_twice)
    assert any(not torch.equal(value, naive[name]) for name, value in weights(tiny_gpt2()).items())


def test_it_stands_before_what_changes_gradients() -> None:
    for text, said in (
        ("ewc:update=gradient+sam", "stands after 'ewc', whose change of the gradients it would undo; write sam+ewc"),
        ("si:update=gradient+naive+sam", "stands after 'si'"),
        ("l2sp:update=gradient+sam", "stands after 'l2sp'"),
    ):
        with pytest.raises(UsageError, match=f"mitigation 'sam': {said}".replace("+", r"\+")):
            build_mitigation(text)
    for text in ("sam+ewc:update=gradient", "ewc+sam", "replay+sam+l2sp", "si+sam"):
        build_mitigation(text)
    assert Again(Options()).changes_gradients and not build_mitigation("naive").changes_gradients
