"""The quadratic form against known divergences: exactly where they are quadratic, to second order elsewhere."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forgetting.analysis.laws import prediction_ratios, second_order_rise
from forgetting.fisher import DiagonalFisher, diagonal_fisher

TOKENS = 5


class Bigram(nn.Module):
    """P(1 | x) = σ(w_x) at each of T positions: no two weights act together, so the diagonal is all of F."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(symbols, generator=generator, dtype=torch.float64))

    def forward(self, input_ids: Tensor) -> Tensor:
        scores = self.weight[input_ids]  # (B, T)
        return torch.stack([torch.zeros_like(scores), scores], dim=-1)


def _text() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(4, (6, TOKENS), generator=generator)
    return {"input_ids": inputs, "labels": torch.randint(2, inputs.shape, generator=generator)}


def _divergences(model: Bigram, moved: Tensor) -> tuple[float, float]:
    """Forward and reverse KL to the model with other weights, nats per sequence, mean over the text."""
    ids = _text()["input_ids"]
    before = model(ids).detach().log_softmax(-1)
    scores = moved[ids]
    after = torch.stack([torch.zeros_like(scores), scores], dim=-1).log_softmax(-1)
    forward = (before.exp() * (before - after)).sum() / len(ids)
    reverse = (after.exp() * (after - before)).sum() / len(ids)
    return float(forward), float(reverse)


def _gaussian(values: dict[str, Tensor], tokens: int, examples: int) -> DiagonalFisher:
    return DiagonalFisher(values=values, estimator="exact", examples=examples, tokens=tokens)


def test_of_a_gaussian_it_is_the_divergence() -> None:
    """A sequence of 3 draws of N(θ, 0.5²): F = 3 / 0.25 per sequence, KL = 3 Δ² / (2 · 0.25)."""
    fisher = _gaussian({"mean": torch.full((2,), 12.0)}, tokens=30, examples=10)
    before, after = {"mean": torch.tensor([0.0, 1.0])}, {"mean": torch.tensor([0.5, -1.0])}
    rise = second_order_rise(before, after, fisher)
    assert rise.per_example == pytest.approx(3 * (0.5**2 + 2**2) / (2 * 0.25))
    assert rise.tokens_per_example == 3 and rise.per_token == pytest.approx(rise.per_example / 3)
    assert rise.parameters == 2


def test_it_is_the_divergence_to_second_order_and_no_further() -> None:
    model = Bigram(4)
    fisher = diagonal_fisher(
        model, [_text()], estimator="exact", backend="reference", shift_labels=False, accumulate_dtype=torch.float64
    )
    direction = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    before = {"weight": model.weight.detach()}
    errors = []
    for size in (0.02, 0.01, 0.005):
        moved = before["weight"] + size * direction
        rise = second_order_rise(before, {"weight": moved}, fisher)
        forward, reverse = _divergences(model, moved)
        errors.append((abs(forward / rise.per_example - 1), abs(reverse / rise.per_example - 1)))
        # nats per sequence, and per token: all sequences have as many
        assert rise.tokens_per_example == TOKENS and rise.per_token == rise.per_example / TOKENS
    for larger, smaller in pairwise(errors):
        # what is left is of third order: relative to the second, it halves with the step
        assert larger[0] / smaller[0] == pytest.approx(2, rel=0.05)
        assert larger[1] / smaller[1] == pytest.approx(2, rel=0.05)
    assert 1e-5 < errors[-1][0] < 0.02


def test_sequences_of_different_lengths_are_divided_by_their_mean_length() -> None:
    """Nats per token are all nats over all tokens, as ΔCE is, not a mean of sequences' means."""
    model, text = Bigram(4), _text()
    text["labels"][:3, 2:] = -100  # three sequences of 2 predicted labels, three of 5
    fisher = diagonal_fisher(model, [text], estimator="exact", backend="reference", shift_labels=False)
    moved = model.weight.detach() + 1e-3
    chosen = text["labels"] != -100
    p = torch.sigmoid(model.weight.detach()[text["input_ids"]])
    total = float((0.5 * p * (1 - p) * 1e-6)[chosen].sum())
    rise = second_order_rise({"weight": model.weight}, {"weight": moved}, fisher)
    assert rise.tokens_per_example == 21 / 6
    assert rise.per_token == pytest.approx(total / 21, rel=1e-6)
    assert rise.per_example == pytest.approx(total / 6, rel=1e-6)


def test_small_moves_are_not_lost_to_rounding() -> None:
    fisher = _gaussian({"w": torch.ones(3, dtype=torch.float32)}, tokens=1, examples=1)
    before = {"w": torch.full((3,), 1000.0, dtype=torch.float64)}
    after = {"w": before["w"] + 1e-6}
    assert second_order_rise(before, after, fisher).per_example == pytest.approx(1.5e-12, rel=1e-6)


def test_only_what_the_fisher_has_counts() -> None:
    fisher = _gaussian({"w": torch.ones(2)}, tokens=1, examples=1)
    before = {"w": torch.zeros(2), "head": torch.zeros(3)}
    after = {"w": torch.ones(2), "head": torch.ones(3)}
    assert second_order_rise(before, after, fisher).per_example == 1.0


def test_states_that_do_not_fit_are_refused() -> None:
    fisher = _gaussian({"w": torch.ones(2)}, tokens=1, examples=1)
    fit, other = {"w": torch.zeros(2)}, {"v": torch.zeros(2)}
    with pytest.raises(ValueError, match="before: has no parameter w"):
        second_order_rise(other, fit, fisher)
    with pytest.raises(ValueError, match="after: has no parameter w"):
        second_order_rise(fit, other, fisher)
    with pytest.raises(ValueError, match=r"after: parameter w has shape \(1, 2\), in the Fisher information \(2,\)"):
        second_order_rise(fit, {"w": torch.zeros(1, 2)}, fisher)
    with pytest.raises(ValueError, match="parameter w: a weight or its Fisher information is not finite"):
        second_order_rise(fit, {"w": torch.tensor([0.0, math.nan])}, fisher)


@pytest.mark.parametrize(("estimator", "unit"), [("batched", "batch"), ("positionwise", "position")])
def test_another_unit_is_refused(estimator: str, unit: str) -> None:
    fisher = DiagonalFisher(values={"w": torch.ones(2)}, estimator=estimator, examples=1, tokens=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"estimator '{estimator}' squares per {unit}; need one per example"):
        second_order_rise({"w": torch.zeros(2)}, {"w": torch.ones(2)}, fisher)


def test_ratios_by_hand() -> None:
    got = prediction_ratios([1.0, 4.0, 8.0], [2.0, 2.0, 8.0])
    assert got.ratios == pytest.approx([0.5, 2.0, 1.0])
    assert got.relative_errors == pytest.approx([-0.5, 1.0, 0.0])
    assert got.mean_relative_error == pytest.approx(0.5)
    assert got.ratio == pytest.approx(1.0)
    half = 4.302652729911275 * math.log(2) / 3**0.5  # the logs are −ln 2, ln 2, 0: s = ln 2
    assert (got.low, got.high) == pytest.approx((math.exp(-half), math.exp(half)))
    assert got.rank_correlation == pytest.approx(3**0.5 / 2)  # ranks 1, 2, 3 and 1.5, 1.5, 3


def test_too_few_points_have_no_interval_and_no_rank() -> None:
    one = prediction_ratios([1.0], [2.0])
    assert one.ratio == 0.5 and math.isnan(one.low) and math.isnan(one.high) and math.isnan(one.rank_correlation)
    assert math.isnan(prediction_ratios([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).rank_correlation)


def test_falls_have_no_ratio() -> None:
    with pytest.raises(ValueError, match=r"observed: -0\.1 at point 1 is not above 0"):
        prediction_ratios([1.0, 1.0], [0.5, -0.1])
    with pytest.raises(ValueError, match=r"predicted: 0\.0 at point 0 is not above 0"):
        prediction_ratios([0.0, 1.0], [0.5, 0.1])
    with pytest.raises(ValueError, match=r"observed: has shape \(3,\)"):
        prediction_ratios([1.0, 1.0], np.ones(3))
