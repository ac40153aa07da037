"""ContinualTrainer: transformers' Trainer, calling the mitigation's hooks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from forgetting import interruption, training_state
from forgetting.distributed import NOBODY, Share, StandIns, accelerate_unaware, rank, total, world_size
from forgetting.errors import RunFailed, UsageError
from forgetting.mitigations.base import Mitigation
from forgetting.out_of_memory import free, in_parts, is_out_of_memory, predicted, why_whole
from forgetting.tasks.encode import BOOKKEEPING, Collator
from forgetting.tasks.mixing import SOURCES
from forgetting.tasks.order import Shuffled
from forgetting.weights import statistics_kept

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.config import TrainingConfig
    from forgetting.training_state import TaskCheckpoints, TorchState

logger = logging.getLogger(__name__)


def training_arguments(config: TrainingConfig, *, seed: int, output: str) -> TrainingArguments:
    """Translate a TrainingConfig; nothing is saved, logged or evaluated behind the run's back."""
    arguments = TrainingArguments(
        output_dir=output,
        learning_rate=config.learning_rate,
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs or 1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        activation_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the Trainer would split batches over all GPUs it sees, and the model lives on one
    return arguments


class _Hooks(TrainerCallback):
    """Calls ``after_step`` and the progress function at the right moments of the trainer's loop."""

    def __init__(self, trainer: ContinualTrainer, on_step: Callable[[int, int], None] | None) -> None:
        self.trainer = trainer
        self.on_step = on_step

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.mitigation.after_step(kwargs["model"], self.trainer.base_learning_rate())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.end_step(state.global_step)
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)


class _Saver(TrainerCallback):
    """The last of the callbacks: restores the others once they have begun, and has the trainer save when it is due."""

    def __init__(self, trainer: ContinualTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_parts()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = control.should_training_stop
        self.trainer.trained = last
        checkpoints = self.trainer.checkpoints
        if checkpoints is None:
            if world_size() > 1:  # all stop after the same step: one that went on would wait for the others
                asked = torch.tensor(int(interruption.requested() is not None), device=args.device)
                if int(total(asked)):
                    interruption.request("a signal to another process")
            interruption.check()
        elif interruption.requested() or checkpoints.due(state.global_step, last=last):
            control.should_save = True


class ContinualTrainer(Trainer):
    """Trains one task. The loss is the mean over predicted tokens of the whole accumulated batch.

    Args:
        model: Trained in place.
        train_dataset: Features with ``source`` (which of SOURCES) and ``truncated``.
        mitigation: Its ``loss``, ``after_backward`` and ``after_step`` are called here.
        args: From :func:`training_arguments`, changed by the mitigation.
        tokenizer: For its padding token.
        callbacks: Of the mitigation.
        on_step: Called with (steps done, steps in all).
        checkpoints: Where and when the training is saved in its middle; ``train(resume_from_checkpoint=...)`` goes on
            from one of them, bit for bit. Not at all where it is not given.

    Attributes:
        losses: Training loss of each step, nats per predicted token.
        tokens, examples: Counters over SOURCES; truncated: examples shortened.
        trained: Whether the last step is done.
        split_to: Rows per forward pass since a batch did not fit in memory; ``None`` where every one did. The gradient
            is that of the whole batch, to rounding; a method that draws a minibatch of its own draws one per part,
            as it does where gradients are accumulated.

    Raises:
        RunFailed: from ``train``, at the first loss that is not finite.
        Interrupted: from ``train``, after a step, if a signal asked to stop.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        train_dataset: Dataset[Any],
        mitigation: Mitigation,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        checkpoints: TaskCheckpoints | None = None,
    ) -> None:
        self.mitigation = mitigation
        self.checkpoints = checkpoints
        self.trained = False
        self._loaded: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
        self._trained = model
        self._wrapped: nn.Module = model
        self.losses: list[float] = []
        self.tokens: Counter[str] = Counter()
        self.examples: Counter[str] = Counter()
        self.truncated = 0
        self.split_to: int | None = None
        self._predicted_in_batch: int | None = None
        self._step_loss = 0.0
        self._step_batches: list[tuple[dict[str, torch.Tensor], torch.Tensor | int | None, TorchState]] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset if world_size() == 1 else StandIns(train_dataset),
            data_collator=Collator.for_tokenizer(tokenizer),
            callbacks=[_Hooks(self, on_step), *(callbacks or []), _Saver(self)],
        )
        self.remove_callback(PrinterCallback)  # it prints a line per task among the study's progress

    def create_accelerator_and_postprocess(self) -> None:
        """A sharded model is not accelerate's to shard."""
        with accelerate_unaware():
            super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with the mitigation's multiples of the learning rate."""
        optimizer = super().create_optimizer(model)
        rates = self.mitigation.learning_rates(self._trained)
        multiples = {p: rates[name] for name, p in self._trained.named_parameters() if name in rates}
        for group in list(optimizer.param_groups) if multiples else ():
            by_multiple: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_multiple.setdefault(multiples.get(parameter, 1.0), []).append(parameter)
            optimizer.param_groups.remove(group)
            for multiple, parameters in by_multiple.items():
                learning_rate = group["lr"] * multiple
                optimizer.add_param_group({**group, "params": parameters, "lr": learning_rate, "multiple": multiple})
        return optimizer

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Shuffled:
        """The order that accelerate would give, in less memory."""
        assert self.train_dataset is not None and self.args.data_seed is not None
        return Shuffled(len(self.train_dataset), self.args.data_seed)  # type: ignore[arg-type]  # map-style

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The same batches in the same order, whatever the number of processes: each takes its part of every batch."""
        loader: Any = super().get_train_dataloader()
        if world_size() > 1:
            # Within accelerate's sampler, which gives whole batches to the processes in turn.
            share = Share(loader.batch_sampler.batch_sampler, rank(), world_size())
            # torch refuses the assignment on a loader that is made, and accelerate makes it with its own sampler.
            object.__setattr__(loader.base_dataloader, "batch_sampler", share)
        return loader

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Count what goes in, train on it, and give the mitigation the gradients once they are complete."""
        sources = inputs.pop("source").tolist()
        self.truncated += int(inputs.pop("truncated").sum())
        lengths = inputs.pop("lengths").tolist()
        for source, length in zip(sources, lengths, strict=True):
            if source == NOBODY:
                continue
            self.examples[SOURCES[source]] += 1
            self.tokens[SOURCES[source]] += length
        if num_items_in_batch is not None and int(num_items_in_batch) == 0:
            num_items_in_batch = torch.ones_like(torch.as_tensor(num_items_in_batch))
        self._wrapped = model
        self._step_batches.append((inputs, num_items_in_batch, training_state.torch_state()))
        fits = True
        try:
            loss = self._backward(model, inputs, num_items_in_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:  # not in the handler: there the exception keeps the pass's activations alive
            loss = self._split(model)
        self._step_loss += float(loss) / world_size()
        if self.accelerator.sync_gradients:
            self.mitigation.after_backward(self._trained, self._gradients_again)
            self._step_batches.clear()
        return loss

    def _gradients_again(self) -> None:
        """Compute the step's gradients anew, at the present weights, with the dropout of the first time."""
        self._trained.zero_grad(set_to_none=True)
        now = training_state.torch_state()
        with statistics_kept(self._trained):
            for inputs, num_items_in_batch, then in self._step_batches:
                training_state.set_torch_state(then)
                self._backward(self._wrapped, inputs, num_items_in_batch)
        training_state.set_torch_state(now)

    def _backward(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Add a batch's gradient, in parts since one did not fit in memory; return its loss."""
        if self.split_to is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._predicted_in_batch = predicted(inputs["labels"])
        try:
            losses = [
                super(ContinualTrainer, self).training_step(model, part, num_items_in_batch)
                for part in in_parts(inputs, self.split_to)
            ]
        finally:
            self._predicted_in_batch = None
        return torch.stack(losses).sum()

    def _split(self, model: nn.Module) -> torch.Tensor:
        """Halve the parts until the step's batches up to now fit; return the loss of the last.

        All of them, since the pass that was cut short may have added a part of its gradient to theirs.

        Raises:
            UsageError: if one row does not fit, or the batch must not be split.
        """
        rows = self.split_to or max(len(inputs["labels"]) for inputs, _, _ in self._step_batches)
        reason = why_whole(self._trained, self.mitigation, self.accelerator.num_processes)
        while rows > 1 and reason is None:
            rows = self.split_to = (rows + 1) // 2
            self._trained.zero_grad(set_to_none=True)
            free()
            try:
                for inputs, num_items_in_batch, then in self._step_batches:
                    training_state.set_torch_state(then)
                    loss = self._backward(model, inputs, num_items_in_batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                continue
            logger.warning("a batch did not fit in memory: it is trained on %d rows at a time, same gradient", rows)
            return loss
        why = f"it cannot be split, as {reason}" if reason else "not one row of it does"
        raise UsageError(
            f"training.batch_size: a batch does not fit in memory, and {why}; "
            "give a smaller batch_size or max_length, or gradient_checkpointing"
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss, as the mitigation changes it; ``weights`` are for the mitigation alone."""
        given = {key: value for key, value in inputs.items() if key != "weights"}
        loss, outputs = super().compute_loss(model, given, True, num_items_in_batch)
        share = 1.0
        if world_size() > 1 and num_items_in_batch is None:
            raise UsageError(f"model {type(self._trained).__name__}: its loss cannot be shared by several processes")
        split = self._predicted_in_batch is not None
        if num_items_in_batch is not None and (split or self.args.gradient_accumulation_steps * world_size() > 1):
            # Of several processes' gradients the mean is taken.
            share = world_size() * predicted(inputs["labels"]) / int(num_items_in_batch)
        elif self._predicted_in_batch:  # a model that gives the mean over the part
            share = predicted(inputs["labels"]) / self._predicted_in_batch
            loss = loss * share
        if share == 1.0:  # exactly: dividing and multiplying would round
            loss = self.mitigation.loss(self._trained, inputs, outputs, loss)
        elif share > 0:
            loss = self.mitigation.loss(self._trained, inputs, outputs, loss / share) * share
        everywhere = total(loss.detach())  # all processes stop, or none
        if not torch.isfinite(everywhere):
            raise RunFailed(
                f"loss is {float(everywhere)} at step {self.state.global_step + 1} "
                f"(learning rate {self._get_learning_rate():g}); lower the learning rate"
            )
        return (loss, outputs) if return_outputs else loss

    def _parts(self) -> dict[str, Any]:
        """Callbacks that gather something while they run, by a name that the same run gives them again."""
        callbacks = [callback for callback in self.callback_handler.callbacks if hasattr(callback, "load_state_dict")]
        return {f"callback.{i}": callback for i, callback in enumerate(callbacks)}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write safetensors and JSON, where transformers would pickle; then stop, if a signal asked for it."""
        assert self.checkpoints is not None and self.optimizer is not None and self.lr_scheduler is not None
        self.store_flos()
        optimizer, groups = training_state.optimizer_state(self.optimizer)
        drawn, generators = training_state.random_state()
        tensors = {
            "weights": training_state.moving(self._trained),
            "optimizer": optimizer,
            "random": drawn,
            "mitigation": self.mitigation.task_state(),
            **{name: callback.state_dict() for name, callback in self._parts().items()},
        }
        values = {
            "optimizer": groups,
            "scheduler": self.lr_scheduler.state_dict(),
            "random": generators,
            "losses": self.losses,
            "tokens": self.tokens,
            "examples": self.examples,
            "truncated": self.truncated,
            "trained": self.trained,
            "split_to": self.split_to,
        }
        state = json.dumps(asdict(self.state))
        self.checkpoints.save(self.state.global_step, training_state.gathered(tensors), values, state)
        interruption.check()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read a checkpoint, and restore the weights and what was counted."""
        path = Path(resume_from_checkpoint)
        tensors, values = training_state.load_tensors(path), training_state.load_values(path)
        self._loaded = tensors, values
        training_state.put_back(self._trained, training_state.under("weights", tensors))
        self.losses, self.truncated = list(values["losses"]), values["truncated"]
        self.tokens, self.examples = Counter(values["tokens"]), Counter(values["examples"])
        self.trained, self.split_to = values["trained"], values["split_to"]
        if self.checkpoints is not None:
            self.checkpoints.seconds_before = values["seconds"]

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *rest: Any
    ) -> tuple[int, int]:
        """What was trained to its end has no epoch left, wherever in one it stopped."""
        begin: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, *rest
        )
        return (num_train_epochs, 0) if self.trained else begin

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._loaded is None:
            return
        tensors, values = self._loaded
        training_state.load_optimizer(self.optimizer, training_state.under("optimizer", tensors), values["optimizer"])
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(values["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: fp32, or bf16, whose gradients are not scaled."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore all random states; transformers calls this after the epoch's order and first batch were drawn."""
        assert self._loaded is not None
        training_state.set_random_state(training_state.under("random", self._loaded[0]), self._loaded[1]["random"])

    def restore_parts(self) -> None:
        """Give the mitigation and the callbacks what they had gathered, where training goes on from a checkpoint."""
        if self._loaded is None:
            return
        tensors = self._loaded[0]
        self.mitigation.load_task_state(training_state.under("mitigation", tensors))
        for name, callback in self._parts().items():
            callback.load_state_dict(training_state.under(name, tensors))
        if self.trained:
            self._load_rng_state(None)

    def base_learning_rate(self) -> float:
        """The present rate, before the mitigation's multiples."""
        assert self.optimizer is not None
        return float(self._get_learning_rate() / self.optimizer.param_groups[0].get("multiple", 1.0))

    def end_step(self, step: int) -> None:
        """Log the step's loss."""
        self.losses.append(float(total(torch.tensor(self._step_loss, dtype=torch.float64))))
        self._step_loss = 0.0

    def count_everywhere(self) -> None:
        """Add up what the processes counted; every process must call it, once, after training."""
        if world_size() > 1:
            names = [*SOURCES]
            counts = [*(self.tokens[n] for n in names), *(self.examples[n] for n in names), self.truncated]
            *found, self.truncated = total(torch.tensor(counts)).tolist()
            self.tokens = Counter({n: c for n, c in zip(names, found[: len(names)], strict=True) if c})
            self.examples = Counter({n: c for n, c in zip(names, found[len(names) :], strict=True) if c})


def padded_batches(
    features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """Collate features in their order into batches of the model's inputs and ``labels``."""
    collate = Collator.for_tokenizer(tokenizer)
    batches = [collate(features[i : i + batch_size]) for i in range(0, len(features), batch_size)]
    return [{key: value for key, value in batch.items() if key not in BOOKKEEPING} for batch in batches]


def mean_loss(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean loss over all predicted tokens, nats; the model's mode is restored."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            predicted = int((batch["labels"][:, 1:] != -100).sum())
            if predicted:
                loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
                total += float(loss) * predicted
                count += predicted
    model.train(was_training)
    return total / max(count, 1)
