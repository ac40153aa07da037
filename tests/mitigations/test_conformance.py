"""One suite over all registered mitigations: what every method must keep to."""

from __future__ import annotations

import atexit
import copy
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import PreTrainedModel

from forgetting.adapters import Adapter
from forgetting.checkpoint import Interval, latest_step, load_checkpoint, save_checkpoint, steps_of
from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.mitigations import Mitigation, RunContext, build_mitigation, get_mitigation, mitigation_names
from forgetting.tasks.encode import ExampleDataset, encode_examples, encode_texts
from forgetting.tasks.pretraining import PretrainingText
from forgetting.tasks.task import Example, Task
from forgetting.trainer import ContinualTrainer, training_arguments
from forgetting.training_state import TaskCheckpoints
from tests.models_for_tests import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TRAINING = TrainingConfig(learning_rate=3e-3, steps=4, batch_size=4, max_length=16)
ACTIVE = {
    "naive": "naive",
    "low_lr": "low_lr:factor=0.1",
    "few_steps": "few_steps:fraction=0.5",
    "early_stopping": "early_stopping:every=1,patience=1",
    "replay": "replay:fraction=0.5,source=both,buffer_size=8",
    "ewc": "ewc:strength=100,examples=4",
    "freeze": "freeze:first=1",
    "lora": "lora:r=2",
    "feature_extraction": "feature_extraction",
    "gradual_unfreezing": "gradual_unfreezing:lr_factor=0.5",
    "llrd": "llrd:decay=0.5",
    "bitfit": "bitfit",
    "wise_ft": "wise_ft:alpha=0.3,curve=0.1|1",
    "ema": "ema:decay=0.5",
    "task_arithmetic": "task_arithmetic:scale=0.7,curve=0|1",
    "merge_previous": "merge_previous:weight=0.3",
    "fisher_merge": "fisher_merge:examples=4",
    "joint": "joint",
    "cumulative": "cumulative:reset=true",
    "single_task": "single_task",
    "o_lora": "o_lora:r=2",
    "task_lora": "task_lora:r=2",
    "ia3": "ia3:lr_factor=100",
    "osf": "osf",
    "prompt_tuning": "prompt_tuning:length=3",
    "prefix_tuning": "prefix_tuning:length=3",
    "in_context": "in_context:shots=2",
    "l2sp": "l2sp:strength=10",
    "si": "si:strength=1e4",
    "mas": "mas:strength=1,examples=4",
    "rwalk": "rwalk:strength=100,examples=4,window=3",
    "lwf": "lwf",
    "kl_to_base": "kl_to_base:on=text",
    "sam": "sam",
    "flow": "flow",
    "avalanche": "avalanche:plugin=ewc,strength=100",
    "self_replay": "self_replay:documents=8,tokens=8",
    "der": "der:buffer_size=8",
    "derpp": "derpp:buffer_size=8",
    "gem": "gem:examples=8",
    "agem": "agem:examples=8",
    "ogd": "ogd:directions=4",
    "gpm": "gpm:examples=4",
}
NO_NULL = {"feature_extraction", "bitfit", "task_arithmetic", "joint", "cumulative", "single_task", "in_context"}
"""Besides adapters, methods that are naive at no option: what they train, or on what, is another."""


def make_task(name: str, shift: int) -> Task:
    """Successor over words: learnable, different for every shift."""
    examples = tuple(Example(f"w{i} w{i + 1}", f" w{2 + (i + shift) % 30}") for i in range(2, 26))
    return Task(name, examples[:16], examples[16:20], examples[20:], metric="exact_match")


TASKS = [make_task("one", 1), make_task("two", 7)]
TEXT = [f"w{i} w{i + 2} w{i + 4} w{i + 1}" for i in range(2, 26)]


def context(seed: int = 0) -> RunContext:
    return RunContext(
        seed=seed,
        tokenizer=TOKENIZER,
        training=TRAINING,
        pretraining=PretrainingText(train=TEXT[:16], validation=TEXT[16:20], held_out={"text": TEXT[20:]}, notes={}),
        tasks=tuple(TASKS),
        encode_task=lambda task: encode_examples(TOKENIZER, task.train, TRAINING.max_length),
        encode_validation=lambda task: encode_examples(TOKENIZER, task.validation, TRAINING.max_length),
        encode_text=lambda texts: encode_texts(TOKENIZER, texts, TRAINING.max_length),
        pack=lambda features: features,
    )


class Killed(BaseException):
    """What no handler of the package takes for an error."""


def train_one(
    model: PreTrainedModel,
    mitigation: Mitigation,
    position: int,
    tmp_path: Path,
    checkpoints: TaskCheckpoints | None = None,
    killed_in: int | None = None,
) -> tuple[PreTrainedModel, ContinualTrainer]:
    def on_step(step: int, steps: int) -> None:
        if step == killed_in:
            raise Killed

    torch.manual_seed(position)
    task, seen = TASKS[position], TASKS[:position]
    model = mitigation.before_task(model, task)
    dataset = mitigation.train_dataset(ExampleDataset(mitigation.context.encode_task(task)), task, seen)
    args = mitigation.training_arguments(training_arguments(TRAINING, seed=position, output=str(tmp_path)))
    trainer = ContinualTrainer(
        model, dataset, mitigation, args, TOKENIZER, mitigation.callbacks(model, task), on_step, checkpoints
    )
    newest = latest_step(checkpoints.folder, checkpoints.row) if checkpoints else None
    if trainer.args.max_steps != 0:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return mitigation.after_task(model, task), trainer


def run(text: str, tmp_path: Path, tasks: Sequence[int] = (0, 1)) -> tuple[PreTrainedModel, Mitigation]:
    mitigation = build_mitigation(text)
    model = mitigation.setup(tiny_llama(), context())
    for position in tasks:
        model, _ = train_one(model, mitigation, position, tmp_path)
    return model, mitigation


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


FOLDER = TemporaryDirectory()
atexit.register(FOLDER.cleanup)


@cache
def whole_run(text: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and state after both tasks; run once for all tests that compare with it."""
    scratch = Path(FOLDER.name)
    model, mitigation = run(text, scratch, tasks=[0])
    save_checkpoint(after_one_task(text), 1, model, mitigation)
    model, _ = train_one(model, mitigation, 1, scratch)
    return weights(model), {key: value.clone() for key, value in mitigation.state_dict().items()}


def after_one_task(text: str) -> Path:
    """Where :func:`whole_run` saves what it has after the first task."""
    return Path(FOLDER.name) / hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def naive_weights() -> dict[str, torch.Tensor]:
    return whole_run("naive")[0]


def test_every_mitigation_is_in_this_suite() -> None:
    assert sorted(ACTIVE) == mitigation_names()


@pytest.mark.parametrize("name", mitigation_names())
def test_is_documented(name: str) -> None:
    cls = get_mitigation(name)
    assert cls.summary and cls.paper and cls.equation and cls.cost and cls.__doc__
    assert all(field.description for field in cls.Options.model_fields.values())


@pytest.mark.parametrize("name", [n for n in mitigation_names() if get_mitigation(n).null is not None])
def test_at_strength_zero_equals_naive_bit_for_bit(
    name: str, naive_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    options = ",".join(f"{key}={value}" for key, value in (get_mitigation(name).null or {}).items())
    model, _ = run(f"{name}:{options}" if options else name, tmp_path)
    assert all(torch.equal(value, naive_weights[key]) for key, value in weights(model).items())


def test_methods_without_a_null_strength_are_known() -> None:
    without = {name for name in mitigation_names() if get_mitigation(name).null is None}
    adapters = {name for name in mitigation_names() if issubclass(get_mitigation(name), Adapter)}
    assert without == adapters | NO_NULL


@pytest.mark.parametrize("name", [n for n in mitigation_names() if n != "naive"])
def test_does_something(name: str, naive_weights: dict[str, torch.Tensor]) -> None:
    got, _ = whole_run(ACTIVE[name])
    assert got.keys() != naive_weights.keys() or any(not torch.equal(v, naive_weights[k]) for k, v in got.items())


@pytest.mark.parametrize("name", mitigation_names())
def test_same_seed_same_bits(name: str, tmp_path: Path) -> None:
    first, second = whole_run(ACTIVE[name])[0], weights(run(ACTIVE[name], tmp_path)[0])
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_methods_that_start_a_killed_task_again_are_known() -> None:
    assert {name for name in mitigation_names() if not get_mitigation(name).resumes_within_task} == {"avalanche"}


def test_a_method_of_ones_own_starts_a_killed_task_again_unless_it_says_otherwise() -> None:
    class Quiet(Mitigation):
        pass

    class Own(type(build_mitigation("ema"))):  # type: ignore[misc]
        def after_step(self, model, learning_rate):  # type: ignore[no-untyped-def]
            self.count = 1

    class Says(Own):
        resumes_within_task = True

    class Inherits(Says):
        pass

    assert Quiet.resumes_within_task and not Own.resumes_within_task
    assert Says.resumes_within_task and Inherits.resumes_within_task
    assert not build_mitigation("naive+avalanche:plugin=ewc").resumes_within_task


@pytest.mark.parametrize(
    "name", [*mitigation_names(), "lora:merge=false+ewc:examples=4", "lora:r=2,dropout=0.5,merge=false+si"]
)
def test_state_survives_a_kill_within_the_next_task(name: str, tmp_path: Path) -> None:
    """What was saved after task 1, and after 2 steps of task 2, gives in fresh runs what the uninterrupted one has."""
    text = ACTIVE.get(name, name)
    expected, whole_state = whole_run(text)
    folder = after_one_task(text)
    for killed_in in (3, None):
        fresh = build_mitigation(text)
        model = fresh.setup(tiny_llama(), context())
        load_checkpoint(folder, 1, model, fresh)
        checkpoints = TaskCheckpoints(folder, 1, Interval("2 steps")) if fresh.resumes_within_task else None
        trained = False
        try:
            model, trainer = train_one(model, fresh, 1, tmp_path, checkpoints, killed_in)
            trained = True
        except Killed:
            assert steps_of(folder, 1) == ([2] if checkpoints else [])
    assert trained and len(trainer.losses) == sum(trainer.examples.values()) / TRAINING.batch_size
    assert all(torch.equal(value, expected[key]) for key, value in weights(model).items())
    state = fresh.state_dict()
    assert state.keys() == whole_state.keys()
    assert all(torch.equal(value, whole_state[key]) for key, value in state.items())


@pytest.mark.parametrize("name", [*mitigation_names(), "lora:r=2,init=pissa", "naive+lora:r=2,init=olora,dora=true"])
def test_setup_starts_where_the_class_says(name: str) -> None:
    """Row 0 is measured on the base model; what trains starts there too, or the base is there in a view of it."""
    base = tiny_llama()
    ids = torch.arange(2, 12)[None]
    expected = base(ids).logits
    mitigation = build_mitigation(ACTIVE.get(name, name))
    model = mitigation.setup(copy.deepcopy(base), context())
    assert not model.training
    logits = model(ids).logits
    if mitigation.starts == "base":
        assert torch.equal(logits, expected)
    elif mitigation.starts == "rounded":
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    else:
        assert not torch.allclose(logits[:, -10:], expected)
    for view in mitigation.views(model).values():
        with view:
            rounding = 1e-6 if mitigation.starts == "rounded" else 0
            torch.testing.assert_close(model(ids).logits, expected, rtol=10 * rounding, atol=rounding)


@pytest.mark.parametrize("name", [n for n in mitigation_names() if get_mitigation(n).views is not Mitigation.views])
def test_a_view_leaves_the_weights_as_they_were(name: str, tmp_path: Path) -> None:
    """Bit for bit, and after an exception too."""
    ids = torch.arange(2, 12)[None]
    model, mitigation = run(ACTIVE[name], tmp_path, tasks=[0])
    before, logits = weights(model), model(ids).logits
    for view in mitigation.views(model):
        with mitigation.views(model)[view]:
            assert not torch.equal(model(ids).logits, logits)
        with pytest.raises(RuntimeError, match="in between"), mitigation.views(model)[view]:
            raise RuntimeError("in between")
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("name", [n for n in mitigation_names() if n != "naive"])
def test_composes_with_naive_in_either_order(name: str, tmp_path: Path) -> None:
    alone, _ = whole_run(ACTIVE[name])
    for text in (f"{ACTIVE[name]}+naive", f"naive+{ACTIVE[name]}"):
        together = weights(run(text, tmp_path)[0])
        assert all(torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("name", mitigation_names())
def test_default_options_stand_beside_adapters_and_frozen_layers_or_say_why_not(name: str, tmp_path: Path) -> None:
    for text in (f"lora:r=2+{name}", f"{name}+freeze:first=1", f"lora:r=2,merge=false+{name}+freeze:first=1"):
        try:
            mitigation = build_mitigation(text)
        except UsageError as error:
            assert f"'{name}'" in str(error) and "\n" not in str(error)
            continue
        model = mitigation.setup(tiny_llama(), context())
        before = weights(model)
        model, trainer = train_one(model, mitigation, 0, tmp_path)
        after = weights(model)
        assert trainer.losses and all(bool(value.isfinite().all()) for value in after.values())
        frozen = [key for key in before if "first=1" in text and ".layers.0." in key]
        assert all(torch.equal(after[key], before[key]) for key in frozen)


def test_composition_runs_hooks_in_the_order_written() -> None:
    calls: list[str] = []

    class Recorder(Mitigation):
        def __init__(self, name: str) -> None:
            self.name = name

        def loss(self, model, batch, outputs, loss):  # type: ignore[no-untyped-def]
            calls.append(self.name)
            return loss * 2 if self.name == "double" else loss + 1

    from forgetting.mitigations import Compose

    double_then_add = Compose([Recorder("double"), Recorder("add")])
    assert double_then_add.loss(None, {}, None, 3) == 7  # type: ignore[arg-type]
    assert Compose([Recorder("add"), Recorder("double")]).loss(None, {}, None, 3) == 8  # type: ignore[arg-type]
    assert calls == ["double", "add", "add", "double"]
