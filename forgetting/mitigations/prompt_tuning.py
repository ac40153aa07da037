"""Prompt tuning through peft: trained embeddings before every input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from forgetting.adapters import AdapterOptions, PromptAdapter, PromptOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class PromptTuningOptions(PromptOptions):
    """Options of prompt_tuning."""

    lr_factor: float = Field(
        default=100.0, gt=0, description="multiple of the base learning rate; a prompt's best is far above full's"
    )


class PromptTuning(PromptAdapter[PromptTuningOptions]):
    """One soft prompt is trained through all tasks; nothing else changes.

    It starts from the embeddings of real tokens: the model begins as the base model does after these tokens. In the
    view ``adapter_off`` it is the base model always: what is forgotten comes back as soon as the prompt is taken away.
    """

    summary: ClassVar[str] = "train the embeddings of virtual tokens before every input (peft)"
    paper: ClassVar[str] = "Lester et al. 2021, The power of scale, arXiv 2104.08691"
    equation: ClassVar[str] = "p(y | x) = p_θ(y | [P; E x]), with P (length, D) trained"
    cost: ClassVar[str] = "length × D trained floats; every sequence is longer by length tokens"
    Options: ClassVar[type[AdapterOptions]] = PromptTuningOptions

    def estimators(self) -> tuple[str, ...]:
        """None: its logits are more than the labels."""
        return ()

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """See Adapter."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(num_virtual_tokens=self.options.length, task_type="CAUSAL_LM")

    def wrap(self, model: PreTrainedModel, adapter: str = "default") -> PreTrainedModel:
        """See Adapter; the prompt starts from real tokens, which peft would draw from the global generator."""
        import torch

        start = model.get_input_embeddings().weight[self.starting_tokens(model).to(model.device)]  # type: ignore[index]
        wrapped: Any = super().wrap(model, adapter)
        with torch.no_grad():
            wrapped.prompt_encoder[adapter].embedding.weight.copy_(start)
        return wrapped
