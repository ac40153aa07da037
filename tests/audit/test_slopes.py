"""The slope along the change, against differences of the loss in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.audit.edits import Change, Edit
from forgetting.audit.slopes import general_slopes
from forgetting.weights import swapped
from tests.audit.test_edits import moved, state
from tests.models_for_tests import tiny_llama


def mean_loss(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> float:
    """In float64 throughout; transformers' own loss rounds the logits to float32."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            logits, labels = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
            total += float(torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="sum"))
            count += int((labels >= 0).sum())
    return total / count


def test_slopes_are_the_losss_differences_by_layer_too() -> None:
    torch.manual_seed(0)
    base = tiny_llama(dtype=torch.float64)
    change = Change(base, moved(base))
    batches = []
    for rows, width in ((3, 9), (2, 5)):
        ids = torch.randint(2, 32, (rows, width))
        labels = ids.clone()
        labels[0, : width // 2] = -100
        batches.append({"input_ids": ids, "labels": labels})

    def loss(alpha: float) -> float:
        with change.at(Edit("interpolation", alpha)):
            return mean_loss(change.model, batches)

    before, step = state(change.model), 1e-3
    found = general_slopes(change, batches)
    assert found.tokens == sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    assert (found.loss_base, found.loss_tuned) == (pytest.approx(loss(0), rel=1e-6), pytest.approx(loss(1), rel=1e-6))
    one_sided = [(-3 * loss(0) + 4 * loss(step) - loss(2 * step)) / (2 * step)]
    one_sided.append((3 * loss(1) - 4 * loss(1 - step) + loss(1 - 2 * step)) / (2 * step))
    assert [found.at_base, found.at_tuned] == pytest.approx(one_sided, rel=1e-3)
    assert sum(found.by_layer.values()) == pytest.approx(found.at_tuned, rel=1e-12)
    for layer, slope in found.by_layer.items():
        shifted = []
        for alpha in (1 - step, 1 - 2 * step):
            names = [n for n in change.base if change.layers[n] == layer]
            mixed = dict(change.tuned) | {n: torch.lerp(change.base[n], change.tuned[n], alpha) for n in names}
            with swapped(change.model, lambda mixed=mixed: mixed):  # type: ignore[misc]
                shifted.append(mean_loss(change.model, batches))
        assert slope == pytest.approx((3 * loss(1) - 4 * shifted[0] + shifted[1]) / (2 * step), rel=1e-3, abs=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in state(change.model).items())
    assert all(p.grad is None for p in change.model.parameters())
    assert found.rise == pytest.approx((found.at_base + found.at_tuned) / 2)
    with pytest.raises(ValueError, match="no label is predicted"):
        general_slopes(change, [{"input_ids": batches[0]["input_ids"], "labels": torch.full((3, 9), -100)}])
