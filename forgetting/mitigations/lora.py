"""LoRA and its variants through peft: low-rank adapters, merged before the next task or kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from forgetting.adapters import ALL_LINEAR, ESTIMATORS, Adapter, AdapterOptions, target_names, targeted, task_type
from forgetting.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

SPLIT = ("pissa", "olora")
"""Initialisations that move a part of the weight into the adapter: what is left is not the weight."""


class RankOptions(AdapterOptions):
    """Options of a low-rank adapter."""

    r: int = Field(default=8, ge=1, description="rank of the adapters")
    alpha: float = Field(default=16, gt=0, description="scale: the update is (alpha / r) B A")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' input")
    target: str = Field(default=ALL_LINEAR, description="modules that get an adapter: all-linear, or name|name")
    lr_factor: float = Field(
        default=10.0,
        gt=0,
        description="multiple of the base learning rate; LoRA's best is about 10 times full's",
    )
    rslora: bool = Field(default=False, description="rank-stabilised: the scale is alpha / √r")
    dora: bool = Field(default=False, description="weight-decomposed: each output's magnitude is trained by itself")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "mica"] = Field(
        default="default",
        description="default, gaussian: A random, B 0; orthogonal: both random, B A = 0; pissa, olora: the weight's "
        "principal part by SVD or QR; mica: B the SVD's last directions, fixed, A 0",
    )

    @model_validator(mode="after")
    def _fits(self) -> RankOptions:
        """No option is accepted that peft would refuse later."""
        if self.init == "mica" and self.dora:
            raise ValueError("init=mica fixes B, and dora=true trains it; leave one of them out")
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"init=orthogonal needs an even r, not {self.r}")
        return self


class LoRAOptions(RankOptions):
    """Options of lora."""

    merge: bool = Field(default=True, description="merge before the next task and start a new adapter; else keep one")


RankOptionsT = TypeVar("RankOptionsT", bound=RankOptions)


class LoRA(Adapter[RankOptionsT]):
    """Only the adapters train. B A starts at zero, so that row 0 is the base model's.

    With ``init=pissa`` (Meng et al. 2024) or ``olora`` (OLoRA, Büyükakyüz 2024; not O-LoRA, which is ``o_lora``)
    the adapter starts as a part of the weight, and what is left of the weight is frozen: row 0 is the base model's
    up to rounding, and ``adapter_off`` puts the adapter back to its start instead of switching it off.

    The view ``adapter_off`` is the model before this task with ``merge``, else the base model.
    """

    summary: ClassVar[str] = "train low-rank adapters (peft), merged before the next task or kept"
    paper: ClassVar[str] = (
        "Hu et al. 2021, arXiv 2106.09685; Biderman et al. 2024, LoRA learns less, arXiv 2405.09673; rsLoRA: "
        "Kalajdzievski 2023, arXiv 2312.03732; DoRA: Liu et al. 2024, arXiv 2402.09353; PiSSA: Meng et al. 2024, "
        "arXiv 2404.02948; OLoRA: Büyükakyüz 2024, arXiv 2406.01775; MiCA: arXiv 2604.01694"
    )
    equation: ClassVar[str] = "W ← W + (alpha / r) B A, with B (O, r) and A (r, I) trained"
    cost: ClassVar[str] = "r (I + O) trained floats per linear layer; as many stored with init=pissa or olora"
    Options: ClassVar[type[AdapterOptions]] = LoRAOptions

    def __init__(self, options: RankOptionsT) -> None:
        super().__init__(options)
        if options.dora or options.init in (*SPLIT, "orthogonal"):
            self.starts = "rounded"  # type: ignore[misc]  # of the class it is the default options'

    def lasts(self) -> bool:
        """See Adapter."""
        return isinstance(self.options, LoRAOptions) and not self.options.merge

    def estimators(self) -> tuple[str, ...]:
        """See Adapter; DoRA's magnitudes have no rule."""
        return ("batched",) if self.options.dora else ESTIMATORS

    def check_model(self, model: PreTrainedModel) -> None:
        """Targets that are named must exist, and have the rank that their initialisation takes from them."""
        from torch import nn

        options = self.options
        for name, module in targeted(model, options.target, self.name).items():
            if options.init in (*SPLIT, "mica") and options.r > min(module.weight.shape):
                raise UsageError(
                    f"mitigation {self.name!r}: r = {options.r}: init={options.init} takes at most "
                    f"{min(module.weight.shape)} directions from {name}"
                )
            if options.init == "olora" and not isinstance(module, nn.Linear):
                raise UsageError(
                    f"mitigation {self.name!r}: init = 'olora': peft has it for linear layers, not for the "
                    f"{type(module).__name__} {name}; give pissa"
                )

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """See Adapter."""
        from peft import LoraConfig

        options = self.options
        return LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft accepts a float
            lora_dropout=options.dropout,
            target_modules=target_names(options.target),
            use_rslora=options.rslora,
            use_dora=options.dora,
            init_lora_weights=True if options.init == "default" else options.init,
            task_type=task_type(model),
        )

    def wrap(self, model: PreTrainedModel, adapter: str = "default") -> PreTrainedModel:
        """See Adapter; where the adapter starts as a part of the weight, its start is kept."""
        model = super().wrap(model, adapter)
        self._start: dict[str, Any] = {}
        if self.options.init in SPLIT:
            self._start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The model without its current adapter, or with it as it started."""
        from forgetting.weights import swapped

        return {"adapter_off": swapped(model, lambda: dict(self._start))} if self._start else super().views(model)

    def stored_floats(self) -> int:
        """The adapter's start, where it is a part of the weight."""
        return sum(value.numel() for value in self._start.values())
