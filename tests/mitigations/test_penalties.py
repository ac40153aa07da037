"""L2-SP, SI, MAS and RWalk against brute force, and the laws of a quadratic penalty."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgetting.consolidation import LossPath
from forgetting.errors import UsageError
from forgetting.fisher import diagonal_fisher
from forgetting.mitigations import Compose, Mitigation, Options, build_mitigation
from forgetting.mitigations.l2sp import StartingPoint
from forgetting.mitigations.mas import output_sensitivity
from forgetting.mitigations.rwalk import averaged, scaled
from forgetting.trainer import padded_batches
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, context, run, train_one, weights
from tests.models_for_tests import tiny_llama

STRONG = {
    "l2sp": "strength=1e30",
    "mas": "strength=1e12,examples=16",
    "rwalk": "strength=1e14,examples=16",
    "si": "strength=1e14,pretrained=fisher,examples=16",
}


class Recorder(Mitigation[Options]):
    """Keeps each step's gradients and the weights they were taken at."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.gradients: list[dict[str, Tensor]] = []
        self.visited: list[dict[str, Tensor]] = []

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        self.visited.append(weights(model))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((value - other[name]).square().sum()) for name, value in one.items()) ** 0.5


def recorded(text: str, tmp_path: Path) -> tuple[Recorder, Mitigation, PreTrainedModel]:
    """One task under ``text``; the recorder's last visited weights are the final ones."""
    recorder, method = Recorder(), build_mitigation(text)
    chain = Compose([recorder, method])
    model = chain.setup(tiny_llama(), context())
    model, _ = train_one(model, chain, 0, tmp_path)
    recorder.visited.append(weights(model))
    return recorder, method, model


@pytest.mark.parametrize("name", STRONG)
def test_infinite_strength_does_not_move(name: str, tmp_path: Path) -> None:
    base, naive = weights(tiny_llama()), weights(run("naive", tmp_path, tasks=[0])[0])
    mitigation = build_mitigation(f"{name}:{STRONG[name]}")
    model = mitigation.setup(tiny_llama(), context())
    held = getattr(mitigation.penalty, "fisher", {})  # type: ignore[attr-defined]
    largest = max((float(value.max()) for value in held.values()), default=0.0)
    model, _ = train_one(model, mitigation, 0, tmp_path)
    for key, value in weights(model).items():
        moved, naive_moved = (value - base[key]).abs(), (naive[key] - base[key]).abs()
        if name == "l2sp":
            assert torch.equal(value, base[key])
        else:  # what has importance
            protected = held[key] > 1e-6 * largest
            assert not protected.any() or moved[protected].max() < 2e-3 * naive_moved[protected].max()
    assert name == "l2sp" or sum(int((value > 1e-6 * largest).sum()) for value in held.values()) > 2000


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("update", ["gradient", "implicit"])
def test_both_updates_keep_more_than_naive(name: str, update: str, tmp_path: Path) -> None:
    start = run("naive", tmp_path, tasks=[0])[0]
    options = STRONG[name].replace("e30", "e3").replace("e12", "e3").replace("e14", "e6")
    if name in ("rwalk", "mas", "l2sp"):
        after, before, naive = run(f"{name}:{options},update={update}", tmp_path, [0])[0], tiny_llama(), start
    else:
        after, before = run(f"{name}:{options},update={update}", tmp_path)[0], start
        naive = run("naive", tmp_path)[0]
    moved, naive_moved = (distance(weights(model), weights(before)) for model in (after, naive))
    # Through Adam a penalty's gradient has no scale, and the first of these four steps is naive's.
    assert 0 < moved < (0.9 if update == "implicit" else 0.995) * naive_moved


def test_l2sp_gradient_and_step_are_those_of_the_penalty() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    model[0].bias.requires_grad_(False)
    penalty = StartingPoint(dict(model.named_parameters()))
    reference = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(
        7 / 2 * sum((p - reference[name]).square().sum() for name, p in named.items()), list(named.values())
    )
    penalty.add_gradient(dict(model.named_parameters()), 7.0)
    for parameter, gradient in zip(named.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient)
    penalty.step(dict(model.named_parameters()), 0.3)
    for name, parameter in model.named_parameters():
        nearer = (start[name] + 0.3 * reference[name]) / 1.3 if parameter.requires_grad else start[name]
        torch.testing.assert_close(parameter.detach(), nearer)
    assert penalty.stored_floats() == sum(p.numel() for p in named.values())


def test_l2sp_holds_on_to_the_pretrained_weights_or_to_the_tasks_start(tmp_path: Path) -> None:
    texts = ("l2sp:strength=30", "l2sp:strength=30,reference=task")
    after_one, after_two = ([weights(run(text, tmp_path, tasks)[0]) for text in texts] for tasks in ([0], [0, 1]))
    assert distance(*after_one) == 0
    base = weights(tiny_llama())
    assert distance(after_two[0], base) < 0.95 * distance(after_two[1], base)


def test_si_leaves_the_first_task_alone_and_its_path_is_brute_force(tmp_path: Path) -> None:
    recorder, method, model = recorded("si:strength=1e4,damping=0.01", tmp_path)
    naive = weights(run("naive", tmp_path, tasks=[0])[0])
    assert all(torch.equal(value, naive[name]) for name, value in weights(model).items())
    visited = recorder.visited
    for name, omega in method.penalty.fisher.items():  # type: ignore[attr-defined]
        steps = zip(recorder.gradients, visited[:-1], visited[1:], strict=True)
        path = sum(-g[name].double() * (after[name] - before[name]).double() for g, before, after in steps)
        moved = (visited[-1][name] - visited[0][name]).double()
        torch.testing.assert_close(omega.double(), path.clamp(min=0) / (moved**2 + 0.01), rtol=1e-4, atol=1e-8)
    assert max(float(value.max()) for value in method.penalty.fisher.values()) > 0  # type: ignore[attr-defined]


def test_the_own_penalty_is_not_in_sis_gradient_but_moves_its_weights(tmp_path: Path) -> None:
    for update in ("gradient", "implicit"):
        recorder, method, _ = recorded(f"si:strength=1e5,pretrained=fisher,examples=8,update={update}", tmp_path)
        before = build_mitigation("si:pretrained=fisher,examples=8")
        before.setup(tiny_llama(), context())
        visited = recorder.visited
        for name, omega in method.penalty.fisher.items():  # type: ignore[attr-defined]
            steps = zip(recorder.gradients, visited[:-1], visited[1:], strict=True)
            path = sum(-g[name] * (later[name] - earlier[name]) for g, earlier, later in steps)
            own = path.clamp(min=0) / ((visited[-1][name] - visited[0][name]) ** 2 + 1e-3)
            first = before.penalty.fisher[name]  # type: ignore[attr-defined]
            torch.testing.assert_close(omega, first + own, rtol=1e-3, atol=1e-6)


def test_the_path_adds_up_to_the_drop_of_the_loss_and_on_a_quadratic_to_half_its_curvature() -> None:
    curvature = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    theta = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    path, start = LossPath({"w": theta}), theta.detach().clone()
    first = float((curvature * start.square()).sum() / 2)
    for _ in range(20000):
        theta.grad = curvature * theta.detach()
        path.before_step({"w": theta})
        theta.data.sub_(1e-3 * theta.grad)
        path.after_step({"w": theta})
    last = float((curvature * theta.detach().square()).sum() / 2)
    assert float(path.lowered["w"].sum()) == pytest.approx(first - last, rel=0.01)
    omega = path.lowered["w"] / (theta.detach() - start).square()
    torch.testing.assert_close(omega, curvature / 2, rtol=0.01, atol=0)


def test_sis_stand_in_for_pretraining_is_half_the_fisher_per_token() -> None:
    mitigation = build_mitigation("si:pretrained=fisher,examples=8")
    mitigation.setup(tiny_llama(), context())
    batches = padded_batches(context().encode_text(TEXT[:8]), TOKENIZER, 4)
    fisher = diagonal_fisher(tiny_llama(), batches, generator=torch.Generator().manual_seed(0))
    assert fisher.tokens == 8 * 5  # four words and the end
    for name, value in mitigation.penalty.fisher.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, fisher.values[name] / 5 / 2)


def test_mas_is_the_mean_absolute_gradient_of_single_examples() -> None:
    model = tiny_llama(dtype=torch.float64)
    features = context().encode_task(TASKS[0])[:5]
    features[0]["labels"] = [label if label == -100 else 3 for label in features[0]["labels"]]  # labels do not matter
    got = output_sensitivity(model, padded_batches(features, TOKENIZER, 1))
    assert got.keys() == dict(model.named_parameters()).keys()  # a tied head once

    def output(weight: Tensor, name: str, feature: dict) -> Tensor:
        ids = torch.tensor([feature["input_ids"]])
        logits = torch.func.functional_call(model, {name: weight}, (), {"input_ids": ids}).logits[0]
        return torch.cat([logits[t - 1] for t, label in enumerate(feature["labels"]) if label != -100])

    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        weight = dict(model.named_parameters())[name].detach()
        expected = torch.zeros_like(weight)
        for feature in features:
            jacobian = torch.autograd.functional.jacobian(lambda w, f=feature, n=name: output(w, n, f), weight)
            value = output(weight, name, feature)
            expected += (2 * torch.einsum("o,o...->...", value, jacobian)).abs() / len(features)
        torch.testing.assert_close(got[name], expected)


def test_mas_adds_up_over_states_and_memory_does_not_grow(tmp_path: Path) -> None:
    mitigation = build_mitigation("mas:strength=0.01,examples=16,mode=separate")
    model = mitigation.setup(tiny_llama(), context())
    text = output_sensitivity(model, padded_batches(context().encode_text(TEXT[:16]), TOKENIZER, 1))
    stored = mitigation.stored_floats()
    model, _ = train_one(model, mitigation, 0, tmp_path)
    task = output_sensitivity(model, padded_batches(context().encode_task(TASKS[0]), TOKENIZER, 1))
    after = weights(model)
    for name, value in mitigation.penalty.fisher.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, text[name] + task[name], rtol=1e-4, atol=1e-4)
        anchors = text[name] * weights(tiny_llama())[name] + task[name] * after[name]
        torch.testing.assert_close(mitigation.penalty.weighted[name], anchors, rtol=1e-4, atol=1e-3)  # type: ignore[attr-defined]
    assert mitigation.stored_floats() == stored == 2 * sum(p.numel() for p in model.parameters())


def test_rwalk_scores_are_brute_force(tmp_path: Path) -> None:
    """Four steps in windows of three: a whole one, and what is left."""
    alpha, damping = 0.7, 1e-9
    options = f"strength=100,window=3,alpha={alpha},damping={damping},examples=16"
    recorder, method, model = recorded(f"rwalk:{options}", tmp_path)
    visited = recorder.visited
    for name, got in method._scores.items():  # type: ignore[attr-defined]
        running = recorder.gradients[0][name].square()
        score, lowered, start = torch.zeros_like(running), torch.zeros_like(running), visited[0][name]
        for step, gradients in enumerate(recorder.gradients):
            g = gradients[name]
            running = running if step == 0 else alpha * g * g + (1 - alpha) * running
            lowered = lowered - g * (visited[step + 1][name] - visited[step][name])
            if step in (2, 3):
                score = score + lowered / (running * (visited[step + 1][name] - start) ** 2 / 2 + damping)
                lowered, start = torch.zeros_like(running), visited[step + 1][name]
        torch.testing.assert_close(got, score.clamp(min=0), rtol=1e-3, atol=1e-3 * float(score.abs().max()))
    draw = torch.Generator().manual_seed(0)
    text = diagonal_fisher(
        tiny_llama(), padded_batches(context().encode_text(TEXT[:16]), TOKENIZER, 4), generator=draw
    ).values
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    features = [context().encode_task(TASKS[0])[i] for i in order]
    draw = torch.Generator().manual_seed(1)
    task = diagonal_fisher(model, padded_batches(features, TOKENIZER, 4), generator=draw).values
    fisher = {name: (text[name] + task[name]) / 2 for name in text}
    largest = max(float(value.max()) for value in fisher.values())
    largest_score = max(float(value.max()) for value in method._scores.values())  # type: ignore[attr-defined]
    for name, value in method.penalty.fisher.items():  # type: ignore[attr-defined]
        expected = fisher[name] / largest + method._scores[name] / largest_score  # type: ignore[attr-defined]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(method.penalty.weighted[name], value * weights(model)[name])  # type: ignore[attr-defined]
    assert method.stored_floats() == 4 * sum(p.numel() for p in model.parameters())


def test_scaling_and_averaging_of_nothing() -> None:
    assert scaled({}) == {} and float(scaled({"w": torch.zeros(2)})["w"].sum()) == 0
    assert torch.equal(averaged({}, {"w": torch.ones(2)})["w"], torch.ones(2))
    assert torch.equal(averaged({"w": torch.zeros(2)}, {"w": torch.ones(2)})["w"], torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora+l2sp", "mitigation 'l2sp': needs an adapter that lasts; write lora:merge=false+l2sp"),
        ("si+lora:merge=false", "mitigation 'si': stands before 'lora', which freezes what it protects; write lora+si"),
        ("lora+mas", "mitigation 'mas': needs an adapter that lasts"),
        ("lora+rwalk", "mitigation 'rwalk': needs an adapter that lasts"),
        ("si:examples=4", "examples=4 needs pretrained=fisher"),
        ("l2sp:strength=inf", "strength = 'inf': Input should be a finite number"),
        ("si:damping=0", "damping = '0'"),
        ("rwalk:alpha=0", "alpha = '0'"),
        ("mas:update=none", "update = 'none'"),
    ],
)
def test_refusals_are_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        build_mitigation(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_may_be_merged_where_each_task_has_its_own_starting_point(tmp_path: Path) -> None:
    model, _ = run("lora:r=2+l2sp:reference=task,strength=1e30", tmp_path)
    model = model.merge_and_unload()  # type: ignore[operator]
    base = weights(tiny_llama())
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("text", ["rwalk", "si:pretrained=fisher"])
def test_parameters_without_a_rule_are_named(text: str) -> None:
    model = copy.deepcopy(tiny_llama())
    model.model.layers[0].self_attn.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(UsageError, match=r"no rule for model\.layers\.0\.self_attn\.scale"):
        build_mitigation(text).check_model(model)
    build_mitigation(f"{text.split(':')[0]}:strength=0").check_model(model)
    build_mitigation("mas").check_model(model)  # ordinary gradients need no rule
