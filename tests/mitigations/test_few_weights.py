"""Methods that train few of the weights, or train them at other rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from forgetting.errors import UsageError
from forgetting.evaluation.drift import weight_change
from forgetting.mitigations import Mitigation, build_mitigation
from forgetting.mitigations.base import Compose, Options
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.mitigations.test_conformance import TASKS, TOKENIZER, TRAINING, context, run, train_one, weights
from tests.models_for_tests import tiny_gpt2, tiny_llama

IDS = torch.arange(2, 14)[None]
EMBEDDING = "model.embed_tokens.weight"


class Recorder(Mitigation[Options]):
    """Keeps the weights after every step, and the rate that it was told."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.steps: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        self.steps.append(weights(model))
        self.rates.append(learning_rate)


@pytest.mark.parametrize("tied", [True, False])
def test_feature_extraction_trains_the_head_alone(tied: bool, tmp_path: Path) -> None:
    base = tiny_llama(tied=tied)
    mitigation = build_mitigation("feature_extraction")
    model = mitigation.setup(tiny_llama(tied=tied), context())
    for position in (0, 1):
        model, _ = train_one(model, mitigation, position, tmp_path)
    before = dict(base.named_parameters(remove_duplicate=False))
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == (name != "lm_head.weight"), name
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    with mitigation.views(model)["head_off"]:
        assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert not torch.equal(model(IDS).logits, base(IDS).logits)
    assert mitigation.stored_floats() == base.lm_head.weight.numel()


@pytest.mark.parametrize("tied", [True, False])
def test_weight_change_sees_the_untied_head(tied: bool, tmp_path: Path) -> None:
    base = tiny_llama(tied=tied)
    mitigation = build_mitigation("feature_extraction")
    model = mitigation.setup(tiny_llama(tied=tied), context())
    assert weight_change(base, model) == dict.fromkeys(weight_change(base, model), 0.0)
    model, _ = train_one(model, mitigation, 0, tmp_path)
    change = weight_change(base, model)
    start = base.lm_head.weight.detach().double()
    moved = (model.lm_head.weight.detach().double() - start).norm() / start.norm()
    assert change.pop("head") == pytest.approx(float(moved)) and moved > 0
    assert list(change) == ["embeddings", "block 0", "block 1", "final norm"] and not any(change.values())


def test_an_untied_head_survives_transformers_own_format(tmp_path: Path) -> None:
    model, _ = run("feature_extraction", tmp_path, tasks=[0])
    model.tie_weights()
    model.save_pretrained(tmp_path / "saved")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_feature_extraction_comes_before_what_looks_at_the_head(tmp_path: Path) -> None:
    head = weights(run("feature_extraction", tmp_path)[0])["lm_head.weight"]
    held = weights(run("feature_extraction+ewc:strength=1e6,examples=4", tmp_path)[0])["lm_head.weight"]
    base = tiny_llama().lm_head.weight.detach()
    assert 0 < (held - base).norm() < 0.8 * (head - base).norm()
    build_mitigation("replay+feature_extraction")
    model, _ = run("feature_extraction+wise_ft:alpha=0", tmp_path)
    assert torch.equal(model(IDS).logits, tiny_llama()(IDS).logits)


def train_without_warmup(
    model: PreTrainedModel, mitigation: Mitigation, position: int, folder: Path, **changes: float
) -> ContinualTrainer:
    """From the first step on at the full rate."""
    training = TRAINING.model_copy(update={"warmup": 0.0, "scheduler": "constant", **changes})
    task = TASKS[position]
    dataset = ExampleDataset(context().encode_task(task))
    args = training_arguments(training, seed=position, output=str(folder))
    trainer = ContinualTrainer(model, dataset, mitigation, args, TOKENIZER, mitigation.callbacks(model, task))
    trainer.train()
    return trainer


def first_steps(text: str, tmp_path: Path) -> dict[str, int]:
    """The step, from 0, at which each parameter first moves in task 1; -1 for never."""
    recorder = Recorder()
    mitigation = Compose([build_mitigation(text), recorder])
    model = mitigation.setup(tiny_llama(), context())
    states = [weights(model)]
    train_without_warmup(model, mitigation, 0, tmp_path)
    states += recorder.steps
    assert len(states) == 5
    return {
        name: next((s for s in range(4) if not torch.equal(states[s + 1][name], states[s][name])), -1)
        for name in states[0]
    }


@pytest.mark.parametrize(
    ("share", "block_0", "embeddings"),
    [(1, 2, 3), (0.5, 1, 2), (0, 0, 0)],  # ⌈share · 4 · g / 3⌉ of four steps, three groups
)
def test_gradual_unfreezing_begins_with_the_last_block(
    share: float, block_0: int, embeddings: int, tmp_path: Path
) -> None:
    for name, step in first_steps(f"gradual_unfreezing:share={share}", tmp_path).items():
        expected = embeddings if name == EMBEDDING else block_0 if ".layers.0." in name else 0
        assert step == expected, name


def test_gradual_unfreezing_begins_anew_in_every_task_and_does_not_decay_what_is_frozen(tmp_path: Path) -> None:
    recorder = Recorder()
    mitigation = Compose([build_mitigation("gradual_unfreezing"), recorder])
    model = mitigation.setup(tiny_llama(), context())
    for position in (0, 1):
        before = weights(model)
        train_without_warmup(model, mitigation, position, tmp_path, weight_decay=0.5)
        first, last = recorder.steps[4 * position], recorder.steps[4 * position + 3]
        for name, value in before.items():
            later = ".layers.0." in name or name == EMBEDDING
            assert torch.equal(first[name], value) == later, name
            assert not torch.equal(last[name], value), name


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_rates_fall_from_the_head_to_the_embeddings(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    rates = build_mitigation("llrd:decay=0.5").learning_rates(model)
    blocks = "model.layers" if make is tiny_llama else "transformer.h"
    for name, _ in model.named_parameters():
        expected = 1.0
        if name.startswith(blocks):
            expected = {"0": 0.25, "1": 0.5}[name.removeprefix(blocks)[1]]
        elif any(word in name for word in ("embed", "wte", "wpe")):
            expected = 0.125
        assert rates.get(name, 1.0) == expected, name
    untied = build_mitigation("llrd:decay=0.5").learning_rates(tiny_llama(tied=False))
    assert "lm_head.weight" not in untied and untied[EMBEDDING] == 0.125
    later = build_mitigation("gradual_unfreezing:lr_factor=0.2").learning_rates(model)
    assert later == {name: 0.2 for name, rate in rates.items() if rate < 0.5}
    both = build_mitigation("llrd:decay=0.5+gradual_unfreezing:lr_factor=0.5").learning_rates(model)
    assert {both[name] for name in rates if rates[name] == 0.125} == {0.0625}


def test_the_optimizer_has_these_rates_and_other_parts_are_told_the_base_rate(tmp_path: Path) -> None:
    recorder = Recorder()
    mitigation = Compose([build_mitigation("llrd:decay=0.5"), recorder])
    model = mitigation.setup(tiny_llama(), context())
    _, trainer = train_one(model, mitigation, 0, tmp_path)
    rates = mitigation.learning_rates(model)
    by_parameter = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert by_parameter[id(parameter)]["initial_lr"] == pytest.approx(3e-3 * rates.get(name, 1.0)), name
    plain = Recorder()
    train_one(plain.setup(tiny_llama(), context()), plain, 0, tmp_path)
    assert recorder.rates == pytest.approx(plain.rates) and max(plain.rates) > 0


def test_bitfit_trains_biases_and_gains_alone(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    after = weights(run("bitfit", tmp_path)[0])
    assert all(torch.equal(value, base[name]) == ("norm" not in name) for name, value in after.items())
    for text, trained in (("bitfit", ("bias", "ln_")), ("bitfit:norms=false", ("bias",))):
        model = build_mitigation(text).setup(tiny_gpt2(), context())
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == any(word in name for word in trained), name
    args = training_arguments(TRAINING, seed=0, output=str(tmp_path))
    assert build_mitigation("bitfit:lr_factor=3").training_arguments(args).learning_rate == pytest.approx(9e-3)
    frozen = build_mitigation("freeze:first=1+bitfit").setup(tiny_gpt2(), context())
    assert not any(p.requires_grad for name, p in frozen.named_parameters() if ".h.0." in name)


def test_refusals_are_one_line() -> None:
    for text, said in (
        ("bitfit:lr_factor=0", "lr_factor = '0'"),
        ("lora+bitfit", "'bitfit': trains biases alone, 'lora' adapters alone"),
        ("llrd:decay=0", "decay = '0'"),
        ("gradual_unfreezing:share=2", "share = '2'"),
        ("lora+feature_extraction", "'feature_extraction': trains a head alone"),
        ("feature_extraction+lora", "'feature_extraction': trains a head alone"),
        ("ewc+feature_extraction", "stands after 'ewc', which would miss its head; write feature_extraction+ewc"),
    ):
        with pytest.raises(UsageError) as error:
            build_mitigation(text)
        assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"'bitfit': LlamaForCausalLM has no biases: nothing is left.*norms=true"):
        build_mitigation("bitfit:norms=false").check_model(tiny_llama())
    build_mitigation("bitfit:norms=false").check_model(tiny_gpt2())
    for text in ("llrd", "gradual_unfreezing"):
        with pytest.raises(UsageError, match="has no list of blocks"):
            build_mitigation(text).check_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
