"""BitFit: only biases are trained, and the gains of norms where the model has no biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, TrainingArguments


class BitFitOptions(Options):
    """Options of bitfit."""

    norms: bool = Field(default=True, description="train the gains of norms too; Llama and its kin have no biases")
    lr_factor: float = Field(
        default=10.0, gt=0, description="multiple of the base learning rate; biases need a higher one than full tuning"
    )


class BitFit(Mitigation[BitFitOptions]):
    """Well below a hundredth of the parameters is trained; all else stays as it is, bit for bit."""

    summary: ClassVar[str] = "train biases and the gains of norms alone"
    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv 2106.10199"
    equation: ClassVar[str] = "b ← b − η ∇L_task(b), weights fixed"
    Options: ClassVar[type[Options]] = BitFitOptions

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Adapters would be frozen, or train what is not asked for."""
        from forgetting.adapters import adapters_in

        for part in adapters_in(chain):
            raise UsageError(
                f"mitigation 'bitfit': trains biases alone, {part.name!r} adapters alone; leave one of them out"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Something must be left to train."""
        if not self._trained(model):
            hint = "" if self.options.norms else "; write bitfit:norms=true"
            what = "biases and no norms with gains" if self.options.norms else "biases"
            raise UsageError(
                f"mitigation 'bitfit': {type(model).__name__} has no {what}: nothing is left to train{hint}"
            )

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Freeze all else; what an earlier part froze stays frozen."""
        super().setup(model, context)
        trained = {id(p) for p in self._trained(model)}
        for parameter in model.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
        return model

    def _trained(self, model: PreTrainedModel) -> list[nn.Parameter]:
        found = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        for module in model.modules() if self.options.norms else ():
            if "norm" in type(module).__name__.lower():
                found += [p for name, p in module.named_parameters(recurse=False) if name == "weight"]
        return found

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Scale the rate."""
        args.learning_rate *= self.options.lr_factor
        return args
