"""Orthogonal subspace fine-tuning through peft: each weight's first singular directions are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from forgetting.adapters import ALL_LINEAR, Adapter, AdapterOptions, target_names, targeted
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from forgetting.models import ModelFamily


class OSFOptions(AdapterOptions):
    """Options of osf."""

    preserve: float = Field(
        default=0.5, gt=0, lt=1, description="share of each weight's singular directions that is kept, the first ones"
    )
    target: str = Field(default=ALL_LINEAR, description="linear modules that are decomposed: all-linear, or name|name")
    merge: bool = Field(default=True, description="merge before the next task and decompose anew; else keep one")
    lr_factor: float = Field(
        default=1.0, gt=0, description="multiple of the base learning rate; what trains are parts of the weights"
    )


class OSF(Adapter[OSFOptions]):
    """The last singular vectors and values of each weight train, orthogonal to the first ones, which stay.

    peft projects the gradients, and Adam rescales them entry by entry after that: of its steps, not of the gradients, a
    part lies within the first directions (.2 to .3 of a step's length on a model of width 16).

    With ``merge`` what a task has learned is decomposed with the weight before the next task, and its large
    directions are kept then too. The share kept is the same for every layer and task: the paper's, by a layer's
    importance, is not in peft. Row 0 is the base model's up to rounding. The view ``adapter_off`` is the model
    before this task with ``merge``, else the base model.
    """

    summary: ClassVar[str] = "train each weight's last singular directions, orthogonal to the first (peft)"
    paper: ClassVar[str] = "Nayak et al. 2025, arXiv 2504.07097"
    equation: ClassVar[str] = "W = U_h S_h V_hᵀ + U_l S_l V_lᵀ, with U_l ⟂ U_h, V_l ⟂ V_h and S_l trained"
    cost: ClassVar[str] = "an SVD per weight and task; up to (1 − preserve) of 4 floats per weight, two of them trained"
    Options: ClassVar[type[AdapterOptions]] = OSFOptions
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)
    starts: ClassVar[Literal["base", "rounded", "elsewhere"]] = "rounded"

    def lasts(self) -> bool:
        """See Adapter."""
        return not self.options.merge

    def check_model(self, model: PreTrainedModel) -> None:
        """Targets must be linear layers, and large enough for a direction to be kept."""
        from torch import nn

        for name, module in targeted(model, self.options.target, "osf").items():
            if not isinstance(module, nn.Linear):
                raise UsageError(
                    f"mitigation 'osf': target = {self.options.target!r}: {name} is a {type(module).__name__}; "
                    "peft decomposes linear layers only"
                )
            if int(min(module.weight.shape) * self.options.preserve) < 1:
                raise UsageError(
                    f"mitigation 'osf': preserve = {self.options.preserve:g}: is no whole direction of {name}'s "
                    f"{min(module.weight.shape)}"
                )

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """See Adapter."""
        from peft import OSFConfig

        return OSFConfig(
            effective_rank=self.options.preserve,
            target_modules=target_names(self.options.target),
            task_type="CAUSAL_LM",
        )

    def wrap(self, model: PreTrainedModel, adapter: str = "default") -> PreTrainedModel:
        """See Adapter; peft leaves the decomposition out of the model's state, from which a run is resumed."""
        from peft.tuners.osf.layer import OSFLayer

        model = super().wrap(model, adapter)
        for layer in model.modules():
            if isinstance(layer, OSFLayer):
                for name in layer.other_param_names:
                    buffers = getattr(layer, name)
                    if name.startswith("_osf_") and adapter in buffers:
                        buffers.register_buffer(adapter, buffers[adapter], persistent=True)
        return model
