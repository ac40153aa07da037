"""Avalanche's plugins in our loop: what they do here is what they do in their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from forgetting.avalanche import Driver, as_benchmark, avalanche_plugin, digits_sequence
from forgetting.avalanche.driver import TokenClassifier, _AllUnits, token_loss
from forgetting.avalanche.plugins import PLUGINS
from forgetting.checkpoint import load_checkpoint, save_checkpoint
from forgetting.errors import RunFailed, UsageError
from forgetting.mitigations import build_mitigation
from forgetting.mitigations.avalanche import REFUSED, USES
from forgetting.tasks.encode import ExampleDataset
from forgetting.trainer import training_arguments
from tests.avalanche.test_plugin import CONTEXT, SEQUENCE, TRAINING, Ordered, _strategy
from tests.mitigations.test_conformance import TASKS, context, run, train_one, weights
from tests.models_for_tests import tiny_llama

ACTIVE = {
    "ewc": "strength=100",
    "si": "strength=1e5",
    "mas": "strength=10",
    "rwalk": "strength=100,interval=2",
    "lwf": "strength=5",
    "gem": "strength=0.5,memory=8",
    "agem": "memory=8,sample=4",
    "replay": "memory=8,sample=4",
}


def _text(name: str) -> str:
    return f"avalanche:plugin={name},{ACTIVE[name]}"


def test_every_plugin_is_covered() -> None:
    assert sorted(ACTIVE) == sorted(PLUGINS) == sorted(set(USES) - {"naive"})


@pytest.mark.parametrize("name", ["ewc", "si", "mas", "rwalk", "lwf"])
def test_weights_are_those_of_avalanches_own_loop(name: Any, tmp_path: Path) -> None:
    """Those plugins that draw nothing at random, on the same batches in the same order."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.training.templates import SupervisedTemplate

    mitigation = build_mitigation(_text(name))
    model = mitigation.setup(tiny_llama(), CONTEXT)
    for position, task in enumerate(SEQUENCE.tasks):
        model = mitigation.before_task(model, task)
        args = training_arguments(TRAINING, seed=position, output=str(tmp_path))
        Ordered(model, ExampleDataset(CONTEXT.encode_task(task)), mitigation, args, CONTEXT.tokenizer).train()
        model = mitigation.after_task(model, task)

    other = tiny_llama()
    plugin = avalanche_plugin(name, strength=mitigation.options.strength, interval=2)
    if name == "lwf":
        plugin.lwf = _AllUnits(mitigation.options.strength, 2.0)
    rows = Driver("ewc", other, width=16, batch_size=4, seed=0)
    data = [rows._experience(CONTEXT.encode_task(task)).dataset for task in SEQUENCE.tasks]
    strategy = _strategy(TokenClassifier(other), plugin, SupervisedTemplate, criterion=token_loss)
    for experience in benchmark_from_datasets(train=data).train_stream:
        strategy.optimizer.state.clear()
        strategy.train(experience, shuffle=False)
    got, expected, start = weights(model), weights(other), weights(tiny_llama())
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=2e-5)
    assert max(float((expected[k] - start[k]).abs().max()) for k in start) > 0.01


@pytest.mark.parametrize("name", PLUGINS)
def test_is_reproducible_acts_and_resumes(name: str, tmp_path: Path) -> None:
    text = _text(name)
    whole, mitigation = run(text, tmp_path)
    again, _ = run(text, tmp_path)
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    naive = weights(run("naive", tmp_path)[0])
    assert any(not torch.equal(v, naive[k]) for k, v in weights(whole).items())

    model, first = run(text, tmp_path, tasks=[0])
    save_checkpoint(tmp_path / name, 1, model, first)
    fresh = build_mitigation(text)
    model = fresh.setup(tiny_llama(), context())
    load_checkpoint(tmp_path / name, 1, model, fresh)
    model, _ = train_one(model, fresh, 1, tmp_path)
    assert all(torch.equal(v, weights(model)[k]) for k, v in weights(whole).items())
    kept, expected = fresh.state_dict(), mitigation.state_dict()
    assert kept.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in kept.items())
    assert fresh.stored_floats() == mitigation.stored_floats()
    assert (fresh.stored_floats() > 0) == (name not in ("gem", "agem", "replay"))


@pytest.mark.parametrize("name", PLUGINS)
def test_draws_nothing_from_the_global_generators(name: Any) -> None:
    import random

    driver = Driver(name, tiny_llama(), width=16, batch_size=4, seed=0, memory=4, sample=2, interval=1)
    before, python = torch.get_rng_state(), random.getstate()
    features = context().encode_task(TASKS[0])
    driver.begin_task(features)
    if name == "rwalk":  # its importances are those of steps
        _step(driver, features)
    driver.end_task()
    driver.begin_task(features)
    _step(driver, features)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python


def _step(driver: Driver, features: Any) -> torch.Tensor:
    batch = {
        "input_ids": torch.tensor([f["input_ids"] for f in features[:4]]),
        "labels": torch.tensor([f["labels"] for f in features[:4]]),
    }
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    outputs = driver.model(**batch)
    loss = driver.loss(batch, outputs, outputs.loss)
    loss.backward()
    driver.after_backward()
    torch.optim.SGD(driver.model.parameters(), lr=0.1).step()
    driver.after_step()
    return loss.detach()


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    start = weights(tiny_llama())
    for name in PLUGINS:
        after = weights(run(f"freeze:first=1+{_text(name)}", tmp_path)[0])
        for key, value in after.items():
            assert torch.equal(value, start[key]) == key.startswith("model.layers.0."), (name, key)


def test_ewcs_importances_are_squared_gradients_of_batch_means() -> None:
    model = tiny_llama()
    driver = Driver("ewc", model, width=16, batch_size=8, seed=0, strength=1.0)
    features = context().encode_task(TASKS[0])
    driver.begin_task(features)
    driver.end_task()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in (0, 8):
        part = features[i : i + 8]
        ids, labels = (torch.tensor([f[key] for f in part]) for key in ("input_ids", "labels"))
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad.square() / 2
    for name, value in expected.items():
        torch.testing.assert_close(driver.plugin.importances[0][f"model.{name}"].data, value, rtol=1e-4, atol=1e-9)


def test_replay_is_the_mean_over_the_joined_batch() -> None:
    model = tiny_llama()
    driver = Driver("replay", model, width=16, batch_size=4, seed=0, memory=8, sample=4)
    features = context().encode_task(TASKS[0])
    driver.begin_task(features)
    driver.end_task()
    driver.begin_task(context().encode_task(TASKS[1]))
    loss = _step(driver, context().encode_task(TASKS[1]))
    x, y = (part for part in driver._replayed[:2])
    assert len(x) == 4
    joined = torch.cat([x, driver.strategy.mbatch[0]])
    expected = token_loss(TokenClassifier(tiny_llama())(joined), torch.cat([y, driver.strategy.mbatch[1]]))
    torch.testing.assert_close(loss, expected.detach())


def test_gems_program_is_solved_as_by_a_general_solver() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    for strength in (0.0, 0.5):
        plugin = avalanche_plugin("gem", memory=4, strength=strength)
        G, g = rng.normal(size=(3, 7)), rng.normal(size=7)
        plugin.G = torch.tensor(G)
        squares, linear = G @ G.T + 1e-3 * np.eye(3), G @ g
        found = minimize(
            lambda v, squares=squares, linear=linear: 0.5 * v @ squares @ v + linear @ v,
            np.full(3, strength + 0.1),
            bounds=[(strength, None)] * 3,
            tol=1e-14,
        )
        np.testing.assert_allclose(plugin.solve_quadprog(torch.tensor(g)).numpy(), found.x @ G + g, atol=1e-4)
        if strength == 0:
            assert (G @ plugin.solve_quadprog(torch.tensor(g)).numpy() > -1e-2).all()


def test_avalanches_synaptic_intelligence_protects_nothing_on_a_cpu_and_ours_does() -> None:
    """The defect that is repaired; if it is gone, so can be the repair."""
    from avalanche.training.plugins import SynapticIntelligencePlugin
    from avalanche.training.templates import SupervisedTemplate

    def train(plugin: Any) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(64, 2)
        strategy = _strategy(model, plugin, SupervisedTemplate, criterion=nn.CrossEntropyLoss())
        for experience in as_benchmark(digits_sequence("split"), scenario="domain").train_stream[:2]:
            strategy.train(experience, shuffle=False)
        return model.weight.detach()

    naive, theirs = train(avalanche_plugin("si", strength=0.0)), train(SynapticIntelligencePlugin(1e6))
    assert torch.equal(naive, theirs)
    assert not torch.allclose(naive, train(avalanche_plugin("si", strength=1e4)), atol=1e-3)


def test_rwalk_without_a_score_fails_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="RWalk took no score above 0 in a task; it takes one every 10 steps"):
        run("avalanche:plugin=rwalk,strength=1", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugin=der", "plugin = 'der': keeps one row of logits per example"),
        ("plugin=mass", r"plugin = 'mass': is none of Avalanche's plugins .*; did you mean 'mas'"),
        ("plugin=si,memory=3", "memory has no meaning with plugin=si, which uses strength"),
        ("plugin=naive,strength=3", "strength has no meaning with plugin=naive, which uses no option"),
        ("plugin=ewc,strength=-1", "strength = '-1'"),
    ],
)
def test_options_that_cannot_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_mitigation(f"avalanche:{text}")


def test_every_refused_plugin_says_what_is_valid() -> None:
    for name in REFUSED:
        with pytest.raises(UsageError, match="valid are naive, ewc"):
            build_mitigation(f"avalanche:plugin={name}")


def test_compositions_and_training_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="write lora:merge=false\\+avalanche"):
        build_mitigation("lora+avalanche")
    build_mitigation("lora:merge=false+avalanche")
    for field, value in (("gradient_accumulation", 2), ("packing", True)):
        training = TRAINING.model_copy(update={field: value})
        with pytest.raises(UsageError, match=f"training.{field} = {value}"):
            build_mitigation("avalanche").check_training(tiny_llama(), training)


def test_a_penalty_of_strength_zero_is_naive_bit_for_bit(tmp_path: Path) -> None:
    naive = weights(run("naive", tmp_path)[0])
    after = weights(run("avalanche:plugin=mas,strength=0", tmp_path)[0])
    assert all(torch.equal(value, naive[key]) for key, value in after.items())
