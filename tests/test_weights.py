"""Weights as dictionaries: exact exchanges, mixtures that do not move what is equal."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from forgetting.errors import UsageError
from forgetting.mitigations.wise_ft import WiSEFTOptions
from forgetting.weights import between, check_known, exchange, kept, present, statistics_kept, swapped
from tests.families.small import loaded
from tests.models_for_tests import tiny_llama


def test_exchange_swaps_without_copying_and_a_tied_head_follows() -> None:
    model, other = tiny_llama(), tiny_llama(seed=1)
    ids = torch.arange(2, 12)[None]
    logits, other_logits = model(ids).logits, other(ids).logits
    weights = kept(other)
    addresses = {name: value.data_ptr() for name, value in weights.items()}
    own = {name: p.data_ptr() for name, p in model.named_parameters()}
    exchange(model, weights)
    assert torch.equal(model(ids).logits, other_logits)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses
    assert {name: value.data_ptr() for name, value in weights.items()} == own
    assert model.lm_head.weight is model.model.embed_tokens.weight
    exchange(model, weights)
    assert torch.equal(model(ids).logits, logits)


def test_a_swap_is_made_on_entry_and_undone_after_an_exception() -> None:
    model, other = tiny_llama(), kept(tiny_llama(seed=1))
    before, made = kept(model), []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return dict(other)

    view = swapped(model, make)
    assert not made
    with pytest.raises(KeyError), view:
        assert all(torch.equal(p, other[name]) for name, p in model.named_parameters())
        raise KeyError
    assert made and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(value, kept(tiny_llama(seed=1))[name]) for name, value in other.items())


def test_between_is_exact_at_its_ends_and_where_both_are_equal() -> None:
    start, end = (kept(tiny_llama(seed=seed)) for seed in (0, 1))
    assert all(torch.equal(value, start[name]) for name, value in between(start, end, 0.0).items())
    assert all(torch.equal(value, end[name]) for name, value in between(start, end, 1.0).items())
    for weight in (0.1, 0.3, 0.7):
        assert all(torch.equal(value, start[name]) for name, value in between(start, start, weight).items())
        for name, value in between(start, end, weight).items():
            expected = (1 - weight) * start[name].double() + weight * end[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)


def test_only_what_is_trained_is_kept_and_what_came_later_is_named() -> None:
    model = tiny_llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    weights = kept(model)
    assert "model.embed_tokens.weight" not in weights and "model.norm.weight" in weights
    assert list(present(model, weights)) == list(weights)
    check_known("ema", model, weights)
    model.model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(UsageError, match="mitigation 'ema': model.embed_tokens.weight is trained, and came after"):
        check_known("ema", model, weights)


def test_points_of_a_curve_are_read_from_text() -> None:
    def read(text: str) -> tuple[float, ...]:
        return TypeAdapter(WiSEFTOptions).validate_python({"curve": text}).curve

    assert read("0.1|1") == (0.1, 1.0) and read("0.5") == (0.5,) and read("none") == ()
    for text in ("0.1|", "0.1,0.2", "2", "-0.1"):
        with pytest.raises(ValidationError):
            read(text)


def test_running_statistics_are_weights_too() -> None:
    """A model with batch norms is another function when they moved: interpolation and views must take them along."""
    model = loaded("resnet").model
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    start, expected = kept(model), model(images).logits
    with statistics_kept(model):
        model.train()(images)
    model.eval()
    assert torch.equal(model(images).logits, expected)
    model.train()(images)
    model.eval()
    moved = model(images).logits
    assert not torch.allclose(moved, expected)
    with swapped(model, lambda: between(start, kept(model), 0.0)):
        assert torch.equal(model(images).logits, expected)
    assert torch.equal(model(images).logits, moved)
