"""A batch that does not fit in memory is trained on in parts, with the gradient of the whole; each case is caused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.mitigations import Mitigation, build_mitigation
from forgetting.out_of_memory import in_parts, is_device_failure, is_out_of_memory, why_whole
from forgetting.results import ResultStore
from forgetting.study import _seconds_per_step, run_study
from forgetting.tasks.encode import ExampleDataset, encode_examples
from forgetting.tasks.task import Example
from forgetting.trainer import ContinualTrainer, training_arguments
from tests.families.small import MODELS, family
from tests.mitigations.test_conformance import TASKS, TOKENIZER, context
from tests.models_for_tests import tiny_llama
from tests.test_run import small_study

UNEVEN = [
    Example(f"w{i} w{i + 1}", " " + " ".join(f"w{2 + (i * j) % 30}" for j in range(1, 2 + i % 6))) for i in range(2, 26)
]
"""Completions of 1 to 6 words."""


def test_what_the_allocators_say_is_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 58, dtype=torch.float64)  # the CPU's allocator refuses
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] not enough memory: you tried to allocate 8 bytes."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_is_a_failure_of_the_device() -> None:
    assert is_device_failure(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert is_device_failure(torch.AcceleratorError("the device was lost")) if hasattr(torch, "AcceleratorError") else 1
    assert not is_device_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_failure(ValueError("CUDA error: in a text"))


def fails_forward(model: torch.nn.Module, most: int) -> None:
    """The embedding has no memory for more than ``most`` rows."""

    def check(module: torch.nn.Module, inputs: Any) -> None:
        if module.training and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(check)


def fails_backward(model: torch.nn.Module, most: int) -> None:
    """The first block has none in the backward pass, when the gradients behind it have been added already."""

    def no_memory(gradient: torch.Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    def watch(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if module.training and len(hidden) > most and hidden.requires_grad:
            hidden.register_hook(no_memory)

    model.model.layers[0].register_forward_hook(watch)


def train(
    text: str,
    tmp_path: Path,
    fails: Callable[[torch.nn.Module, int], None] | None = None,
    most: int = 0,
    *,
    batch_size: int = 8,
    accumulation: int = 1,
    means: bool = False,
) -> tuple[list[list[torch.Tensor]], ContinualTrainer, torch.nn.Module]:
    """Train the second task in float64; return each step's gradients as the mitigation leaves them."""
    mitigation: Mitigation = build_mitigation(text)
    model = mitigation.setup(tiny_llama(dtype=torch.float64), context())
    if means:  # a model that knows nothing of num_items_in_batch gives the mean over what it is given
        model.accepts_loss_kwargs = False
    gradients: list[list[torch.Tensor]] = []
    after_backward = mitigation.after_backward

    def keep(model: Any, again: Callable[[], None]) -> None:
        after_backward(model, again)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    mitigation.after_backward = keep  # type: ignore[method-assign]
    config = TrainingConfig(learning_rate=1e-3, steps=2, batch_size=batch_size, gradient_accumulation=accumulation)
    torch.manual_seed(0)
    model = mitigation.before_task(model, TASKS[1])
    if text != "naive":  # away from where penalties and distances are zero
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    if fails is not None:
        fails(model, most)
    data = mitigation.train_dataset(ExampleDataset(encode_examples(TOKENIZER, UNEVEN, 16)), TASKS[1], TASKS[:1])
    arguments = mitigation.training_arguments(training_arguments(config, seed=0, output=str(tmp_path)))
    trainer = ContinualTrainer(model, data, mitigation, arguments, TOKENIZER)
    trainer.train()
    return gradients, trainer, model


def assert_same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> None:
    for a, b in zip(one[0], other[0], strict=True):  # of the first step: afterwards AdamW has magnified rounding
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "fails", "most", "accumulation", "split_to"),
    [
        ("naive", fails_backward, 1, 2, 1),
        ("lwf", fails_forward, 3, 1, 2),
        ("lwf", fails_backward, 2, 2, 2),
        ("kl_to_base:on=task,direction=reverse", fails_backward, 3, 1, 2),
        ("ewc:strength=100,examples=4", fails_forward, 3, 1, 2),
    ],
)
def test_the_gradient_of_the_parts_is_that_of_the_whole(
    text: str, fails: Any, most: int, accumulation: int, split_to: int, tmp_path: Path, caplog: Any
) -> None:
    size = 8 // accumulation
    whole, plain, _ = train(text, tmp_path, batch_size=size, accumulation=accumulation)
    with caplog.at_level(logging.WARNING):
        parts, split, _ = train(text, tmp_path, fails, most, batch_size=size, accumulation=accumulation)
    assert_same(whole, parts)
    assert split.losses == pytest.approx(plain.losses, rel=1e-6)  # transformers takes the loss in fp32
    assert (plain.split_to, split.split_to) == (None, split_to)
    assert split.tokens == plain.tokens and split.examples == plain.examples  # nothing is counted twice
    assert [record.message for record in caplog.records if "fit in memory" in record.message] == [
        f"a batch did not fit in memory: it is trained on {split_to} rows at a time, same gradient"
    ]


def test_a_model_that_gives_means_is_weighted_by_what_each_part_predicts(tmp_path: Path) -> None:
    whole, *_ = train("lwf", tmp_path, means=True)
    parts, split, _ = train("lwf", tmp_path, fails_forward, 3, means=True)
    assert split.split_to == 2
    assert_same(whole, parts)


@pytest.mark.parametrize("text", ["naive", "lwf"])
def test_accumulated_batches_of_uneven_lengths_give_the_gradient_of_one(text: str, tmp_path: Path) -> None:
    whole, *_ = train(text, tmp_path, batch_size=8, accumulation=1)
    for size, accumulation in ((4, 2), (1, 8)):
        parts, *_ = train(text, tmp_path, batch_size=size, accumulation=accumulation)
        assert_same(whole, parts)


def test_projections_see_the_whole_gradient(tmp_path: Path) -> None:
    """SAM asks for the step's gradients again, at other weights: in parts they are those of the whole too."""
    whole, *_ = train("sam:rho=0.05", tmp_path)
    parts, split, _ = train("sam:rho=0.05", tmp_path, fails_backward, 3)
    assert split.split_to == 2
    assert_same(whole, parts)


def test_where_not_one_row_fits_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not one row of it does; give a smaller batch_size or max_length"):
        train("naive", tmp_path, fails_forward, 0)


def test_another_error_is_not_taken_for_it(tmp_path: Path) -> None:
    def breaks(model: Any, most: int) -> None:
        model.register_forward_pre_hook(lambda module, inputs: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        train("naive", tmp_path, breaks)


def test_what_must_not_be_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be split, as mitigation 'avalanche': training.gradient_accumulation"):
        train("avalanche:plugin=ewc,strength=1", tmp_path, fails_forward, 3)
    norm = torch.nn.BatchNorm2d(2)
    naive = build_mitigation("naive")
    assert "batch normalisation" in str(why_whole(norm, naive, 1))
    assert why_whole(norm.eval(), naive, 1) is None and "several processes" in str(why_whole(norm, naive, 2))


@pytest.mark.parametrize("name", list(MODELS))
def test_parts_of_every_familys_batches_have_the_loss_of_the_whole(name: str) -> None:
    known = family(name)
    task = known.sequence.tasks[0]
    from forgetting.trainer import padded_batches

    features = known.encode(task, task.train[:7], 32)
    batch = padded_batches(features, known.tokenizer, 7)[0]
    model = known.base.model.eval()
    count = int((batch["labels"][:, 1:] != -100).sum())
    parts = in_parts(batch, 3)
    assert [len(part["labels"]) for part in parts] == [3, 3, 1]
    with torch.no_grad():
        losses = [model(**part, num_items_in_batch=torch.tensor(count)).loss for part in parts]
        torch.testing.assert_close(sum(losses), model(**batch).loss, rtol=1e-5, atol=1e-6)


def test_parts_in_which_nothing_is_predicted_are_left_out() -> None:
    labels = torch.full((4, 3), -100)
    assert len(in_parts({"labels": labels}, 2)) == 1
    labels[3, 2] = 5
    (part,) = in_parts({"labels": labels}, 2)
    assert torch.equal(part["labels"], labels[2:])


def test_a_run_that_had_to_split_says_so_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model whole, planning included; the scores are those of the run that had memory."""
    config = small_study(sequence={"name": "micro-5", "tasks": ["sorting"], "train_size": 16, "test_size": 8})
    (plain,) = run_study(config, tmp_path / "plain")
    import forgetting.run as run_module

    run_module._setting.cache_clear()
    from transformers import LlamaModel

    real = LlamaModel.forward

    def forward(self: Any, input_ids: torch.Tensor, **keywords: Any) -> Any:
        if self.training and len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids, **keywords)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    (split,) = run_study(config, tmp_path / "split")
    assert split.status == plain.status == "finished"
    assert [cost.split_to for cost in plain.cost.tasks] == [None] and [c.split_to for c in split.cost.tasks] == [2]
    losses = [[loss for _, loss in record.cost.tasks[0].log] for record in (plain, split)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    monkeypatch.setattr(
        LlamaModel, "forward", lambda self, input_ids, **keywords: fits(real, self, input_ids, keywords)
    )
    setting = run_module.prepare(config.runs()[0], ResultStore(tmp_path / "split"))
    assert 0 < _seconds_per_step(setting, config.runs()[0]) < 600  # planning times what fits
    run_module._setting.cache_clear()


def fits(real: Any, model: Any, input_ids: torch.Tensor, keywords: dict[str, Any]) -> Any:
    if len(input_ids) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return real(model, input_ids, **keywords)
