"""Avalanche's plugins as baselines, driven from this package's loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from forgetting.errors import UsageError, did_you_mean
from forgetting.mitigations.base import Mitigation, Options, Processes, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from forgetting.avalanche.driver import Driver
    from forgetting.config import TrainingConfig
    from forgetting.models import ModelFamily
    from forgetting.tasks.task import Task

USES = {
    "naive": (),
    "ewc": ("strength", "decay"),
    "si": ("strength",),
    "mas": ("strength",),
    "rwalk": ("strength", "interval"),
    "lwf": ("strength", "temperature"),
    "gem": ("strength", "memory"),
    "agem": ("memory", "sample"),
    "replay": ("memory", "sample"),
}
"""The plugins that work on a language model, and the options that each uses."""
_LOGITS = "keeps one row of logits per example, and a language model has one per token"
_CLASSES = "needs a classifier with a feature extractor and classes that arrive in turn"
REFUSED = {
    "der": _LOGITS,
    "er_ace": _CLASSES,
    "er_aml": _CLASSES,
    "icarl": _CLASSES,
    "bic": _CLASSES,
    "cope": _CLASSES,
    "cwr_star": _CLASSES,
    "ar1": _CLASSES,
    "slda": _CLASSES,
    "lfl": _CLASSES,
    "feature_distillation": _CLASSES,
    "gss_greedy": _CLASSES,
    "mir": "chooses from its memory by each example's loss in a loop of its own",
    "rar": "perturbs real-valued inputs, and tokens are none",
    "gdumb": "trains a new model from nothing after every task, and this one is pretrained",
    "generative_replay": "trains a generator of real-valued inputs beside the model",
}
"""Avalanche's other methods, and why a language model cannot be trained with them."""


class AvalancheOptions(Options):
    """Options of avalanche."""

    plugin: str = Field(default="ewc", description=f"Avalanche's plugin: {', '.join(USES)}")
    strength: float = Field(
        default=1.0, ge=0, description="in Avalanche's own convention: λ (ewc, si, mas, rwalk), α (lwf), γ (gem)"
    )
    decay: float | None = Field(default=None, gt=0, le=1, description="of ewc: makes it online")
    temperature: float = Field(default=2.0, gt=0, description="of lwf")
    memory: int = Field(default=200, ge=1, description="examples kept per task (gem, agem) or in all (replay)")
    sample: int | None = Field(
        default=None, ge=1, description="examples of the memory per step (agem, replay); the batch size if not given"
    )
    interval: int = Field(default=10, ge=1, description="steps between two scores (rwalk); a task must have as many")

    @field_validator("plugin")
    @classmethod
    def _works(cls, value: str) -> str:
        if value in REFUSED:
            raise ValueError(f"{REFUSED[value]}; valid are {', '.join(USES)}")
        if value not in USES:
            raise ValueError(f"is none of Avalanche's plugins for a language model{did_you_mean(value, USES)}")
        return value

    @model_validator(mode="after")
    def _used(self) -> AvalancheOptions:
        """No option is accepted and then ignored."""
        for field in self.model_fields_set - {"plugin", *USES[self.plugin]}:
            uses = ", ".join(USES[self.plugin]) or "no option"
            raise ValueError(f"{field} has no meaning with plugin={self.plugin}, which uses {uses}")
        return self


class Avalanche(Mitigation[AvalancheOptions]):
    """What Avalanche's users run: as there, nothing of what came before the first task is protected.

    The plugin sees a classifier of tokens: examples as rows of one tensor, and a row of logits per predicted token.
    Repaired for a fair comparison: synaptic intelligence, which in 0.6.0 protects nothing on a CPU, and GEM's solver,
    which is not among its dependencies.
    """

    summary: ClassVar[str] = "a baseline: Avalanche's own plugin (EWC, SI, MAS, RWalk, LwF, GEM, A-GEM, replay)"
    paper: ClassVar[str] = "Carta et al. 2023, Avalanche, arXiv 2302.01766"
    equation: ClassVar[str] = "the plugin's own"
    cost: ClassVar[str] = (
        "ewc: 2 floats per parameter and task, mas: 2, si: 7, rwalk: 5; lwf: a copy of the model and 1 extra forward "
        "pass; rwalk: a step's passes more; gem, agem, replay: examples, and passes over them"
    )
    Options: ClassVar[type[Options]] = AvalancheOptions
    processes: ClassVar[Processes] = "one"
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)
    null: ClassVar[dict[str, Any] | None] = {"plugin": "naive"}

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Its plugins know parameters by name, and those must stay."""
        from forgetting.adapters import check_adapters

        check_adapters("avalanche", self, chain)

    def check_training(self, model: PreTrainedModel, training: TrainingConfig) -> None:
        """A step must be one batch, with a row per example."""
        for field, value, valid in (
            ("gradient_accumulation", training.gradient_accumulation, 1),
            ("packing", training.packing, False),
        ):
            if value != valid:
                raise UsageError(
                    f"mitigation 'avalanche': training.{field} = {value}: its plugins see a step as one batch with a "
                    f"row per example; set it to {str(valid).lower()}"
                )

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Make the plugin."""
        super().setup(model, context)
        options, training = self.options, context.training
        self._driver: Driver | None = None
        if not self._acts():
            return model
        from forgetting.avalanche import Driver

        self._driver = Driver(
            options.plugin,
            model,
            width=training.max_length,
            batch_size=training.batch_size,
            seed=context.seed,
            strength=options.strength,
            decay=options.decay,
            temperature=options.temperature,
            memory=options.memory,
            sample=options.sample or training.batch_size,
            interval=options.interval,
        )
        return model

    def _acts(self) -> bool:
        """A penalty of strength 0 is none; GEM projects with γ = 0 too."""
        plugin = self.options.plugin
        return plugin in ("gem", "agem", "replay") or (plugin != "naive" and self.options.strength > 0)

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Begin an experience."""
        if self._driver is not None:
            self._driver.begin_task(self.context.encode_task(task))
        return model

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """What the plugin adds to the loss."""
        return loss if self._driver is None else self._driver.loss(batch, outputs, loss)

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """What the plugin does to the gradients."""
        if self._driver is not None:
            self._driver.after_backward()

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """What the plugin takes from a step."""
        if self._driver is not None:
            self._driver.after_step()

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """End the experience."""
        if self._driver is not None:
            self._driver.end_task()
        return model

    def stored_floats(self) -> int:
        """The plugin's own."""
        return 0 if self._driver is None else self._driver.stored_floats()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The plugin's counters and importances."""
        return {} if self._driver is None else self._driver.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore; memories and teachers are made again."""
        if self._driver is not None:
            self._driver.load_state_dict(state, map(self.context.encode_task, self.context.tasks))
