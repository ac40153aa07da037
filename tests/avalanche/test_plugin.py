"""Our mitigations in Avalanche's loop: what they do there is what they do in ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel

from forgetting.avalanche import (
    TextTemplate,
    as_benchmark,
    as_plugin,
    avalanche_plugin,
    digits_benchmark,
    text_context,
)
from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.evaluation.scores import TaskScorer
from forgetting.mitigations import Mitigation, Options, build_mitigation
from forgetting.tasks.encode import ExampleDataset
from forgetting.tasks.pretraining import PretrainingText
from forgetting.tasks.task import Sequence
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER
from tests.models_for_tests import tiny_llama

SEQUENCE = Sequence("tiny", tuple(replace(task, metric="perplexity") for task in TASKS))
TRAINING = TrainingConfig(
    learning_rate=3e-3, epochs=1, batch_size=4, max_length=16, scheduler="constant", warmup=0, max_grad_norm=0
)
CONTEXT = text_context(
    SEQUENCE, TOKENIZER, training=TRAINING, pretraining=PretrainingText(TEXT[:16], TEXT[16:20], {"text": TEXT[20:]})
)
SCORERS = [TaskScorer(task, TOKENIZER, batch_size=8, max_length=16) for task in SEQUENCE.tasks]


class Pull(Mitigation[Options]):
    """L2 towards the start as a part of the loss, and half the rate for the first block."""

    def setup(self, model: PreTrainedModel, context: Any) -> PreTrainedModel:
        self.start = [p.detach().clone() for p in model.parameters()]
        return super().setup(model, context)

    def loss(self, model: PreTrainedModel, batch: Any, outputs: Any, loss: torch.Tensor) -> torch.Tensor:
        assert outputs.logits.shape[:2] == batch["labels"].shape and loss.dim() == 0
        return loss + 5 * sum((p - s).square().sum() for p, s in zip(model.parameters(), self.start, strict=True))

    def learning_rates(self, model: PreTrainedModel) -> dict[str, float]:
        return {name: 0.5 for name, _ in model.named_parameters() if ".layers.0." in name}


class Ascend(Mitigation[Options]):
    """The gradient at weights a little up the hill, as in sharpness-aware minimisation."""

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * parameter.grad)
        again()
        with torch.no_grad():
            for parameter, before in zip(model.parameters(), kept, strict=True):
                parameter.copy_(before)


class Ordered(ContinualTrainer):
    """Batches in the data's order."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(self.train_dataset)


def _row(model: PreTrainedModel) -> list[float]:
    model.eval()
    return [scorer.score(model).value for scorer in SCORERS]


def _ours(mitigation: Mitigation, folder: Path) -> list[list[float]]:
    model = mitigation.setup(tiny_llama(), CONTEXT)
    R = [_row(model)]
    for position, task in enumerate(SEQUENCE.tasks):
        model = mitigation.before_task(model, task)
        data = ExampleDataset(CONTEXT.encode_task(task))
        dataset = mitigation.train_dataset(data, task, SEQUENCE.tasks[:position])
        args = mitigation.training_arguments(training_arguments(TRAINING, seed=position, output=str(folder)))
        Ordered(model, dataset, mitigation, args, TOKENIZER, mitigation.callbacks(model, task)).train()
        model = mitigation.after_task(model, task)
        R.append(_row(model))
    return R


def _strategy(model: nn.Module, plugin: Any, template: Any = TextTemplate, **arguments: Any) -> Any:
    from avalanche.training.plugins import EvaluationPlugin

    return template(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, weight_decay=0.0),
        train_mb_size=TRAINING.batch_size,
        plugins=[plugin],
        evaluator=EvaluationPlugin(),
        **arguments,
    )


def _theirs(mitigation: Mitigation) -> list[list[float]]:
    model = tiny_llama()
    strategy = _strategy(model, as_plugin(mitigation, CONTEXT))
    R = [_row(model)]
    for experience in as_benchmark(SEQUENCE, TOKENIZER, max_length=16).train_stream:
        strategy.optimizer.state.clear()  # our loop has an optimizer per task
        strategy.train(experience, shuffle=False)
        R.append(_row(model))
    return R


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_mitigation("naive"),
        lambda: build_mitigation("ewc:strength=300,examples=8"),
        lambda: build_mitigation("ewc:strength=3,examples=8,update=gradient,mode=online"),
        lambda: build_mitigation("low_lr:factor=0.3+freeze:first=1"),
        lambda: build_mitigation("replay:fraction=0.3,source=both,buffer_size=8+ewc:strength=30,examples=8"),
        lambda: build_mitigation("llrd:decay=0.3+ewc:strength=3000,examples=8"),
        lambda: build_mitigation("flow:temperature=0.5"),
        lambda: Pull(Options()),
        lambda: Ascend(Options()),
    ],
    ids=["naive", "ewc", "ewc-gradient", "low_lr+freeze", "replay+ewc", "llrd+ewc", "flow", "l2-and-rates", "again"],
)
def test_both_loops_give_the_same_R(make: Callable[[], Mitigation], tmp_path: Path) -> None:
    ours, theirs = _ours(make(), tmp_path), _theirs(make())
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=0, atol=2e-5)
    naive = torch.tensor(_theirs(build_mitigation("naive")))
    moved = (torch.tensor(theirs) - naive).abs().max()
    assert moved == 0 if isinstance(make(), type(build_mitigation("naive"))) else moved > 1e-3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora:r=2", "mitigation 'lora' replaces the model"),
        ("few_steps:fraction=0.5", "mitigation 'few_steps' changes num_train_epochs"),
        ("early_stopping:every=1", "mitigation 'early_stopping' needs callbacks of transformers' Trainer"),
        ("freeze:first=9", "first = 9: the model has 2 blocks"),
        ("joint", "mitigation 'joint' trains all tasks at once"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_the_first_step(text: str, said: str) -> None:
    model = tiny_llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    strategy = None
    with pytest.raises(UsageError, match=said):
        strategy = _strategy(model, as_plugin(text, CONTEXT))
        strategy.train(as_benchmark(SEQUENCE, TOKENIZER, max_length=16).train_stream[0])
    after = strategy.model if strategy else model
    trained = {name.replace(".base_layer", ""): p for name, p in after.named_parameters()}
    assert all(torch.equal(trained[name], value) for name, value in before.items())


def test_an_experience_beyond_the_context_is_refused() -> None:
    longer = Sequence("longer", (*SEQUENCE.tasks, replace(SEQUENCE.tasks[0], name="three")))
    strategy = _strategy(tiny_llama(), as_plugin("naive", CONTEXT))
    with pytest.raises(UsageError, match="experience 2 is none of the context's 2 tasks"):
        strategy.train(as_benchmark(longer, TOKENIZER, max_length=16).train_stream[2])


@pytest.mark.parametrize(("name", "works"), [("replay", True), ("si", True), ("ewc", False), ("mas", False)])
def test_which_of_avalanches_own_plugins_take_dictionary_batches(name: Any, works: bool) -> None:
    def train(plugins: list[Any]) -> torch.Tensor:
        model = tiny_llama()
        strategy = _strategy(model, None)
        strategy.plugins[:1] = plugins
        for experience in as_benchmark(SEQUENCE, TOKENIZER, max_length=16).train_stream:
            torch.manual_seed(0)
            strategy.train(experience)
        return model.model.embed_tokens.weight.detach()

    plugin = avalanche_plugin(name, strength=1e5, memory=8, sample=4)
    if works:
        assert not torch.allclose(train([plugin]), train([]), atol=1e-3)
    else:
        with pytest.raises(KeyError):
            train([plugin])


class Decay(Mitigation[Options]):
    """Weights only: halved after every step."""

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        assert learning_rate == TRAINING.learning_rate
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)


def test_on_arrays_a_mitigation_acts_on_weights_and_cannot_read_text() -> None:
    from avalanche.training.templates import SupervisedTemplate

    def train(plugin: Any) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(64, 2)
        strategy = _strategy(model, plugin, SupervisedTemplate, criterion=nn.CrossEntropyLoss())
        strategy.train(digits_benchmark("split", scenario="domain").train_stream[0])
        return model

    naive, decayed = train(as_plugin("naive")), train(as_plugin(Decay(Options())))
    assert float(decayed.weight.detach().norm()) < 0.2 * float(naive.weight.detach().norm())
    with pytest.raises(UsageError, match=r"reads text .* take forgetting.avalanche.EWCPlugin"):
        train(as_plugin("ewc:estimator=batched"))
    with pytest.raises(UsageError, match="mitigation 'replay' changes the train dataset of text; give a context"):
        as_plugin("naive+replay:fraction=0.5")
    with pytest.raises(UsageError, match="changes the loss of text; give a context"):
        as_plugin(Pull(Options()))
