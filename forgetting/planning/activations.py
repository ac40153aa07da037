"""Memory and operations of one forward and backward pass, from the model's own code run without numbers.

The model is built with one and with two blocks of fake tensors (shapes without storage), trained for a step under
a count of the bytes that are there at once, and what a block adds is told from the difference. Gradients are dropped as
they are made: what is left is what a pass needs beside them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from forgetting.config import TrainingConfig
    from forgetting.mitigations import Mitigation


@dataclass(frozen=True)
class Activations:
    """Of one batch on one device.

    Attributes:
        block: Bytes that each block adds to the peak.
        outside: Bytes of the rest at the peak: logits, loss and their gradients, embeddings.
        logits: Bytes of the logits once, in fp32.
        block_flops: Of each block, forward and backward.
        outside_flops: Of the rest.
    """

    block: float
    outside: float
    logits: int
    block_flops: float
    outside_flops: float


def trace(config: PretrainedConfig, training: TrainingConfig, mitigation: Mitigation) -> Activations:
    """Trace a batch of ``training.batch_size`` sequences of ``training.max_length`` tokens."""
    from forgetting.planning.shape import with_layers

    (one, one_flops), (two, two_flops) = (_pass(with_layers(config, n), training, mitigation) for n in (1, 2))
    return Activations(
        block=two - one,
        outside=2 * one - two,
        logits=4 * training.batch_size * training.max_length * int(config.vocab_size),
        block_flops=two_flops - one_flops,
        outside_flops=2 * one_flops - two_flops,
    )


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that come and go within; a view has no bytes of its own.

    Args:
        present: Tensors that are there already, and are not counted.

    Attributes:
        peak: The most that were there at once.
    """

    def __init__(self, present: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in present})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, made)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


def _pass(config: PretrainedConfig, training: TrainingConfig, mitigation: Mitigation) -> tuple[float, float]:
    """Return peak bytes beside weights and gradients, and operations."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from forgetting.planning.shape import build, trains

    def drop(parameter: Any) -> None:
        parameter.grad = None

    with torch.device("meta"):
        model = trains(build(config), mitigation, frozen_blocks=False)
    # Fake tensors of the CPU: attention takes the path that keeps no (T, T) matrix, as it does on a GPU.
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _make_fake(model)
        if training.gradient_checkpointing:
            model.activation_checkpointing_enable()
            if not model.get_input_embeddings().weight.requires_grad:
                model.enable_input_require_grads()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(drop)
        ids = torch.zeros((training.batch_size, training.max_length), dtype=torch.long)
        with Live([*model.parameters(), *model.buffers(), ids]) as live:
            _step(model, ids, training.precision == "bf16")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it counts plain products alone
            _step(model, ids, training.precision == "bf16")
    return float(live.peak), float(counter.get_total_flops())


def _make_fake(model: Any) -> None:
    """Put tensors of the fake mode in force in the place of the model's; what was one tensor stays one."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    made[id(old)] = torch.nn.Parameter(new, old.requires_grad) if held is module._parameters else new
                held[name] = None if old is None else made[id(old)]


def _step(model: Any, ids: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
    loss.backward()
