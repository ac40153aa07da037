"""Our mitigations in Avalanche's training loop."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence as Items
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from forgetting.avalanche.benchmarks import text_dataset
from forgetting.config import TrainingConfig
from forgetting.errors import UsageError
from forgetting.mitigations import Compose, Mitigation, RunContext, build_mitigation
from forgetting.mitigations.joint import Joint
from forgetting.tasks.encode import ExampleDataset, encode_examples, encode_texts, pack
from forgetting.tasks.pretraining import PretrainingText
from forgetting.tasks.task import Sequence, Task
from forgetting.trainer import training_arguments

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments

HONOURED_ARGUMENTS = {"learning_rate"}


def text_context(
    sequence: Sequence,
    tokenizer: PreTrainedTokenizerBase,
    *,
    training: TrainingConfig,
    pretraining: PretrainingText,
    seed: int = 0,
) -> RunContext:
    """What a mitigation may know of a run on ``as_benchmark(sequence, tokenizer, max_length=training.max_length)``.

    Args:
        sequence: The tasks; experience i is task i.
        tokenizer: The model's.
        training: As the strategy trains: its batch size and length are the mitigation's own passes'.
        pretraining: Text like the base model's pretraining data: task 0.
        seed: Of what the mitigation draws.
    """
    length = training.max_length
    return RunContext(
        seed=seed,
        tokenizer=tokenizer,
        training=training,
        pretraining=pretraining,
        tasks=sequence.tasks,
        encode_task=lambda task: encode_examples(tokenizer, task.train, length),
        encode_validation=lambda task: encode_examples(tokenizer, task.validation, length),
        encode_text=lambda texts: encode_texts(tokenizer, texts, length),
        pack=(lambda features: pack(features, length)) if training.packing else (lambda features: features),
    )


class _NoText:
    """Stands where a context has text, for benchmarks that have none."""

    def _refuse(self, *_: Any) -> Any:
        raise UsageError(
            "as_plugin: the mitigation reads text of a task or of pretraining, and a benchmark of arrays has none; "
            "give a context (text_context), or take forgetting.avalanche.EWCPlugin or Avalanche's own plugin"
        )

    __getattr__ = __call__ = __iter__ = __len__ = __getitem__ = _refuse


def _array_context(seed: int) -> RunContext:
    none: Any = _NoText()
    return RunContext(
        seed=seed,
        tokenizer=none,
        training=TrainingConfig(),
        pretraining=none,
        tasks=(),
        encode_task=none,
        encode_validation=none,
        encode_text=none,
        pack=none,
    )


def as_plugin(mitigation: str | Mitigation, context: RunContext | None = None, *, seed: int = 0) -> MitigationPlugin:
    """Return a mitigation as a plugin for Avalanche's strategies.

    Args:
        mitigation: A new one, or what it is written as: ``"replay:fraction=0.1+ewc:strength=10"``.
        context: For text (:func:`text_context`), with :class:`~forgetting.avalanche.TextTemplate`. Without one, for any
            strategy on arrays, whose mitigations can only act on weights and gradients.
        seed: Of what the mitigation draws, where there is no context.

    Raises:
        UsageError: for a mitigation that Avalanche's loop cannot do justice to; here where that can be told, else
            before the first step.
    """
    built = build_mitigation(mitigation) if isinstance(mitigation, str) else mitigation
    return MitigationPlugin(built, context, seed=seed)


class MitigationPlugin:
    """A mitigation behind Avalanche's callbacks; they are found by name, so it needs no base class of theirs.

    ==================================  ==========================================================================
    Avalanche's callback                the mitigation's hooks
    ==================================  ==========================================================================
    before_train_dataset_adaptation     ``check_model`` and ``setup`` (once), ``before_task``
    after_train_dataset_adaptation      ``train_dataset``
    before_training_exp                 ``training_arguments`` (the learning rate), ``learning_rates``, ``callbacks``
    before_backward                     ``loss``
    after_backward                      ``after_backward``
    after_update                        ``after_step``
    after_training_exp                  ``after_task``
    ==================================  ==========================================================================

    Refused with a line: models that are replaced (LoRA), other training arguments than the learning rate, callbacks of
    transformers' Trainer, oracles of the task that is tested; on arrays, changes of the loss and whatever reads text.

    Args:
        mitigation: A new one.
        context: See :func:`as_plugin`.
        seed: Of a mitigation without a context.
    """

    def __init__(self, mitigation: Mitigation, context: RunContext | None = None, *, seed: int = 0) -> None:
        self.mitigation, self.context, self.of_text = mitigation, context or _array_context(seed), context is not None
        self._begun = False
        parts = mitigation.parts if isinstance(mitigation, Compose) else [mitigation]
        if mitigation.task_oracle:
            raise _refusal(mitigation, "is told which task is tested, which Avalanche's evaluation does not tell")
        for part in parts:
            if isinstance(part, Joint):
                raise _refusal(part, "trains all tasks at once; take Avalanche's JointTraining")
            changes = [
                hook for hook in ("loss", "train_dataset") if getattr(type(part), hook) is not getattr(Mitigation, hook)
            ]
            if changes and not self.of_text:
                raise _refusal(
                    part,
                    f"changes the {' and the '.join(c.replace('_', ' ') for c in changes)} of text; give a context",
                )

    def _same(self, before: nn.Module, after: nn.Module) -> None:
        if after is not before:
            raise _refusal(self.mitigation, "replaces the model, and the strategy's optimizer is of the one before")

    def _task(self, strategy: Any) -> Task:
        position = strategy.experience.current_experience
        if not self.of_text:
            return SimpleNamespace(name=f"experience {position}")  # type: ignore[return-value]  # has no text
        if position >= len(self.context.tasks):
            raise UsageError(
                f"as_plugin: experience {position} is none of the context's {len(self.context.tasks)} tasks"
            )
        return self.context.tasks[position]

    def before_train_dataset_adaptation(self, strategy: Any, **_: Any) -> None:
        """Begin the run, then the task."""
        if not self._begun:
            self.mitigation.check_model(strategy.model)
            was_training = strategy.model.training
            self._same(strategy.model, self.mitigation.setup(strategy.model.eval(), self.context))
            strategy.model.train(was_training)
            self._begun = True
        self._same(strategy.model, self.mitigation.before_task(strategy.model, self._task(strategy)))

    def after_train_dataset_adaptation(self, strategy: Any, **_: Any) -> None:
        """Change what is trained on."""
        if not self.of_text:
            return
        task, position = self._task(strategy), strategy.experience.current_experience
        own: Dataset = ExampleDataset(self.context.encode_task(task))
        changed = self.mitigation.train_dataset(own, task, self.context.tasks[:position])
        if changed is not own:
            strategy.adapted_dataset = text_dataset(changed, self.context.tokenizer, position)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Set the learning rates."""
        if self.mitigation.callbacks(strategy.model, self._task(strategy)):
            raise _refusal(self.mitigation, "needs callbacks of transformers' Trainer, which is another loop")
        factor = self._scale = self._factor()
        rates = self.mitigation.learning_rates(strategy.model)
        names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
        optimizer = strategy.optimizer
        for group in list(optimizer.param_groups):
            by_multiple: dict[float, list[Any]] = {}
            for parameter in group["params"]:
                by_multiple.setdefault(factor * rates.get(names.get(id(parameter), ""), 1.0), []).append(parameter)
            base = group["lr"] / group.get("multiple", 1.0)
            if set(by_multiple) == {group.get("multiple", 1.0)} or not by_multiple:
                continue
            optimizer.param_groups.remove(group)
            for multiple, parameters in by_multiple.items():
                optimizer.add_param_group({**group, "params": parameters, "lr": base * multiple, "multiple": multiple})

    def _factor(self) -> float:
        """What the mitigation multiplies the learning rate by."""
        with tempfile.TemporaryDirectory() as scratch:
            # A budget in epochs: the strategy has one, and a longer data set (replay) then takes more steps by itself.
            training = TrainingConfig(epochs=1, learning_rate=1.0)
            before: TrainingArguments = training_arguments(training, seed=self.context.seed, output=scratch)
            plain = dict(vars(before))
            after = vars(self.mitigation.training_arguments(before))
        changed = sorted(
            key for key, value in after.items() if value != plain.get(key) and key not in HONOURED_ARGUMENTS
        )
        if changed:
            raise _refusal(
                self.mitigation, f"changes {', '.join(changed)}, which Avalanche's loop takes from its strategy"
            )
        return float(after["learning_rate"])

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Change the loss."""
        if self.of_text:
            strategy.loss = self.mitigation.loss(
                strategy.model, strategy.mbatch, strategy.mb_output, strategy.loss.squeeze()
            )

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Change the gradients."""

        def again() -> None:
            strategy.optimizer.zero_grad()
            strategy.loss = strategy._make_empty_loss()
            strategy.mb_output = strategy.forward()
            strategy.loss += strategy.criterion()
            strategy._before_backward()
            strategy.backward()

        self.mitigation.after_backward(strategy.model, again)

    def after_update(self, strategy: Any, **_: Any) -> None:
        """Change the weights."""
        group = strategy.optimizer.param_groups[0]
        base = group["lr"] / group.get("multiple", 1.0)
        self.mitigation.after_step(strategy.model, base * self._scale)  # the mitigation's own rate, of no parameter's

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Consolidate."""
        self._same(strategy.model, self.mitigation.after_task(strategy.model, self._task(strategy)))


def _refusal(mitigation: Mitigation, why: str) -> UsageError:
    parts: Items[Mitigation] = mitigation.parts if isinstance(mitigation, Compose) else [mitigation]
    name = "+".join(type(part).__module__.rsplit(".", 1)[-1] for part in parts)
    return UsageError(f"as_plugin: mitigation {name!r} {why}")
