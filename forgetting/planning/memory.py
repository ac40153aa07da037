"""Adding up: bytes per device, at the moment of a run when they are most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from forgetting.config import TrainingConfig
    from forgetting.planning.activations import Activations
    from forgetting.planning.shape import Shape
    from forgetting.planning.stored import Stored

Strategy = Literal["one", "ddp", "fsdp"]
FP32 = 4


@dataclass(frozen=True)
class Need:
    """Bytes on each device.

    Attributes:
        devices: Among which the run is divided.
        strategy: ``one`` device; ``ddp``: each has everything; ``fsdp``: each has a part of weights, gradients,
            optimizer and of what mitigations keep, and gathers a block's weights when it needs them (FSDP2, full
            shard, a group per block).
        weights: In fp32, as this package loads them; of ``bf16``, autocast's copies are among the activations.
        gradients: In fp32.
        optimizer: AdamW's two moments.
        mitigation: What it keeps, with what it has more of while it trains.
        communication: DDP's buckets, as large as the gradients; FSDP's gathered weights (two blocks, since the next is
            fetched early, and what is in no block) and their gradients before they are divided.
        activations: Of the blocks.
        logits: Logits, loss, their gradients and the embeddings' output; a teacher's logits too.
        fisher: Sums of the Fisher information.
        step: What the mitigation needs within the optimizer's step.
        peak: The larger of two moments: a pass that begins to go backward (all activations; no gradients yet, but
            where several passes make a step, or, in their place, the Fisher's sums), and a pass that went back (all
            gradients).
    """

    devices: int
    strategy: Strategy
    weights: float
    gradients: float
    optimizer: float
    mitigation: float
    communication: float
    activations: float
    logits: float
    fisher: float
    step: float
    peak: float


def need(
    shape: Shape,
    activations: Activations,
    stored: Stored,
    *,
    devices: int = 1,
    strategy: Strategy = "one",
    accumulation: int = 1,
) -> Need:
    """Add up what one device needs; CUDA's own context and the allocator's gaps come on top.

    Args:
        shape: Of the model under the mitigation.
        activations: Of one batch on one device.
        stored: By the mitigation.
        devices: Among which the run is divided.
        strategy: How.
        accumulation: Passes per optimizer step.

    Raises:
        ValueError: if ``devices`` and ``strategy`` do not go together.
    """
    if devices < 1 or (devices == 1) != (strategy == "one"):
        raise ValueError(
            f"devices = {devices}: strategy {strategy!r} needs {'1' if strategy == 'one' else '2 or more'}"
        )
    part = devices if strategy == "fsdp" else 1
    weights, gradients = FP32 * shape.parameters / part, FP32 * shape.trained / part
    optimizer = 2 * gradients
    mitigation = (stored.kept + stored.during) * gradients + stored.copies * weights
    communication = 0.0
    if strategy == "ddp":
        communication = gradients
    elif strategy == "fsdp":
        gathered = min(2 * shape.block, shape.layers * shape.block) + shape.outside
        communication = FP32 * (gathered + shape.trained_block + shape.trained_outside)
    blocks = activations.block * shape.layers_kept
    rest = activations.outside + (activations.logits if stored.teacher else 0)
    fisher = gradients if stored.fisher else 0.0
    step = stored.step * gradients
    static = weights + optimizer + mitigation + communication
    beginning = blocks + rest + max(gradients if accumulation > 1 else 0.0, fisher)
    return Need(
        devices=devices,
        strategy=strategy,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        mitigation=mitigation,
        communication=communication,
        activations=blocks,
        logits=rest,
        fisher=fisher,
        step=step,
        peak=static + max(beginning, gradients + step),
    )


def flops_per_step(shape: Shape, activations: Activations, stored: Stored, accumulation: int = 1) -> float:
    """Operations of an optimizer step: forward and backward passes; a teacher's forward is a third."""
    passes = 1 + stored.backward + (1 / 3 if stored.teacher else 0)
    return accumulation * passes * (activations.block_flops * shape.layers + activations.outside_flops)


def plan_memory(
    config: PretrainedConfig, training: TrainingConfig, mitigation: str, devices: tuple[int, ...] = (1, 2, 8)
) -> dict:
    """Plan one mitigation: ``{"mitigation", "parameters", "trained", "flops_per_step", "devices": [Need, ...]}``.

    A batch is divided among the devices, so that what is trained on does not depend on their number; the operations
    are those of all devices together.

    Raises:
        UsageError: for a mitigation that is none, or whose memory is not known from the shape.
    """
    from forgetting.mitigations import build_mitigation
    from forgetting.planning.activations import trace
    from forgetting.planning.shape import shape_of
    from forgetting.planning.stored import stored_by

    built = build_mitigation(mitigation)
    stored = stored_by(built)
    shape = shape_of(config, built)
    accumulation = training.gradient_accumulation
    cases: list[tuple[int, Strategy]] = []
    for count in devices:
        if count < 1:
            raise UsageError(f"--devices {count}: needs at least 1")
        cases += [(1, "one")] if count == 1 else [(count, "ddp"), (count, "fsdp")]
    traced = {
        count: trace(config, training.model_copy(update={"batch_size": ceil(training.batch_size / count)}), built)
        for count in {1, *devices}
    }
    return {
        "mitigation": mitigation,
        "parameters": shape.parameters,
        "trained": shape.trained,
        "flops_per_step": flops_per_step(shape, traced[1], stored, accumulation),
        "devices": [
            asdict(need(shape, traced[count], stored, devices=count, strategy=strategy, accumulation=accumulation))
            for count, strategy in cases
        ],
    }
