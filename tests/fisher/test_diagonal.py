"""The function around the rules: estimators, arguments, what is left behind, files."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetting.fisher import DiagonalFisher, NoRule, diagonal_fisher
from tests.fisher.families import FAMILIES, VOCABULARY, text


def test_sampling_converges_to_full_enumeration() -> None:
    """Over 2,000 draws, by the standard error of every single parameter, not by a bound."""
    model, _ = FAMILIES["llama-tied"]()
    batch = text(lengths=(4,))
    batch["labels"][0, 1:3] = torch.tensor([5, -100])  # two predicted tokens, of the 16 of the vocabulary
    enumerated = diagonal_fisher(model, [batch], estimator="exact", accumulate_dtype=torch.float64)
    draws = 2000
    rows = {key: value.expand(draws, -1) for key, value in batch.items()}
    options: dict[str, Any] = {"estimator": "sample", "accumulate_dtype": torch.float64}
    sampled = diagonal_fisher(model, [rows], generator=torch.Generator().manual_seed(0), **options)
    halves = [
        diagonal_fisher(model, [batch], samples=1, generator=torch.Generator().manual_seed(seed), **options)
        for seed in range(200)
    ]
    z = []
    for name, value in sampled.values.items():
        deviation = torch.stack([half.values[name] for half in halves]).std(0) / math.sqrt(draws)
        varies = deviation > 1e-9 * float(value.max())
        z.append(((value - enumerated.values[name]) / deviation)[varies])
    scores = torch.cat(z)
    assert scores.numel() > 1000 and 0.3 < float(scores.square().mean()) < 2.0 and float(scores.abs().max()) < 6


def test_more_samples_average_the_draws() -> None:
    model, _ = FAMILIES["llama-tied"]()
    batch = text(lengths=(5,))
    generator = torch.Generator().manual_seed(7)
    three = diagonal_fisher(model, [batch], samples=3, generator=generator, accumulate_dtype=torch.float64)
    generator.manual_seed(7)
    singles = [
        diagonal_fisher(model, [batch], generator=generator, accumulate_dtype=torch.float64).values for _ in range(3)
    ]
    for name, value in three.values.items():
        # RMSNorm's float32 rounds gradients that are scaled otherwise in another way.
        torch.testing.assert_close(value, sum(single[name] for single in singles) / 3, rtol=1e-5, atol=1e-9)
    assert three.samples == 3


def test_the_named_approximations_are_what_they_are_named() -> None:
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    pairs: Any = [(x[:4], y[:4]), (x[4:], y[4:])]
    batched = diagonal_fisher(layer, pairs, estimator="batched", accumulate_dtype=torch.float64)
    expected = torch.zeros_like(layer.weight)
    for inputs, labels in pairs:
        loss = nn.functional.cross_entropy(layer(inputs), labels)  # the mean over the batch
        expected += torch.autograd.grad(loss, layer.weight)[0] ** 2 / 2
    torch.testing.assert_close(batched.values["weight"], expected)
    assert batched.examples == 6

    model, batch = FAMILIES["llama-untied"]()
    ours = diagonal_fisher(model, [batch], estimator="positionwise", accumulate_dtype=torch.float64).values
    seen: list[Tensor] = []
    projection = model.get_submodule("model.layers.1.mlp.down_proj")
    projection.register_forward_hook(lambda m, i, o: seen.extend([i[0], o]))
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    (G,) = torch.autograd.grad(loss, seen[1])
    torch.testing.assert_close(
        ours["model.layers.1.mlp.down_proj.weight"], torch.einsum("bto,bti->oi", G**2, seen[0] ** 2) / 3
    )


def test_the_positionwise_approximation_is_far_from_the_fisher() -> None:
    model, batch = FAMILIES["llama-tied"]()
    exact = diagonal_fisher(model, [batch], estimator="empirical").values
    wrong = diagonal_fisher(model, [batch], estimator="positionwise").values
    name = "model.layers.0.mlp.down_proj.weight"
    assert float((exact[name] - wrong[name]).norm() / exact[name].norm()) > 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_seeded_and_leaves_the_model_as_found(family: str) -> None:
    model, batch = FAMILIES[family]()
    model.train()
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    forwards = {module: dict(module.__dict__) for module in model.modules()}
    chosen = next(p for p in model.parameters() if p.requires_grad)
    chosen.grad = torch.ones_like(chosen)
    one, two = (diagonal_fisher(model, [batch], generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
    assert all(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and torch.equal(parameter, before[name][1])
        assert parameter.grad is None or (parameter is chosen and bool((parameter.grad == 1).all()))
        assert not parameter._backward_hooks
    for module, state in forwards.items():
        assert {k: v for k, v in module.__dict__.items() if k != "training"}.keys() == state.keys() - {"training"}
        assert list(module._parameters) == list(state["_parameters"])


def test_after_an_exception_the_model_is_as_found() -> None:
    model, batch = FAMILIES["t5-tied"]()
    model.train()
    keys = {module: set(module.__dict__) for module in model.modules()}

    def fail(*_: Any) -> None:
        raise RuntimeError("midway")

    handle = model.get_submodule("decoder.block.1").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="midway"):
        diagonal_fisher(model, [batch])
    handle.remove()
    assert all(module.training and set(module.__dict__) == keys[module] for module in model.modules())
    assert model.config.use_cache and all(p.requires_grad for p in model.parameters())
    diagonal_fisher(model, [batch])


class Odd(nn.Module):
    """A layer nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.gate)


def test_a_parameter_without_a_rule_names_itself() -> None:
    model, pairs = Odd(), [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    with pytest.raises(NoRule, match=r"no rule for gate \(of a Odd\); leave them out by parameters=\[…\], or use"):
        diagonal_fisher(model, pairs)  # type: ignore[arg-type]
    assert set(diagonal_fisher(model, pairs, parameters=["linear.*"]).values) == {"linear.weight", "linear.bias"}  # type: ignore[arg-type]
    oracle = diagonal_fisher(model, pairs, backend="reference", estimator="empirical")  # type: ignore[arg-type]
    assert float(oracle.values["gate"].sum()) > 0


def test_a_weight_used_past_its_layer_is_refused_and_its_gradient_kept() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) @ self.linear.weight

    model = Around()
    with pytest.raises(NoRule, match=r"linear\.weight is used outside of its layer's forward"):
        diagonal_fisher(model, [(torch.randn(2, 3), torch.tensor([0, 1]))])  # type: ignore[list-item]
    assert model.linear.weight.grad is None and "forward" not in model.linear.__dict__


def test_tensors_in_which_examples_cannot_be_told_apart_are_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.view(-1, 2, 4)[:3].flatten(0, 1))[:4]

    with pytest.raises(ValueError, match=r"layer linear sees a tensor of shape \(6, '…'\) in a batch of 4"):
        diagonal_fisher(Mixed(), [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))])  # type: ignore[list-item]


def test_max_examples_takes_the_first() -> None:
    model, batch = FAMILIES["gpt2-tied"]()
    one = {key: value[:1] for key, value in batch.items()}
    for backend in ("torch", "reference"):
        options: dict[str, Any] = {"estimator": "empirical", "backend": backend, "accumulate_dtype": torch.float64}
        taken = diagonal_fisher(model, iter([batch, {}]), max_examples=1, **options)  # the second is not looked at
        expected = diagonal_fisher(model, [one], **options)
        assert (taken.examples, taken.tokens) == (expected.examples, expected.tokens) == (1, 5)
        for name, value in expected.values.items():
            torch.testing.assert_close(taken.values[name], value, rtol=1e-9, atol=1e-18)


def test_rows_without_a_label_do_not_count() -> None:
    model, batch = FAMILIES["llama-tied"]()
    labels = batch["labels"].clone()
    labels[1] = -100
    others = {key: value[[0, 2]] for key, value in batch.items()}
    ours = diagonal_fisher(model, [{**batch, "labels": labels}], estimator="empirical", accumulate_dtype=torch.float64)
    expected = diagonal_fisher(model, [others], estimator="empirical", accumulate_dtype=torch.float64)
    assert ours.examples == 2
    for name, value in expected.values.items():
        torch.testing.assert_close(ours.values[name], value, rtol=1e-9, atol=1e-18)


def test_progress_is_told() -> None:
    model, batch = FAMILIES["llama-tied"]()
    seen: list[tuple[int, int | None]] = []
    diagonal_fisher(model, [batch, batch], progress=lambda done, total: seen.append((done, total)))
    diagonal_fisher(model, [batch, batch], max_examples=4, progress=lambda done, total: seen.append((done, total)))
    diagonal_fisher(model, iter([batch]), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2), (3, 4), (4, 4), (1, None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "exactly"}, "estimator: 'exactly' is none of exact, sample, empirical, batched, positionwise"),
        ({"backend": "cuda"}, "backend: 'cuda' is none of auto, reference, torch, triton"),
        ({"samples": 0}, "samples: 0 with estimator 'sample'; give 1, or more"),
        ({"samples": 2, "estimator": "exact"}, "samples: 2 with estimator 'exact'"),
        ({"max_examples": 0}, "max_examples: 0 is not positive"),
        ({"backend": "triton"}, "backend 'triton': needs a CUDA device"),
    ],
)
def test_arguments_out_of_range_are_named(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model, batch = FAMILIES["llama-tied"]()
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(model, [batch], **options)


def test_nothing_to_predict_or_to_train_raises() -> None:
    model, batch = FAMILIES["llama-tied"]()
    with pytest.raises(ValueError, match="no example has a predicted label"):
        diagonal_fisher(model, [{**batch, "labels": torch.full_like(batch["labels"], -100)}])
    with pytest.raises(ValueError, match="a batch has no tensor 'labels', only input_ids, attention_mask"):
        diagonal_fisher(model, [{key: value for key, value in batch.items() if key != "labels"}])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        diagonal_fisher(model, [batch])
    head = nn.Linear(2, 2000)
    with pytest.raises(ValueError, match="estimator 'exact': the model has 2000 classes"):
        diagonal_fisher(head, [(torch.randn(1, 2), torch.tensor([0]))], estimator="exact")  # type: ignore[list-item]


def test_a_file_tells_what_it_is_and_loads_only_where_it_fits(tmp_path: Path) -> None:
    model, batch = FAMILIES["gpt2-tied"]()
    fisher = diagonal_fisher(model, [batch], samples=2, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "fisher.safetensors"
    fisher.save(path)
    loaded = DiagonalFisher.load(path, model)
    assert all(torch.equal(loaded.values[name], value) for name, value in fisher.values.items())
    assert (loaded.estimator, loaded.samples, loaded.examples, loaded.tokens) == ("sample", 2, 3, fisher.tokens)
    other, _ = FAMILIES["llama-tied"]()
    with pytest.raises(ValueError, match="the model has no parameter transformer"):
        DiagonalFisher.load(path, other)
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not one of a diagonal Fisher"):
        DiagonalFisher.load(tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        DiagonalFisher.load(tmp_path / "half.safetensors")
    reshaped = DiagonalFisher({"transformer.wte.weight": torch.ones(2, 2)}, "empirical", 1, 1)
    reshaped.save(path)
    with pytest.raises(ValueError, match=rf"wte.weight has shape \(2, 2\), the model's has \({VOCABULARY}, 8\)"):
        DiagonalFisher.load(path, model)
    assert not list(tmp_path.glob("*.tmp"))


def test_it_imports_with_torch_alone() -> None:
    script = """
import sys
for name in ("transformers", "peft", "datasets", "accelerate", "pydantic", "avalanche", "lm_eval", "safetensors",
             "pandas", "scipy", "triton"):
    sys.modules[name] = None
import torch
from forgetting.fisher import diagonal_fisher
fisher = diagonal_fisher(torch.nn.Linear(2, 3), [(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))])
assert float(fisher.values["weight"].sum()) > 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)
