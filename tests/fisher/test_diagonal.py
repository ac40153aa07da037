"""Diagonal Fisher against brute force: per sequence, summed over tokens, then squared."""

from __future__ import annotations

import pytest
import torch

from forgetting.fisher import diagonal_fisher
from tests.models_for_tests import VOCABULARY, tiny_gpt2, tiny_llama


def _batch(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(2, VOCABULARY, (len(lengths), width), generator=generator)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    labels = torch.where(mask, ids, -100)
    labels[:, :2] = -100  # a prompt
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": labels}


@pytest.mark.parametrize("model", [tiny_llama(), tiny_llama(tied=False), tiny_gpt2()], ids=["tied", "untied", "gpt2"])
def test_empirical_equals_squared_gradients_of_each_sequence(model: torch.nn.Module) -> None:
    batch = _batch([9, 5, 7])
    fisher = diagonal_fisher(model, [batch], estimator="empirical")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, length in enumerate((9, 5, 7)):
        model.zero_grad()
        ids, labels = batch["input_ids"][row : row + 1, :length], batch["labels"][row : row + 1, :length]
        loss = model(input_ids=ids, labels=labels).loss * (length - 2)  # the model's loss is a mean
        loss.backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad**2 / 3
    model.zero_grad()
    assert set(fisher.values) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(fisher.values[name], value, rtol=1e-4, atol=1e-6 * float(value.max()))
    assert (fisher.examples, fisher.tokens) == (3, 7 + 3 + 5)


def test_any_split_into_batches_gives_the_same() -> None:
    model, batch = tiny_llama(), _batch([9, 5, 7, 8])
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(4)]
    whole = diagonal_fisher(model, [batch], estimator="empirical")
    split = diagonal_fisher(model, rows, estimator="empirical")
    assert all(torch.equal(whole.values[name], split.values[name]) for name in whole.values)
    cut = diagonal_fisher(model, [batch], estimator="empirical", max_examples=2)
    assert cut.examples == 2


def test_sample_converges_to_the_expectation_over_the_models_labels() -> None:
    model = tiny_llama().double()
    batch = _batch([3])  # one predicted token: the expectation is a sum over the vocabulary
    parameters = list(model.parameters())
    log_probs = model(batch["input_ids"]).logits[0, 1].log_softmax(-1)
    squares, fourth = (torch.zeros_like(parameters[-1]) for _ in range(2))
    for label in range(VOCABULARY):
        gradient = torch.autograd.grad(log_probs[label], parameters[-1], retain_graph=True)[0]
        squares += log_probs[label].exp().detach() * gradient**2
        fourth += log_probs[label].exp().detach() * gradient**4
    draws = 2000
    rows = {key: value.expand(draws, -1) for key, value in batch.items()}
    sampled = diagonal_fisher(model, [rows], estimator="sample", generator=torch.Generator().manual_seed(0))
    name = [name for name, _ in model.named_parameters()][-1]
    standard_error = ((fourth - squares**2) / draws).sqrt()
    z = (sampled.values[name].double() - squares) / standard_error
    assert z.abs().max() < 4.5 and z.pow(2).mean() < 2


def test_seeded_and_leaves_the_model_as_found() -> None:
    model = tiny_llama().train()
    for p in model.model.layers[0].parameters():
        p.requires_grad_(False)
    one, two = (diagonal_fisher(model, [_batch([9, 5])], generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not any(name.startswith("model.layers.0.") for name in one.values)


def test_nothing_to_predict_or_to_train_raises() -> None:
    model, batch = tiny_llama(), _batch([5])
    with pytest.raises(ValueError, match="no sequence has a predicted token"):
        diagonal_fisher(model, [{**batch, "labels": torch.full_like(batch["labels"], -100)}])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        diagonal_fisher(model, [batch])
