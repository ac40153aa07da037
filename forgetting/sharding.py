"""One model whose weights are divided among processes: FSDP2, ``torch.distributed.fsdp.fully_shard``.

Every weight is a DTensor of which each process holds some rows. A block's weights are gathered for its passes alone;
what methods keep (anchors, Fisher information) is divided as the weights are. The layout is accelerate's
(``fsdp_version: 2``, ``TRANSFORMER_BASED_WRAP``); it is applied here, before the first Fisher information is computed,
and not by accelerate, which would do so when training begins, and on GPUs alone.

A process reads the whole model into its own memory once, and then lets go of what is another's.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetting.distributed import rank, total, world_size
from forgetting.errors import UsageError
from forgetting.fisher.shards import local, mesh_of
from forgetting.mitigations.base import Compose, Mitigation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetting.models import LoadedModel


@cache
def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size(),))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: of the classes that accelerate's setting names, or the model does.

    Raises:
        UsageError: if there are none, so that the model would be gathered whole.
    """
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    kinds = named.split(",") if named else sorted(getattr(model, "_no_split_modules", None) or [])
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise UsageError(
            f"accelerate: FSDP_TRANSFORMER_CLS_TO_WRAP = {named!r}: model {type(model).__name__} has no such module; "
            "give the class of its blocks"
        )
    return found


def _divide(model: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard
    from transformers.distributed.configuration_utils import DistributedConfig

    for module in (*_blocks(model), model):
        fully_shard(module, mesh=_mesh(), reshard_after_forward=True)
    # As transformers marks a model that it sharded as it read it: its Trainer then neither wraps nor shards it again.
    model._is_distributed_loading_by_transformers = True  # type: ignore[assignment]
    model.config.distributed_config = DistributedConfig(fsdp_size=world_size())  # type: ignore[union-attr]


def shard(loaded: LoadedModel) -> Callable[[], PreTrainedModel]:
    """Divide a model's weights among the processes, in place.

    Returns:
        A function that makes a model like it, with copies of the weights that it has then, divided in the same way.

    Raises:
        UsageError: if it is no decoder, or the layout does not fit it.
    """
    model = loaded.model
    if loaded.family != "decoder":
        raise UsageError(f"model {loaded.name!r}: FSDP is for decoders, and it is of family {loaded.family}; use DDP")
    _blocks(model)
    # fully_shard'ed modules refuse to be copied, so the model's form is copied before, without its weights.
    bare = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    form = copy.deepcopy(model, dict(bare))
    _divide(model)

    def another() -> PreTrainedModel:
        made = copy.deepcopy(form)
        _divide(made)
        shards: dict[int, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, own = name.rpartition(".")
            value = shards.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            made.get_submodule(owner).register_parameter(own, value)
        return made

    return another


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are divided."""
    return mesh_of(model.parameters()) is not None


def everywhere(model: nn.Module, sums: Tensor) -> Tensor:
    """Of sums over the weights that a process holds of a model, those over all weights; every process must call it."""
    return total(sums) if is_sharded(model) else sums


def finite(model: nn.Module) -> bool:
    """Whether all weights are finite; every process must call it."""
    bad = sum(int(not torch.isfinite(local(parameter)).all()) for parameter in model.parameters())
    return not int(everywhere(model, torch.tensor(bad)))


def check_supported(text: str, mitigation: Mitigation, *, divided: bool) -> None:
    """Raise UsageError, naming the part, if a mitigation cannot be trained by several processes as they are started.

    Args:
        text: As it is written.
        mitigation: What it says.
        divided: Whether the processes divide the model's weights (FSDP2) or each has all of them (DDP).
    """
    parts = mitigation.parts if isinstance(mitigation, Compose) else [mitigation]
    for part in parts:
        name = type(part).__module__.rpartition(".")[2]
        if part.processes == "one":
            raise UsageError(f"mitigation {text!r}: {name} trains in one process only, and {world_size()} were started")
        if divided and part.processes != "sharded":
            raise UsageError(
                f"mitigation {text!r}: {name} as it is set needs whole weights, and FSDP divides them among "
                f"{world_size()} processes; launch without FSDP"
            )


SHAPES = "shapes"


def held(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What this process holds of tensors by name, and, for a file's metadata, the whole shapes of the divided ones."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if local(tensor) is not tensor}
    return {name: local(tensor) for name, tensor in tensors.items()}, {SHAPES: json.dumps(shapes)}


def together(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, Tensor]:
    """Undo :func:`held`."""
    from torch.distributed.tensor import DTensor, Shard

    shapes: dict[str, list[int]] = json.loads(about[SHAPES])
    found = dict(tensors)
    for name, shape in shapes.items():
        whole = torch.empty(shape, device="meta")
        found[name] = DTensor.from_local(
            tensors[name].to(_mesh().device_type), _mesh(), [Shard(0)], shape=whole.shape, stride=whole.stride()
        )
    return found


def part_name(stem: str) -> str:
    """The name of this process's file of something that is divided."""
    return f"{stem}-{rank()}-of-{world_size()}.safetensors"
