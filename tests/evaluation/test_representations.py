"""Linear CKA against the n×n form, its invariances, and models whose layers are changed by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.evaluation.representations import LinearCKA, layer_cka
from forgetting.mitigations import build_mitigation
from forgetting.models import load_model
from forgetting.tasks.encode import encode_texts, pack
from forgetting.trainer import padded_batches
from tests.evaluation.test_lm import TOKENIZER, sharp
from tests.families.small import family
from tests.mitigations.test_conformance import context
from tests.models_for_tests import tiny_gpt2, tiny_llama

TEXTS = ["w2 w3 w4 w5 w6 w7", "w8 w9", "w10 w11 w12 w13", "w14 w15 w16 w17 w18", "w19 w20 w21"]


def cka(x: torch.Tensor, y: torch.Tensor, sizes: list[int] | None = None) -> float:
    meter = LinearCKA()
    sizes = sizes or [len(x)]
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        meter.add(a, b)
    assert meter.n == len(x)
    return meter.value()


def naive_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC of n×n Gram matrices, centred by H = I − 11ᵀ/n on both sides (Kornblith et al. 2019, equation 3)."""
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(k: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.trace(k @ centring @ other @ centring) / (n - 1) ** 2

    k, other = x.double() @ x.double().T, y.double() @ y.double().T
    return float(hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt())


def pair(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64) + 3
    y = x @ torch.randn(5, 7, generator=generator, dtype=torch.float64)
    return x, y + torch.randn(n, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 0, 20, 17]], ids=["whole", "single", "uneven"])
def test_it_equals_the_form_with_gram_matrices_however_it_is_cut(sizes: list[int]) -> None:
    x, y = pair()
    assert 0.1 < naive_cka(x, y) < 0.95
    assert cka(x, y, sizes) == pytest.approx(naive_cka(x, y), rel=1e-12)
    assert cka(y, x, sizes) == pytest.approx(naive_cka(x, y), rel=1e-12)


def test_it_does_not_depend_on_rotation_shift_and_scale_but_on_other_maps() -> None:
    x, y = pair()
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    expected = cka(x, y)
    assert cka(x @ rotation, y) == pytest.approx(expected, rel=1e-12)
    assert cka(1e-3 * x - 50, 1e4 * y + 7) == pytest.approx(expected, rel=1e-9)
    assert cka(x, x) == pytest.approx(1, rel=1e-12)
    assert cka(x, 2 * x @ rotation + 1) == pytest.approx(1, rel=1e-12)
    assert cka(x, x * torch.tensor([1, 1, 1, 1, 30.0])) < 0.9
    assert abs(cka(x * torch.tensor([1, 1, 1, 1, 30.0]), y) - expected) > 0.01


def test_a_mean_far_from_zero_costs_no_precision() -> None:
    """Massive activations: a constant 1e6 times the spread would leave sums of squares 4 of 16 digits."""
    x, y = pair()
    assert cka(x + 1e6, y - 1e6, [7, 13, 20]) == pytest.approx(naive_cka(x, y), rel=1e-8)


def test_few_inputs_look_alike_and_many_do_not() -> None:
    """The bias that the docstring names: independent representations, D = 20."""
    generator = torch.Generator().manual_seed(0)
    few, many = (
        [cka(*torch.randn(2, n, 20, generator=generator, dtype=torch.float64)) for _ in range(5)] for n in (10, 2000)
    )
    assert min(few) > 0.5 and max(many) < 0.05


def test_a_representation_that_does_not_vary_has_none_and_misfits_are_refused() -> None:
    meter = LinearCKA()
    assert meter.value() != meter.value()
    meter.add(torch.ones(4, 2), torch.randn(4, 3))
    assert meter.value() != meter.value()
    with pytest.raises(ValueError, match=r"shapes \(4, 2\) and \(3, 3\)"):
        meter.add(torch.ones(4, 2), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"widths 3 and 2; those before had \(2, 3\)"):
        meter.add(torch.ones(4, 3), torch.ones(4, 2))


def batches(size: int = 2, tokenizer: Any = TOKENIZER) -> list[dict[str, torch.Tensor]]:
    return padded_batches(encode_texts(tokenizer, TEXTS, 16), tokenizer, size)


def states(model: PreTrainedModel) -> list[torch.Tensor]:
    """Every layer's states of all texts, one text at a time: nothing is padded."""
    with torch.no_grad():
        outputs = [
            model(torch.tensor([feature["input_ids"]]), output_hidden_states=True).hidden_states
            for feature in encode_texts(TOKENIZER, TEXTS, 16)
        ]
    return [torch.cat([output[layer][0] for output in outputs]) for layer in range(len(outputs[0]))]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_layers_are_compared_at_all_tokens_and_none_of_the_padding(make: Any) -> None:
    base, tuned = sharp(make(seed=0)).train(), sharp(make(seed=1))
    frame = layer_cka(base, tuned, batches())
    assert base.training and not tuned.training
    assert list(frame["layer"]) == ["embeddings", "block 0", "block 1"]
    expected = [naive_cka(x, y) for x, y in zip(states(base.eval()), states(tuned), strict=True)]
    assert list(frame["cka"]) == pytest.approx(expected, abs=1e-4)
    assert set(frame["tokens"]) == {sum(len(feature["input_ids"]) for feature in encode_texts(TOKENIZER, TEXTS, 16))}
    assert max(expected) < 0.98
    whole = layer_cka(base, tuned, batches(5))
    assert list(whole["cka"]) == pytest.approx(list(frame["cka"]), abs=1e-4)


def test_what_comes_before_a_changed_block_is_the_same() -> None:
    base = sharp(tiny_llama())
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight.neg_()
    before, at = layer_cka(base, tuned, batches())["cka"].iloc[[1, 2]]
    assert before == pytest.approx(1, abs=1e-12) and at < 0.99


def test_the_embedded_model_is_itself_and_not_a_model_of_noise() -> None:
    loaded = load_model("micro")
    noise = copy.deepcopy(loaded.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in noise.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.02)
    texts = padded_batches(
        encode_texts(loaded.tokenizer, ["the dog sees the red house ."] * 2, 32), loaded.tokenizer, 2
    )
    assert list(layer_cka(loaded.model, loaded.model, texts)["cka"]) == pytest.approx([1] * 5, abs=1e-12)
    assert layer_cka(loaded.model, noise, texts)["cka"].max() < 0.95


def test_a_soft_prompt_is_no_input() -> None:
    base = tiny_llama()
    tuned = build_mitigation("prompt_tuning:length=3").setup(copy.deepcopy(base), context())
    frame = layer_cka(base, tuned, batches())
    assert frame["cka"].iloc[0] == pytest.approx(1, abs=1e-12) and frame["cka"].iloc[2] < 1 - 1e-6


@pytest.mark.parametrize(("name", "layers"), [("bert", 3), ("vit", 3)])
def test_encoders_and_vision_transformers_have_layers_too(name: str, layers: int) -> None:
    model = family(name).base.model.base
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    if name == "vit":
        inputs: dict[str, torch.Tensor] = {"pixel_values": torch.randn(3, 1, 8, 8)}
    else:
        inputs = {
            "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        }
    assert list(layer_cka(model, model, [inputs])["cka"]) == pytest.approx([1] * layers, abs=1e-12)
    changed = layer_cka(model, other, [inputs])
    assert changed["cka"].max() < 0.999 and set(changed["tokens"]) == {15 if name == "vit" else 5}


def test_what_cannot_be_compared_is_refused() -> None:
    base = tiny_llama()
    with pytest.raises(ValueError, match="batches: there is none"):
        layer_cka(base, base, [])
    packed = padded_batches(pack(encode_texts(TOKENIZER, TEXTS, 16), 16), TOKENIZER, 2)
    with pytest.raises(ValueError, match="rows unpacked"):
        layer_cka(base, base, packed)
    shorter = copy.deepcopy(base)
    shorter.model.layers = shorter.model.layers[:1]
    with pytest.raises(ValueError, match="models: have 2 and 1 layers"):
        layer_cka(base, shorter, batches())
    resnet = family("resnet").base.model.base
    with pytest.raises(ValueError, match="has no hidden states"):
        layer_cka(resnet, resnet, [{"pixel_values": torch.randn(2, 1, 8, 8)}])
