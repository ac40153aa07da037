"""What mitigations keep in the device's memory, in fp32 numbers, beside weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from forgetting.mitigations import Mitigation


@dataclass(frozen=True)
class Stored:
    """Numbers kept, per parameter.

    Attributes:
        kept: Between tasks, per trained parameter.
        during: More while a task is trained, per trained parameter.
        step: More within the optimizer's step, beside all gradients, per trained parameter (a penalty's implicit step
            needs two).
        copies: Of the whole model, per parameter of it (a teacher, the pretrained weights).
        teacher: Whether a copy is run on each batch: its logits lie beside the student's.
        fisher: Whether a Fisher information is computed: its sums, one per trained parameter, lie beside a batch's
            activations, while the optimizer is still there.
        backward: Forward and backward passes of each step beyond the one.
    """

    kept: float = 0
    during: float = 0
    step: float = 0
    copies: float = 0
    teacher: bool = False
    fisher: bool = False
    backward: float = 0

    def __add__(self, other: Stored) -> Stored:
        """What two mitigations keep together."""
        return Stored(
            self.kept + other.kept,
            self.during + other.during,
            max(self.step, other.step),
            self.copies + other.copies,
            self.teacher or other.teacher,
            self.fisher or other.fisher,
            self.backward + other.backward,
        )


NOTHING = Stored()

STORED: dict[str, Stored] = {
    # Nothing on the device: data that are replayed stay tokens in the machine's memory.
    **dict.fromkeys(
        (
            "naive",
            "low_lr",
            "few_steps",
            "llrd",
            "replay",
            "joint",
            "freeze",
            "bitfit",
            "lora",
            "ia3",
        ),
        NOTHING,
    ),
    "early_stopping": Stored(during=1),
    "merge_previous": Stored(during=1),
    "ema": Stored(kept=1),
    "l2sp": Stored(kept=1),
    "ewc": Stored(kept=2, step=2, fisher=True),
    "mas": Stored(kept=2, step=2, fisher=True),
    "si": Stored(kept=2, during=4, step=2),
    "rwalk": Stored(kept=4, during=6, step=2, fisher=True),
    "wise_ft": Stored(kept=2),
    "task_arithmetic": Stored(kept=2),
    "sam": Stored(during=1, backward=1),
    "agem": Stored(during=1, backward=1),
    "single_task": Stored(copies=1),
    "flow": Stored(copies=1),
    "lwf": Stored(copies=1, teacher=True),
    "kl_to_base": Stored(copies=1, teacher=True),
}
"""By name, at options that switch the method on."""


def stored_by(mitigation: Mitigation) -> Stored:
    """Return what a mitigation, or each part of a composed one, keeps.

    Raises:
        UsageError: for one whose memory depends on the data or on how many tasks there are.
    """
    from forgetting.mitigations import Compose

    if isinstance(mitigation, Compose):
        total = NOTHING
        for part in mitigation.parts:
            total += stored_by(part)
        return total
    name = type(mitigation).__module__.rpartition(".")[2]
    if name not in STORED:
        raise UsageError(
            f"mitigation {name!r}: what it keeps depends on data or on the number of tasks, and is not estimated; "
            f"estimated: {', '.join(sorted(STORED))}"
        )
    options: Any = mitigation.options
    if getattr(options, "strength", 1) == 0:
        return NOTHING
    depends = (
        (name == "ewc" and options.mode == "kfac", "mode=kfac"),
        (name == "lora" and options.init in ("pissa", "olora"), f"init={getattr(options, 'init', '')}"),
        (name == "kl_to_base" and options.on == "text", "on=text"),
    )
    for is_so, what in depends:
        if is_so:
            raise UsageError(f"mitigation {name!r}: with {what}, what it keeps is not estimated")
    if name == "wise_ft" and options.alpha == 1:  # the tuned weights are the model's; of the pretrained, views are made
        return replace(STORED[name], kept=1 if options.curve else 0)
    if name == "si" and options.pretrained == "fisher":
        return replace(STORED[name], fisher=True)
    return STORED[name]
