"""GEM and A-GEM: their constraints, on the model's own gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from forgetting.projection import flattened, gradient_on, with_gradients
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import padded_batches
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context, run, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama

DATA = ExampleDataset([])


def ready(text: str, model: Any, seen: int = 1) -> Any:
    """A mitigation that is set up, before the task at position ``seen``."""
    mitigation = build_mitigation(text)
    mitigation.setup(model, context())
    mitigation.train_dataset(DATA, TASKS[seen % 2], TASKS[:seen])
    return mitigation


def recorded(memory: Any) -> list[dict[str, torch.Tensor]]:
    """The batches that a memory gives from now on."""
    batches: list[dict[str, torch.Tensor]] = []
    draw = memory.next_batch
    memory.next_batch = lambda device: batches.append(draw(device)) or batches[-1]
    return batches


def against_the_text(model: Any) -> np.ndarray:
    """Give the model a gradient that raises the loss on the text and on the first task."""
    for features in (context().encode_text(TEXT[:16]), context().encode_task(TASKS[0])):
        (batch,) = padded_batches(features, TOKENIZER, len(features))
        (-model(**batch).loss).backward()
    return flattened(with_gradients(model)[1]).numpy()


def test_gem_projects_onto_every_states_constraint() -> None:
    model = tiny_llama(dtype=torch.float64).train()
    mitigation = ready("gem:examples=8,memory_batch=3", model, seen=2)
    batches = [recorded(memory) for memory in mitigation._memories]
    assert len(batches) == 3
    g = against_the_text(model)
    mitigation.after_backward(model, lambda: None)
    parameters, gradient = with_gradients(model)
    projected = flattened(gradient).numpy()
    G = torch.stack([flattened(gradient_on(model, batch, parameters)) for (batch,) in batches]).numpy()
    assert (G @ g < 0).any() and (G @ projected > -1e-10).all()
    v = nnls(G.T, -g)[0]  # the dual on the gradients themselves, not on their inner products
    np.testing.assert_allclose(projected, g + G.T @ v, atol=1e-10)


def test_agem_takes_out_what_is_against_the_memory() -> None:
    model = tiny_llama(dtype=torch.float64).train()
    mitigation = ready("agem:examples=8,memory_batch=5", model)
    batches = recorded(mitigation._memory)
    g = against_the_text(model)
    mitigation.after_backward(model, lambda: None)
    parameters, gradient = with_gradients(model)
    r = flattened(gradient_on(model, batches[0], parameters)).numpy()
    assert len(batches) == 1 and g @ r < 0
    np.testing.assert_allclose(flattened(gradient).numpy(), g - (g @ r) / (r @ r) * r, atol=1e-12)


def test_what_is_remembered() -> None:
    model = tiny_llama()
    text, task = context().encode_text(TEXT[:16]), context().encode_task(TASKS[0])
    gem = ready("gem:examples=5", model)
    kept_text, kept_task = (memory.features for memory in gem._memories)
    assert kept_text == text[:5] and len(kept_task) == 5 and all(feature in task for feature in kept_task)
    assert gem.stored_floats() == 5 * 6 + sum(len(feature["input_ids"]) for feature in kept_task)
    assert [m.features for m in ready("gem:examples=5", model)._memories] == [kept_text, kept_task]
    agem = ready("agem:examples=5", model)
    assert agem._memory.features == kept_text + kept_task and agem.stored_floats() == gem.stored_floats()
    assert [len(m) for m in ready("gem:examples=5,pretraining=false", model)._memories] == [5]
    assert ready("agem:pretraining=false", model, seen=0)._memory is None


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_neither_mode_nor_random_state_moves_under_dropout(name: str) -> None:
    model = tiny_gpt2()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    model.train()
    projected = []
    for seed in (0, 1):
        model.zero_grad()
        torch.manual_seed(5)
        against_the_text(model)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        ready(f"{name}:examples=8", model).after_backward(model, lambda: None)
        assert torch.equal(torch.get_rng_state(), state) and model.training
        projected.append(flattened(with_gradients(model)[1]))
    assert torch.equal(*projected)  # nor is the random state read


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_what_is_frozen_stays(name: str, tmp_path: Path) -> None:
    base = weights(tiny_llama())
    for text in (f"{name}:examples=8+freeze:first=1", f"freeze:first=1+{name}:examples=8"):
        after = weights(run(text, tmp_path)[0])
        assert all(torch.equal(after[n], base[n]) == n.startswith("model.layers.0.") for n in after)


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_without_the_text_the_first_task_is_naive(name: str, tmp_path: Path) -> None:
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    after = weights(run(f"{name}:pretraining=false", tmp_path, tasks=[0])[0])
    assert all(torch.equal(value, naive[key]) for key, value in after.items())


def test_refusals() -> None:
    for text, said in (
        ("gem:margin=-1", "margin = '-1'"),
        ("gem:examples=-1", "examples = '-1'"),
        ("agem:margin=1", "unknown option 'margin'"),
        ("agem:memory_batch=0", "memory_batch = '0'"),
    ):
        with pytest.raises(UsageError, match=said):
            build_mitigation(text)
