"""OGD: its basis, and what a step does to earlier outputs to first order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from forgetting.distillation import predicted_logits
from forgetting.errors import RunFailed, UsageError
from forgetting.mitigations import build_mitigation
from forgetting.projection import copy_flat, flattened, gradient_on, with_gradients
from forgetting.trainer import padded_batches
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context, run, train_one, weights
from tests.models_for_tests import tiny_llama


def test_the_basis_is_orthonormal_and_spans_the_examples_gradients(tmp_path: Path) -> None:
    mitigation: Any = build_mitigation("ogd:directions=6")
    model = mitigation.setup(tiny_llama(), context())
    base = tiny_llama()
    for position in range(2):
        model, _ = train_one(model, mitigation, position, tmp_path)
    basis = mitigation._basis
    assert basis.shape[0] == 18 and mitigation.stored_floats() == basis.numel()
    assert (basis @ basis.T - torch.eye(18)).abs().max() < 5e-6
    for batch in padded_batches(context().encode_text(TEXT[:6]), TOKENIZER, 1):
        g = flattened(gradient_on(base, batch, list(base.parameters())))
        assert (g - basis[:6].T @ (basis[:6] @ g)).norm() < 1e-4 * g.norm()


def test_a_step_along_the_projected_gradient_keeps_stored_outputs_to_first_order() -> None:
    model = tiny_llama(dtype=torch.float64)
    mitigation: Any = build_mitigation("ogd:directions=8")
    mitigation.setup(model, context())
    mitigation.before_task(model, TASKS[0])
    stored = padded_batches(context().encode_text(TEXT[:8]), TOKENIZER, 1)
    (task,) = padded_batches(context().encode_task(TASKS[0]), TOKENIZER, 16)
    model(**task).loss.backward()
    parameters, gradient = with_gradients(model)
    start, raw = flattened(parameters), flattened(gradient)
    mitigation.after_backward(model, lambda: None)
    projected = flattened(gradient)
    assert 0.1 * raw.norm() < projected.norm() < raw.norm()

    def change(step: torch.Tensor) -> float:
        """Of the log-probabilities, in fp64: the model's own loss is taken in fp32."""
        found = []
        for point in (start, start - step):
            copy_flat(point, parameters)
            logits = [predicted_logits(model(**batch).logits, batch["labels"]).detach() for batch in stored]
            targets = [batch["labels"][0, 1:] for batch in stored]
            found.append(torch.stack([cross_entropy(z, t) for z, t in zip(logits, targets, strict=True)]))
        copy_flat(start, parameters)
        return float((found[1] - found[0]).abs().max())

    large, small = change(1e-2 * projected), change(1e-3 * projected)
    assert 90 < large / small < 110  # second order: ten times the step, a hundred times the change
    assert 9 < change(1e-2 * raw) / change(1e-3 * raw) < 11 and small < 1e-2 * change(1e-3 * raw)


@pytest.mark.parametrize("project", ["step", "gradient"])
def test_adams_displacement_is_orthogonal_only_where_the_step_is_projected(project: str, tmp_path: Path) -> None:
    mitigation: Any = build_mitigation(f"ogd:directions=8,project={project}")
    model = mitigation.setup(tiny_llama(), context())
    start = flattened(list(model.parameters()))
    mitigation.after_task = lambda model, task: model  # the basis of the pretrained state alone
    model, _ = train_one(model, mitigation, 0, tmp_path)
    moved = flattened(list(model.parameters())) - start
    share = float((mitigation._basis @ moved).norm() / moved.norm())
    assert moved.norm() > 0.01
    assert share < 1e-5 if project == "step" else share > 1e-3


def test_what_is_frozen_stays_in_either_order(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    results = [
        weights(run(t, tmp_path)[0]) for t in ("ogd:directions=4+freeze:first=1", "freeze:first=1+ogd:directions=4")
    ]
    for after in results:
        assert all(torch.equal(after[n], base[n]) == n.startswith("model.layers.0.") for n in after)
    assert all(torch.equal(results[0][n], results[1][n]) for n in base)


@pytest.mark.parametrize("order", ["ogd:directions=4+gradual_unfreezing", "gradual_unfreezing+ogd:directions=4"])
def test_what_has_no_gradient_for_a_while_is_not_moved_then(order: str, tmp_path: Path) -> None:
    """Of three groups, one each is taken in at the steps 0, 2 and 3; the rate of step 0 is 0."""
    mitigation: Any = build_mitigation(order)
    model = mitigation.setup(tiny_llama(), context())
    mitigation.after_task = lambda model, task: model
    moved: list[set[str]] = []
    start, after_step = weights(model), mitigation.after_step

    def look(model: Any, learning_rate: float) -> None:
        after_step(model, learning_rate)
        moved.append({name for name, value in weights(model).items() if not torch.equal(value, start[name])})

    mitigation.after_step = look
    model, _ = train_one(model, mitigation, 0, tmp_path)
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in moved[1]) and moved[1]
    assert moved[1] < moved[2] < moved[3] == set(start)
    (ogd,) = (part for part in mitigation.parts if hasattr(part, "_basis"))
    change = flattened([p - start[name] for name, p in model.named_parameters()])
    assert (ogd._basis @ change).norm() < 1e-4 * change.norm()


def test_without_the_text_the_first_task_is_naive(tmp_path: Path) -> None:
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    after = weights(run("ogd:pretraining=false", tmp_path, tasks=[0])[0])
    assert all(torch.equal(value, naive[key]) for key, value in after.items())


def test_refusals(tmp_path: Path) -> None:
    for text, said in (
        ("ogd+lora", "stands before 'lora'"),
        ("lora+ogd", r"write lora:merge=false\+ogd"),
        ("ogd:directions=-1", "directions = '-1'"),
    ):
        with pytest.raises(UsageError, match=said):
            build_mitigation(text)
    model, _ = run("lora:merge=false+ogd:directions=2", tmp_path)
    assert any(p.requires_grad for p in model.parameters())
    mitigation = build_mitigation("ogd:directions=2")
    model = mitigation.setup(tiny_llama(), context())
    mitigation.before_task(model, TASKS[0])
    model.model.embed_tokens.requires_grad_(False)
    with pytest.raises(RunFailed, match=r"'ogd': \d+ parameters train now, \d+ did when directions were kept"):
        mitigation.after_backward(model, lambda: None)
