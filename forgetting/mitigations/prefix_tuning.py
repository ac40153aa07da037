"""Prefix tuning through peft: trained keys and values before every input, in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from forgetting.adapters import AdapterOptions, PromptAdapter, PromptOptions
from forgetting.errors import UsageError

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from forgetting.config import TrainingConfig


class PrefixTuningOptions(PromptOptions):
    """Options of prefix_tuning."""

    projection: int = Field(
        default=0, ge=0, description="width of a network that makes the prefix, as in the paper; 0: it trains itself"
    )

    @model_validator(mode="after")
    def _used(self) -> PrefixTuningOptions:
        """No option is accepted and then ignored."""
        if self.projection and self.text is not None:
            raise ValueError("text: a projected prefix starts from random weights; leave it or projection out")
        return self


class PrefixTuning(PromptAdapter[PrefixTuningOptions]):
    """One prefix is trained through all tasks; nothing else changes.

    It starts from the keys and values of real tokens: the model begins as the base model does after these tokens.
    With ``projection`` it starts at random. In the view ``adapter_off`` the model is the base model always.
    """

    summary: ClassVar[str] = "train the keys and values of virtual tokens before every input (peft)"
    paper: ClassVar[str] = "Li & Liang 2021, Prefix-tuning, arXiv 2101.00190"
    equation: ClassVar[str] = "attention over [P_K; K] and [P_V; V] in each layer, with P_K, P_V (length, D) trained"
    cost: ClassVar[str] = "2 × length × D trained floats per layer; attention to length more tokens"
    Options: ClassVar[type[AdapterOptions]] = PrefixTuningOptions

    def check_training(self, model: PreTrainedModel, training: TrainingConfig) -> None:
        """Its training must be able to take a prefix."""
        if training.gradient_checkpointing:
            raise UsageError(
                "mitigation 'prefix_tuning': gradient_checkpointing drops a prefix's keys and values; switch it off"
            )
        super().check_training(model, training)

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """See Adapter."""
        from peft import PrefixTuningConfig

        options = self.options
        if not options.projection:
            return PrefixTuningConfig(num_virtual_tokens=options.length, task_type="CAUSAL_LM")
        return PrefixTuningConfig(
            num_virtual_tokens=options.length,
            prefix_projection=True,
            encoder_hidden_size=options.projection,
            task_type="CAUSAL_LM",
        )

    def wrap(self, model: PreTrainedModel, adapter: str = "default") -> PreTrainedModel:
        """See Adapter."""
        start = None if self.options.projection else self._keys_and_values(model)
        wrapped: Any = super().wrap(model, adapter)
        if start is not None:
            wrapped.prompt_encoder[adapter].load_prompt_embeddings(start)
        return wrapped

    def _keys_and_values(self, model: PreTrainedModel) -> torch.Tensor:
        """Those of the starting tokens, (length, 2 · layers · D): per token its layers' keys and values in turn."""
        import torch

        with torch.no_grad():
            cache = model(self.starting_tokens(model)[None].to(model.device), use_cache=True).past_key_values
        pairs = [part[0] for layer in cache.layers for part in (layer.keys, layer.values)]  # (heads, length, D / heads)
        return torch.stack(pairs).permute(2, 0, 1, 3).reshape(self.options.length, -1).float()
