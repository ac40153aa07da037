"""The bridge to Avalanche: our EWC in its strategies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from forgetting.avalanche import EWCPlugin
from forgetting.fisher import diagonal_fisher


def _data(seed: int, shift: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 6, generator=generator)
    return x, ((x[:, 0] + shift * x[:, 1]) > 0).long()


PRETRAINING = _data(0, 0.0)
EXPERIENCES = [_data(1, 3.0), _data(2, -3.0)]


def _pretrained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(PRETRAINING[0]), PRETRAINING[1]).backward()
        optimizer.step()
    return model


def _trained(plugin: EWCPlugin | None, model: nn.Module) -> nn.Module:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

    datasets = [
        AvalancheDataset(
            [TensorDataset(x, y)],
            data_attributes=[
                DataAttribute(y.tolist(), "targets"),
                DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True),
            ],
        )
        for x, y in EXPERIENCES
    ]
    benchmark = benchmark_from_datasets(train=datasets, test=datasets)
    torch.manual_seed(1)
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=5,
        plugins=[] if plugin is None else [plugin],  # type: ignore[list-item]
        evaluator=EvaluationPlugin(),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return model


def _accuracy(model: nn.Module, pair: tuple[Tensor, Tensor]) -> float:
    return float((model(pair[0]).argmax(1) == pair[1]).float().mean())


def _batches() -> list[Any]:
    x, y = PRETRAINING
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, len(x), 16)]


def test_strength_zero_equals_the_strategy_alone() -> None:
    base = _pretrained()
    alone = _trained(None, copy.deepcopy(base))
    with_it = _trained(EWCPlugin(0.0, pretraining=_batches()), copy.deepcopy(base))
    for one, other in zip(alone.parameters(), with_it.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("update", ["implicit", "gradient"])
def test_the_pretrained_state_is_protected(update: Any) -> None:
    base = _pretrained()
    naive = _trained(None, copy.deepcopy(base))
    plugin = EWCPlugin(20.0, pretraining=_batches(), update=update, convention="avalanche")
    kept = _trained(plugin, copy.deepcopy(base))
    assert _accuracy(base, PRETRAINING) > 0.97 and _accuracy(naive, PRETRAINING) < 0.85
    assert _accuracy(kept, PRETRAINING) > _accuracy(naive, PRETRAINING) + 0.08


def test_its_penalty_is_made_of_our_fisher_of_every_experience_and_what_came_before() -> None:
    class Watching(EWCPlugin):
        """Keeps the model as it was after each experience."""

        def after_training_exp(self, strategy: Any, **arguments: Any) -> None:
            states.append(copy.deepcopy(strategy.model))
            super().after_training_exp(strategy, **arguments)

    states = [_pretrained()]
    plugin = Watching(1.0, pretraining=_batches(), max_examples=32)
    model = _trained(plugin, copy.deepcopy(states[0]))
    fishers = [
        diagonal_fisher(state, [pair], estimator="exact", max_examples=32).values  # type: ignore[list-item]
        for state, pair in zip(states, [PRETRAINING, *EXPERIENCES], strict=True)
    ]
    for name, value in plugin.penalty.fisher.items():
        torch.testing.assert_close(value, sum(fisher[name] for fisher in fishers))
    assert plugin.penalty.stored_floats() == 2 * sum(p.numel() for p in model.parameters())


def test_several_heads_and_heads_that_grow() -> None:
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.scenarios import with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.models import IncrementalClassifier, MultiTaskModule
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

    def stream(several: bool) -> Any:
        datasets = []
        for task, (x, y) in enumerate(EXPERIENCES):
            labels, tasks = y if several else y + 2 * task, [task if several else 0] * len(y)
            attributes = [
                DataAttribute(labels.tolist(), "targets"),
                DataAttribute(tasks, "targets_task_labels", use_in_getitem=True),
            ]
            datasets.append(AvalancheDataset([TensorDataset(x, labels)], data_attributes=attributes))
        return with_task_labels(with_classes_timeline(benchmark_from_datasets(train=datasets))).train_stream

    class Heads(MultiTaskModule):
        """Two heads on one layer."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = nn.Linear(6, 8), nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])

        def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
            return self.heads[task_label](torch.tanh(self.body(x)))

    grows = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), IncrementalClassifier(16, 2))
    for model, several in ((grows, False), (Heads(), True)):
        plugin = EWCPlugin(10.0)
        strategy = SupervisedTemplate(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=16,
            plugins=[plugin],  # type: ignore[list-item]
            evaluator=EvaluationPlugin(),
        )
        for experience in stream(several):
            strategy.train(experience)
        assert plugin._consolidated == 2
        for name, parameter in model.named_parameters():
            assert plugin.penalty.fisher[name].shape == parameter.shape


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="strength: -1"):
        EWCPlugin(-1)
    with pytest.raises(ValueError, match="decay: 0.5 needs mode='online'"):
        EWCPlugin(1, decay=0.5)
