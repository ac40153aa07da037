"""A model's weights as a dictionary: kept, mixed, put back, or in the model for the time of a scoring alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from forgetting.mitigations import Mitigation

Weights = dict[str, "Tensor"]
"""Values by name: of parameters, a tied one once, and of batch norms' running statistics, which training moves too."""


def _statistics(model: nn.Module) -> Weights:
    ends = (".running_mean", ".running_var")
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith(ends)}


def kept(model: nn.Module) -> Weights:
    """Return copies of what training moves: the weights that are trained, and running statistics."""
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return trained | {name: buffer.clone() for name, buffer in _statistics(model).items()}


def present(model: nn.Module, names: Iterable[str]) -> Weights:
    """Return the model's present values of these names, in their order: not copies."""
    values = {name: p.data for name, p in model.named_parameters()} | _statistics(model)
    return {name: values[name] for name in names}


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Whatever passes through the model within, its batch norms' running statistics are as before afterwards."""
    statistics = _statistics(model)
    before = {name: buffer.clone() for name, buffer in statistics.items()}
    try:
        yield
    finally:
        for name, buffer in statistics.items():
            buffer.copy_(before[name])


def between(start: Weights, end: Weights, weight: float) -> Weights:
    """Return (1 − weight) start + weight end; exactly an end where the weight is 0 or 1, or where both are equal."""
    import torch

    return dict(
        zip(start, torch._foreach_lerp(list(start.values()), [end[name] for name in start], weight), strict=True)
    )


def exchange(model: nn.Module, weights: Weights) -> None:
    """Give the model these weights, and the dictionary those that the model had: nothing is copied or rounded."""
    for name, tensor in (*model.named_parameters(), *_statistics(model).items()):
        if name in weights:
            weights[name], tensor.data = tensor.data, weights[name]


@contextmanager
def swapped(model: nn.Module, make: Callable[[], Weights]) -> Iterator[None]:
    """Score within: the model has the weights that ``make`` returns, made on entry; then its own again, bit for bit."""
    weights = make()
    exchange(model, weights)
    try:
        yield
    finally:
        exchange(model, weights)


def size(*weights: Weights) -> int:
    """Numbers in them."""
    return sum(value.numel() for part in weights for value in part.values())


def with_prefix(prefix: str, weights: Weights) -> Weights:
    """Name them ``<prefix>.<name>``, for a ``state_dict``."""
    return {f"{prefix}.{name}": value for name, value in weights.items()}


def under_prefix(prefix: str, state: Weights) -> Weights:
    """Return what :func:`with_prefix` named."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def check_known(method: str, model: nn.Module, weights: Weights) -> None:
    """Raise UsageError if something is trained of which ``weights``, kept by ``method``, have no earlier value."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in weights:
            raise UsageError(
                f"mitigation {method!r}: {name} is trained, and came after the pretrained weights were kept; "
                f"write {method!r} after the method that adds it"
            )


def refuse_adapters(method: str, chain: Sequence[Mitigation]) -> None:
    """Raise UsageError if weights would be mixed whose product is what counts: an adapter's."""
    from forgetting.adapters import adapters_in

    for part in adapters_in(chain):
        raise UsageError(
            f"mitigation {method!r}: mixes weights, and mixing the factors of {part.name!r} does not mix their "
            "product; leave one of the two out"
        )


def check_adapters_first(method: str, chain: Sequence[Mitigation]) -> None:
    """Raise UsageError if an adapter comes after ``method`` kept the pretrained state, and changes its names."""
    from forgetting.adapters import adapters_in

    names = [type(part).__module__.rpartition(".")[2] for part in chain]
    for part in adapters_in(chain[names.index(method) :]):
        raise UsageError(
            f"mitigation {method!r}: stands before {part.name!r}, which it would not reset; write {part.name}+{method}"
        )


def stand_last(method: str, chain: Sequence[Mitigation]) -> None:
    """Raise UsageError if another part's ``after_task`` would see the weights that are scored, not those trained on."""
    from forgetting.mitigations.base import Mitigation

    names = [type(part).__module__.rpartition(".")[2] for part in chain]
    for name, part in zip(names[names.index(method) + 1 :], chain[names.index(method) + 1 :], strict=True):
        if type(part).after_task is not Mitigation.after_task:
            raise UsageError(
                f"mitigation {method!r}: stands before {name!r}, which would take the weights that are scored for "
                f"those that training goes on from; write {name}+{method}"
            )


def curve_points(value: Any) -> Any:
    """Validate an option that lists numbers: ``0.1|0.5``, or ``none``."""
    if isinstance(value, str):
        return () if value == "none" else tuple(value.split("|"))
    return value
