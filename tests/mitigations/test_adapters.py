"""Adapters: laws of LoRA's variants and their kin, against brute force."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.errors import UsageError
from forgetting.mitigations import build_mitigation
from tests.mitigations.test_conformance import (
    TASKS,
    context,
    run,
    test_state_survives_a_kill_within_the_next_task,
    train_one,
    weights,
)
from tests.models_for_tests import tiny_gpt2, tiny_llama

# It is called here, with more methods.
test_state_survives_a_kill_within_the_next_task.__test__ = False  # type: ignore[attr-defined]

IDS = torch.arange(2, 14)[None]
VARIANTS = ["rslora=true", "dora=true", *(f"init={i}" for i in ("gaussian", "orthogonal", "pissa", "olora", "mica"))]
ADAPTERS = [f"lora:r=2,{variant}" for variant in [*VARIANTS, "init=pissa,dora=true"]] + ["ia3:lr_factor=100", "osf"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ADAPTERS)
def test_merged_equals_unmerged_and_off_is_before_the_task(text: str, tmp_path: Path) -> None:
    base = logits(tiny_llama())
    mitigation = build_mitigation(text)
    model = mitigation.setup(tiny_llama(), context())
    assert close(logits(model), base)
    model, _ = train_one(model, mitigation, 0, tmp_path)
    on, before = logits(model), weights(model)
    assert (on - base).abs().max() > 1e-3
    with mitigation.views(model)["adapter_off"]:
        assert close(logits(model), base)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    assert close(logits(copy.deepcopy(model).merge_and_unload()), on)  # type: ignore[operator]
    model = mitigation.before_task(model, TASKS[1])
    assert close(logits(model), on)
    with mitigation.views(model)["adapter_off"]:
        assert close(logits(model), on)


@pytest.mark.parametrize(
    "text", ["lora:init=olora", "lora:init=pissa,dora=true", "ia3:lr_factor=100", "osf:preserve=0.3"]
)
def test_a_kept_adapter_leaves_the_base_in_its_view(text: str, tmp_path: Path) -> None:
    model, mitigation = run(f"{text},merge=false", tmp_path)
    with mitigation.views(model)["adapter_off"]:
        assert close(logits(model), logits(tiny_llama()))
    assert not close(logits(model), logits(tiny_llama()))


@pytest.mark.parametrize(
    "text",
    [
        "lora:r=2,init=pissa",
        "lora:r=2,init=olora,merge=false",
        "lora:r=2,init=mica,rslora=true",
        "lora:r=2,dora=true",
        "ia3:lr_factor=100,merge=false",
        "osf:merge=false",
        "o_lora:r=2,strength=5,dora=true",
        "prefix_tuning:length=3,projection=4",
        "task_lora:r=2+replay:fraction=0.5",
        "ia3:merge=false+ewc:examples=4,estimator=batched",
        "prefix_tuning:length=3+ewc:examples=4,estimator=batched",
    ],
)
def test_every_form_resumes_bit_for_bit(text: str, tmp_path: Path) -> None:
    test_state_survives_a_kill_within_the_next_task(text, tmp_path)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(
    "method", ["lora:init=orthogonal", "o_lora", "task_lora", "ia3", "prompt_tuning", "prefix_tuning"]
)
def test_setup_reads_no_global_randomness_and_follows_the_seed(method: str, make: Any) -> None:
    found = []
    for global_seed, seed in ((0, 0), (1, 0), (1, 1)):
        model = make()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        model = build_mitigation(method).setup(model, context(seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append({n: p for n, p in weights(model).items() if "layers.0" in n or "prompt" in n or ".h.0" in n})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    same = all(torch.equal(value, found[2][name]) for name, value in found[0].items())
    assert same == (method == "ia3")  # its ones are not random


def test_rslora_and_pissa_by_hand() -> None:
    base = tiny_llama()
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    model: Any = build_mitigation("lora:r=4,alpha=6,rslora=true,init=pissa").setup(base, context())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 6 / 4**0.5
    U, S, Vh = torch.linalg.svd(weight)
    principal = U[:, :4] * S[:4] @ Vh[:4]
    torch.testing.assert_close(layer.get_delta_weight("default"), principal, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.base_layer.weight, weight - principal, rtol=1e-4, atol=1e-6)


def test_o_lora_at_zero_is_lora_bit_for_bit(tmp_path: Path) -> None:
    lora, o_lora = (weights(run(text, tmp_path)[0]) for text in ("lora:r=2", "o_lora:r=2,strength=0"))
    assert all(torch.equal(value, lora[name]) for name, value in o_lora.items())


def test_o_lora_adds_the_overlap_and_shrinks_it(tmp_path: Path) -> None:
    overlaps = []
    for strength in (1e-9, 10):
        mitigation: Any = build_mitigation(f"o_lora:r=2,strength={strength:g}")
        model: Any = mitigation.setup(tiny_llama(), context())
        assert float(mitigation.loss(model, {}, None, torch.tensor(1.0))) == 1  # nothing before the first task
        model, _ = train_one(model, mitigation, 0, tmp_path)
        first = {n: p.clone() for n, p in weights(model).items() if "lora_A" in n}
        model, _ = train_one(model, mitigation, 1, tmp_path)
        kept, mitigation._kept = mitigation._kept, {n: value[:2] for n, value in mitigation._kept.items()}
        assert all(torch.equal(mitigation._kept[name], value) and len(kept[name]) == 4 for name, value in first.items())
        expected = 0.0
        for name, before in first.items():
            present = weights(model)[name]
            expected += sum(abs(float(a @ b)) for a in before for b in present)
        loss = mitigation.loss(model, {}, None, torch.tensor(1.0, dtype=torch.float64))
        assert float(loss) == pytest.approx(1 + strength * expected, rel=1e-5)
        assert mitigation.stored_floats() == sum(value.numel() for value in first.values())
        overlaps.append(expected)
    assert overlaps[1] < 0.8 * overlaps[0]


def test_task_lora_scores_each_task_as_it_was_left(tmp_path: Path) -> None:
    mitigation = build_mitigation("task_lora:r=2")
    base = logits(tiny_llama())
    model: Any = mitigation.setup(tiny_llama(), context())
    model, _ = train_one(model, mitigation, 0, tmp_path)
    first = logits(model)
    for task, expected in zip(TASKS, (first, base), strict=True):
        with mitigation.scoring(model, task):
            assert torch.equal(logits(model), expected)
    model, _ = train_one(model, mitigation, 1, tmp_path)
    second = logits(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".task_2." in name for name in trained)
    for task, expected in zip(TASKS, (first, second), strict=True):
        with mitigation.scoring(model, task):
            assert torch.equal(logits(model), expected)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert torch.equal(logits(model), second) and not torch.equal(first, second)
    with mitigation.views(model)["adapter_off"]:
        assert torch.equal(logits(model), base)
    assert mitigation.stored_floats() == 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_ia3_scales_keys_values_and_feed_forward_inputs() -> None:
    model: Any = build_mitigation("ia3").setup(tiny_llama(), context())
    vectors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".ia3_l")[0].rsplit(".", 1)[-1] for name in vectors} == {"k_proj", "v_proj", "down_proj"}
    by_hand = tiny_llama()
    with torch.no_grad():
        for name, vector in vectors.items():
            vector.copy_(torch.linspace(0.5, 2, vector.numel()).reshape(vector.shape))
            layer = by_hand.get_submodule(name.split(".ia3_l")[0].removeprefix("base_model.model."))
            layer.weight.mul_(vector)  # (1, I) of the input, (O, 1) of the output
    torch.testing.assert_close(logits(model), logits(by_hand))


def test_osf_trains_orthogonally_to_the_first_directions() -> None:
    base = tiny_llama()
    originals = {name: p.detach().clone() for name, p in base.named_parameters()}
    model: Any = build_mitigation("osf:preserve=0.25").setup(base, context())
    model(input_ids=IDS, labels=IDS).loss.backward()
    checked = 0
    for name, parameter in model.named_parameters():
        if not name.endswith((".U_low", ".V_low")):
            continue
        module = name.split(".osf_svd")[0].removeprefix("base_model.model.")
        U, _, Vh = torch.linalg.svd(originals[f"{module}.weight"], full_matrices=False)
        k = len(Vh) // 4
        overlap = U[:, :k].T @ parameter.grad if name.endswith("U_low") else parameter.grad @ Vh[:k].T
        assert overlap.abs().max() < 1e-5 * max(1.0, float(parameter.grad.abs().max()))
        assert parameter.grad.abs().max() > 0
        checked += 1
    assert checked == 2 * 7 * 2


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_prompt_starts_from_real_tokens_and_trains_nothing_else(method: str, tmp_path: Path) -> None:
    base = tiny_llama()
    mitigation: Any = build_mitigation(f"{method}:length=4")
    model: Any = mitigation.setup(tiny_llama(), context())
    tokens = mitigation.starting_tokens(tiny_llama())
    assert len(tokens) == 4 and tokens.min() >= 2  # no special token
    expected = logits_after(base, tokens.tolist())
    torch.testing.assert_close(logits(model)[:, -IDS.shape[1] :], expected)
    model, _ = train_one(model, mitigation, 0, tmp_path)
    assert not torch.allclose(logits(model)[:, -IDS.shape[1] :], expected, atol=1e-4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"prompt_encoder.default.embedding.weight"}
    with mitigation.views(model)["adapter_off"]:
        assert torch.equal(logits(model), logits(base))


def logits_after(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.cat([torch.tensor([tokens]), IDS], 1)).logits[:, len(tokens) :]


def test_a_prompts_text_is_repeated_to_its_length() -> None:
    mitigation: Any = build_mitigation("prompt_tuning:length=5,text=w4 w9")
    mitigation.setup(tiny_llama(), context())
    assert mitigation.starting_tokens(tiny_llama()).tolist() == [4, 9, 4, 9, 4]


def test_freeze_behind_an_adapter_sees_its_parameters(tmp_path: Path) -> None:
    text = "lora:r=2,merge=false+freeze:pattern=lora_A"
    build_mitigation(text).check_model(tiny_llama())
    mitigation = build_mitigation(text)
    model = mitigation.setup(tiny_llama(), context())
    before = weights(model)
    model, _ = train_one(model, mitigation, 0, tmp_path)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == ("lora_B" not in name), name
    for pattern, said in (("nowhere", "matches no parameter"), ("lora", "freezes every parameter")):
        with pytest.raises(UsageError, match=said):
            build_mitigation(f"lora:r=2+freeze:pattern={pattern}").setup(tiny_llama(), context())


@pytest.mark.parametrize(
    "adapter", ["o_lora:r=2", "task_lora:r=2", "ia3", "osf", "prompt_tuning:length=2", "prefix_tuning:length=2"]
)
def test_adapters_compose_with_replay_and_a_low_rate(adapter: str, tmp_path: Path) -> None:
    mitigation: Any = build_mitigation(f"low_lr:factor=0.5+{adapter}+replay:fraction=0.5")
    model = mitigation.setup(tiny_llama(), context())
    start = weights(model)
    model, trainer = train_one(model, mitigation, 0, tmp_path)
    assert trainer.args.learning_rate == pytest.approx(0.5 * mitigation.parts[1].options.lr_factor * 3e-3)
    assert trainer.examples["pretraining"] > 0
    assert any(not torch.equal(value, start[name]) for name, value in weights(model).items())
    assert list(mitigation.views(model)) == ["adapter_off"]


@pytest.mark.parametrize(
    "adapter", ["lora:r=2,dora=true,merge=false", "ia3:merge=false", "osf:merge=false", "prefix_tuning:length=2"]
)
def test_ewc_holds_a_lasting_adapter(adapter: str, tmp_path: Path) -> None:
    moved = []
    for strength in ("1e-9", "1e8"):
        mitigation: Any = build_mitigation(f"{adapter}+ewc:strength={strength},estimator=batched,examples=16")
        model = mitigation.setup(tiny_llama(), context())
        start, fisher = weights(model), mitigation.parts[1].penalty.fisher
        fisher = {name: value.clone() for name, value in fisher.items()}
        assert set(fisher) == {name for name, p in model.named_parameters() if p.requires_grad}
        model, _ = train_one(model, mitigation, 0, tmp_path)
        after = weights(model)
        moved.append(sum(float((value * (after[name] - start[name]) ** 2).sum()) for name, value in fisher.items()))
    assert 0 < moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora:r=40,init=pissa", "r = 40: init=pissa takes at most 16 directions"),
        ("ia3:target=k_prj", "target = 'k_prj': no such module; did you mean 'k_proj'"),
        ("osf:preserve=0.01", "preserve = 0.01: is no whole direction"),
        ("osf:target=embed_tokens", "embed_tokens is a Embedding; peft decomposes linear layers only"),
        ("o_lora:target=nothing", "mitigation 'o_lora': target = 'nothing': no such module"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_mitigation(text).check_model(tiny_llama())


def test_what_peft_has_not_for_an_architecture_is_refused() -> None:
    for text, said in (("lora:init=olora", "peft has it for linear layers"), ("osf", "is a Conv1D")):
        with pytest.raises(UsageError, match=said):
            build_mitigation(text).check_model(tiny_gpt2())
    model = tiny_llama()
    model.config.model_type = "unheard"
    with pytest.raises(UsageError, match="peft knows no modules of 'unheard' to scale; give target and feedforward"):
        build_mitigation("ia3").check_model(model)
    build_mitigation("ia3:target=v_proj|down_proj,feedforward=down_proj").check_model(model)


@pytest.mark.parametrize(
    ("text", "training", "said"),
    [
        ("prompt_tuning", {"packing": True}, "a packed row has no place for a prompt"),
        ("prefix_tuning", {"gradient_checkpointing": True}, "gradient_checkpointing drops a prefix's keys"),
        ("prompt_tuning:length=49", {}, "with max_length 16 makes 65 tokens, and the model has 64 positions"),
    ],
)
def test_a_prompt_that_finds_no_place_is_refused(text: str, training: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_mitigation(text).check_training(tiny_llama(), context().training.model_copy(update=training))


def test_a_prompts_text_without_a_token_is_refused() -> None:
    from forgetting.mitigations.prompt_tuning import PromptTuning, PromptTuningOptions

    with pytest.raises(UsageError, match="mitigation 'prompt_tuning': text = ' ': has no token"):
        PromptTuning(PromptTuningOptions(text=" ")).setup(tiny_llama(), context())
