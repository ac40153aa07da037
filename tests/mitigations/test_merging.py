"""Methods that act on the weights after training, against brute force in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.errors import UsageError
from forgetting.fisher import diagonal_fisher
from forgetting.mitigations import build_mitigation
from forgetting.trainer import padded_batches
from tests.mitigations.test_conformance import TASKS, TEXT, TOKENIZER, TRAINING, context, run, train_one, weights
from tests.models_for_tests import tiny_llama

IDS = torch.arange(2, 14)[None]
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def mixture(parts: list[tuple[float, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Weighted sums in float64."""
    return {name: sum(w * part[name].double() for w, part in parts) for name in parts[0][1]}  # type: ignore[misc]


def check_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        torch.testing.assert_close(value.double(), expected[name], **CLOSE)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_wise_ft_scores_between_base_and_the_naive_run(alpha: float, tmp_path: Path) -> None:
    base, naive = weights(tiny_llama()), weights(run("naive", tmp_path)[0])
    model, mitigation = run(f"wise_ft:alpha={alpha},curve=0|0.6|1", tmp_path)
    check_close(weights(model), mixture([(1 - alpha, base), (alpha, naive)]))
    assert list(mitigation.views(model)) == [f"alpha={a:g}" for a in (0.0, 0.6, 1.0) if a != alpha]


def test_wise_ft_gives_the_whole_curve_from_one_run(tmp_path: Path) -> None:
    """Ends bit for bit; in between as a run at that alpha."""
    model, mitigation = run("wise_ft:alpha=0.5,curve=0|0.3|1", tmp_path)
    views = mitigation.views(model)
    base, naive, third = tiny_llama(), run("naive", tmp_path)[0], run("wise_ft:alpha=0.3,curve=none", tmp_path)[0]
    for name, other in (("alpha=0", base), ("alpha=1", naive), ("alpha=0.3", third)):
        with views[name]:
            assert torch.equal(model(IDS).logits, other(IDS).logits), name
    assert mitigation.stored_floats() == 2 * sum(p.numel() for p in model.parameters())
    alone, kept = run("wise_ft:alpha=1,curve=0.5", tmp_path)
    with kept.views(alone)["alpha=0.5"]:
        assert torch.equal(alone(IDS).logits, model(IDS).logits)
    assert torch.equal(alone(IDS).logits, naive(IDS).logits) and not kept.state_dict()


def test_wise_ft_leaves_what_is_frozen(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    for text in ("freeze:first=1+wise_ft:alpha=0.3", "wise_ft:alpha=0.3+freeze:first=1"):
        for name, value in weights(run(text, tmp_path)[0]).items():
            assert torch.equal(value, base[name]) == name.startswith("model.layers.0."), name


def test_ema_is_the_average_over_the_steps_of_all_tasks(tmp_path: Path) -> None:
    mitigation = build_mitigation("ema:decay=0.7")
    model = mitigation.setup(tiny_llama(), context())
    average, steps = {name: value.double() for name, value in weights(model).items()}, []
    step = mitigation.after_step

    def recorded(model, learning_rate):  # type: ignore[no-untyped-def]
        steps.append(weights(model))
        step(model, learning_rate)

    mitigation.after_step = recorded  # type: ignore[method-assign]
    for position in (0, 1):
        model, _ = train_one(model, mitigation, position, tmp_path)
    for trained in steps:
        average = {name: 0.7 * value + 0.3 * trained[name].double() for name, value in average.items()}
    assert len(steps) == 8
    check_close(weights(model), average)
    with mitigation.views(model)["average_off"]:  # training goes on from what is averaged over
        assert all(torch.equal(v, steps[-1][name]) for name, v in weights(model).items())
    naive = weights(run("naive", tmp_path)[0])
    assert all(torch.equal(value, naive[name]) for name, value in steps[-1].items())
    assert mitigation.stored_floats() == sum(p.numel() for p in model.parameters())


def test_ema_averages_an_adapter_that_lasts(tmp_path: Path) -> None:
    model, mitigation = run("lora:r=2,merge=false+ema:decay=0.5", tmp_path)
    plain = run("lora:r=2,merge=false", tmp_path)[0]
    with mitigation.views(model)["average_off"]:
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert not torch.equal(model(IDS).logits, plain(IDS).logits)


def test_task_arithmetic_adds_up_fine_tunes_of_the_base(tmp_path: Path) -> None:
    base = weights(tiny_llama())
    first, second = (weights(run("naive", tmp_path, tasks=[position])[0]) for position in (0, 1))
    model, mitigation = run("task_arithmetic:scale=0.7,curve=0|1.5", tmp_path)
    check_close(weights(model), mixture([(1 - 1.4, base), (0.7, first), (0.7, second)]))
    views = mitigation.views(model)
    with views["scale=0"]:
        assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    with views["scale=1.5"]:
        check_close(weights(model), mixture([(1 - 3, base), (1.5, first), (1.5, second)]))
    assert mitigation.stored_floats() == 2 * sum(p.numel() for p in model.parameters())


def test_merge_previous_goes_on_from_the_merged_weights(tmp_path: Path) -> None:
    base, first = weights(tiny_llama()), weights(run("naive", tmp_path, tasks=[0])[0])
    model, mitigation = run("merge_previous:weight=0.3", tmp_path, tasks=[0])
    merged = weights(model)
    check_close(merged, mixture([(0.7, base), (0.3, first)]))
    naive = build_mitigation("naive")
    again = naive.setup(tiny_llama(), context())
    again.load_state_dict(model.state_dict())
    tuned = weights(train_one(again, naive, 1, tmp_path)[0])
    model, _ = train_one(model, mitigation, 1, tmp_path)
    check_close(weights(model), mixture([(0.7, merged), (0.3, tuned)]))
    assert mitigation.stored_floats() == 0 and not mitigation.state_dict()


@pytest.mark.parametrize("name", ["merge_previous:weight=0", "fisher_merge:weight=0,examples=4", "wise_ft:alpha=0"])
def test_no_weight_keeps_the_base_bit_for_bit(name: str, tmp_path: Path) -> None:
    base = weights(tiny_llama())
    assert all(torch.equal(value, base[key]) for key, value in weights(run(name, tmp_path)[0]).items())


def fisher_by_hand(values: dict[str, torch.Tensor], seed: int, features: list[dict]) -> dict[str, torch.Tensor]:
    """F / √(mean F²) + ε, from one example after the other in float64."""
    model = tiny_llama()
    model.load_state_dict(values, strict=False)
    batches = padded_batches(features, TOKENIZER, TRAINING.batch_size)
    generator = torch.Generator().manual_seed(seed)
    fisher = diagonal_fisher(model, batches, max_examples=6, backend="reference", generator=generator).values
    scale = torch.cat([value.flatten() for value in fisher.values()]).square().mean().sqrt()
    return {name: value.double() / scale + 1e-3 for name, value in fisher.items()}


def test_fisher_merge_is_the_weighted_average_of_both_states(tmp_path: Path) -> None:
    base, tuned = weights(tiny_llama()), weights(run("naive", tmp_path, tasks=[0])[0])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    features = context().encode_task(TASKS[0])
    before = fisher_by_hand(base, 0, context().encode_text(TEXT[:6]))
    after = fisher_by_hand(tuned, 1, [features[i] for i in order[:6]])
    expected = {
        name: (0.7 * before[name] * base[name] + 0.3 * after[name] * tuned[name])
        / (0.7 * before[name] + 0.3 * after[name])
        for name in base
    }
    model, mitigation = run("fisher_merge:weight=0.3,examples=6,epsilon=1e-3", tmp_path, tasks=[0])
    for name, value in weights(model).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
        information = mitigation.information[name].double()  # type: ignore[attr-defined]
        torch.testing.assert_close(information, before[name] + after[name], rtol=1e-3, atol=1e-5)
    plain = mixture([(0.7, base), (0.3, tuned)])
    assert max(float((expected[name] - plain[name]).abs().max()) for name in plain) > 1e-3


def test_fisher_merge_without_information_is_the_plain_average(tmp_path: Path) -> None:
    merged = weights(run("fisher_merge:weight=0.3,examples=4,epsilon=1e9", tmp_path, tasks=[0])[0])
    plain = weights(run("merge_previous:weight=0.3", tmp_path, tasks=[0])[0])
    for name, value in merged.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)


def test_fisher_merge_names_parameters_that_have_no_rule() -> None:
    model = tiny_llama()
    model.model.layers[0].self_attn.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(
        UsageError, match=r"mitigation 'fisher_merge': .*no rule for model\.layers\.0\.self_attn\.scale"
    ):
        build_mitigation("fisher_merge").check_model(model)
    build_mitigation("fisher_merge:weight=1").check_model(model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wise_ft:alpha=1.1", "alpha = '1.1': Input should be less than or equal to 1"),
        ("wise_ft:curve=0.1|2", "curve = '0.1|2': Input should be less than or equal to 1"),
        ("wise_ft:curve=a", "curve = 'a': Input should be a valid number"),
        ("task_arithmetic:scale=-1", "scale = '-1'"),
        ("ema:decay=1", "decay = '1': Input should be less than 1"),
        ("fisher_merge:epsilon=0", "epsilon = '0'"),
        ("lora+wise_ft", "mixing the factors of 'lora' does not mix their product"),
        ("merge_previous+lora", "mitigation 'merge_previous': mixes weights"),
        ("lora+ema", "write lora:merge=false+ema"),
        ("ema+lora:merge=false", "stands before 'lora', which freezes what it protects"),
        ("wise_ft+ewc", "mitigation 'wise_ft': stands before 'ewc', which would take the weights that are scored"),
        ("ema+ewc", "write ewc+ema"),
        ("wise_ft+ema", "'wise_ft' and 'ema': each gives the model other weights between two tasks"),
        ("single_task+merge_previous", "'single_task' and 'merge_previous'"),
    ],
)
def test_bad_options_and_compositions_are_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        build_mitigation(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_trained_must_be_known_before_the_first_task(tmp_path: Path) -> None:
    mitigation = build_mitigation("wise_ft")
    model = mitigation.setup(tiny_llama(), context())
    model.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UsageError, match="mitigation 'wise_ft': extra is trained, and came after"):
        mitigation.before_task(model, TASKS[0])


@pytest.mark.parametrize(
    "other", ["wise_ft:alpha=0.3,curve=none", "task_arithmetic:curve=none", "merge_previous:weight=0.3"]
)
def test_a_path_begins_where_the_training_does_and_ends_where_it_ends(other: str, tmp_path: Path) -> None:
    """Whatever weights are scored between two tasks, and in either order where both are allowed."""
    from forgetting.mitigations import Compose

    mitigation = build_mitigation(f"si+{other}")
    assert isinstance(mitigation, Compose)
    si: Any = mitigation.parts[0]
    model = mitigation.setup(tiny_llama(), context())
    model, _ = train_one(model, mitigation, 0, tmp_path)
    model = mitigation.before_task(model, TASKS[1])
    assert all(torch.equal(si._start[name], p) for name, p in model.named_parameters())
    seen: list[dict[str, torch.Tensor]] = []
    real = type(si).after_task
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(si), "after_task", lambda self, m, t: (seen.append(weights(m)), real(self, m, t))[1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        reached = weights(model)
        mitigation.after_task(model, TASKS[1])
    assert all(torch.equal(seen[0][name], value) for name, value in reached.items())
