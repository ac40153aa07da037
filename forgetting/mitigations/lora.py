"""LoRA through peft: low-rank adapters, merged before the next task or kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.errors import UsageError, did_you_mean
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from forgetting.tasks.task import Task


ALL_LINEAR = "all-linear"


class LoRAOptions(Options):
    """Options of lora."""

    r: int = Field(default=8, ge=1, description="rank of the adapters")
    alpha: float = Field(default=16, gt=0, description="scale: the update is (alpha / r) B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' input")
    target: str = Field(default=ALL_LINEAR, description="modules that get an adapter: all-linear, or name|name")
    merge: bool = Field(default=True, description="merge before the next task and start a new adapter; else keep one")
    lr_factor: float = Field(
        default=10.0,
        gt=0,
        description="multiple of the base learning rate; LoRA's best is about 10 times full's",
    )


class LoRA(Mitigation[LoRAOptions]):
    """Only the adapters train. B starts at zero, so that row 0 is the base model's.

    Scored with the adapter on, and off (view ``adapter_off``): with ``merge`` the latter is the model before
    this task, else it is the base model. The comparison with full fine-tuning is fair only at each one's own
    learning rate: hence ``lr_factor``.
    """

    summary: ClassVar[str] = "train low-rank adapters (peft), merged before the next task or kept"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685; Biderman et al. 2024, LoRA learns less, arXiv 2405.09673"
    equation: ClassVar[str] = "W ← W + (alpha / r) B A, with B (O, r) and A (r, I) trained"
    cost: ClassVar[str] = "r (I + O) trained floats per linear layer"
    Options: ClassVar[type[Options]] = LoRAOptions

    def check_model(self, model: PreTrainedModel) -> None:
        """Targets that are named must exist."""
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
        for target in self._targets():
            if target != ALL_LINEAR and target.rsplit(".", 1)[-1] not in names:
                raise UsageError(f"mitigation 'lora': target = {target!r}: no such module{did_you_mean(target, names)}")

    def _targets(self) -> list[str]:
        return self.options.target.split("|")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Wrap the model."""
        super().setup(model, context)
        self._tasks = 0
        return self._wrap(model)

    def _wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        import torch
        from peft import LoraConfig, get_peft_model

        options = self.options
        config = LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft accepts a float
            lora_dropout=options.dropout,
            target_modules=ALL_LINEAR if options.target == ALL_LINEAR else self._targets(),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():  # A's initialisation must depend on the run's seed alone
            torch.manual_seed(self.context.seed * 1000 + self._tasks)
            wrapped = get_peft_model(model, config).train(model.training)
        return wrapped  # type: ignore[return-value]  # PeftModel forwards to it

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Scale the rate."""
        args.learning_rate *= self.options.lr_factor
        return args

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Merge the adapter of the task before, and start a new one."""
        if self._tasks and self.options.merge:
            model = self._wrap(model.merge_and_unload())  # type: ignore[operator]  # it is a PeftModel
        self._tasks += 1
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The model without its current adapter."""
        return {"adapter_off": model.disable_adapter()}  # type: ignore[operator]  # it is a PeftModel

    def state_dict(self) -> dict[str, Any]:
        """The number of adapters begun; their weights are the model's."""
        import torch

        return {"tasks": torch.tensor(self._tasks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._tasks = int(state["tasks"])
