"""The rules: for each kind of layer, a forward that also tells how its parameters' gradients arise.

Every rule replaces a module's ``forward`` for the time of a capture. Where it can, it is a
``torch.autograd.Function`` that saves what it needs by ``save_for_backward`` (so that gradient checkpointing
recomputes it), returns the gradient of its input only, and hands the rest to the capture: the product that would
make the ordinary weight gradient is never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetting import matmul
from forgetting.fisher.uses import Product, Rows, Sums

if TYPE_CHECKING:
    from forgetting.fisher.capture import Capture

Forward = Callable[..., Any]
Backward = Callable[..., None]


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b, W (O, I)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, on_backward: Backward
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.on_backward = on_backward
        return matmul.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (g,) = grads
        ctx.on_backward(x, g)
        gx = matmul.multiply(g, weight.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None


def linear(module: nn.Module, capture: Capture) -> Forward:
    """nn.Linear (O, I), and GPT-2's Conv1D (I, O), in which inputs and output gradients change places."""
    weight, bias = capture.name(module, "weight"), capture.name(module, "bias")
    transposed = type(module).__name__ == "Conv1D"
    where = capture.module_name(module)

    def on_backward(x: Tensor, g: Tensor) -> None:
        spans = capture.examples.of(x.shape[:-1], where)
        A, G = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        if weight is not None:
            capture.record(weight, Product(A, G, spans) if transposed else Product(G, A, spans))
        if bias is not None:
            capture.record(bias, Sums(G, spans))

    def forward(input: Tensor) -> Tensor:
        capture.called(weight, bias)
        matrix = module.weight.detach()  # type: ignore[operator]
        vector = None if module.bias is None else module.bias.detach()  # type: ignore[operator]
        return _Linear.apply(input, matrix.T if transposed else matrix, vector, capture.anchor, on_backward)

    return forward


class _Embedding(torch.autograd.Function):
    """y = W[ids]."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, anchor: Tensor, on_backward: Backward) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.on_backward = on_backward
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.on_backward(*ctx.saved_tensors, *grads)
        return None, None, None, None


def embedding(module: nn.Module, capture: Capture) -> Forward:
    """nn.Embedding. Ids that a model gives once for the whole batch (positions) are expanded to all its rows."""
    assert isinstance(module, nn.Embedding)
    weight, where = capture.name(module, "weight"), capture.module_name(module)
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        raise ValueError(f"{where}: an embedding with max_norm, scale_grad_by_freq or sparse has no rule")

    def on_backward(ids: Tensor, g: Tensor) -> None:
        spans = capture.examples.of(ids.shape, where)
        if module.padding_idx is not None:
            g = g.masked_fill((ids == module.padding_idx)[..., None], 0)
        assert weight is not None
        capture.record(weight, Rows(g.reshape(-1, g.shape[-1]), ids.flatten(), spans, module.num_embeddings))

    def forward(input: Tensor) -> Tensor:
        capture.called(weight)
        rows, width = capture.examples.rows, capture.examples.width
        once = input.shape[0] == 1 if input.dim() == 2 else input.dim() == 1 and input.numel() == width
        if once and rows > 1:
            input = input.expand(rows, input.shape[-1])
        return _Embedding.apply(input, module.weight.detach(), capture.anchor, on_backward)

    return forward


class Expand(torch.autograd.Function):
    """A parameter, broadcast to the shape in which it meets the data: its gradient there is one per token."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, shape: tuple[int, ...], anchor: Tensor, on_backward: Backward) -> Tensor:
        """Expand, without copying."""
        ctx.on_backward = on_backward
        return parameter.expand(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Hand the gradient over."""
        ctx.on_backward(*grads)
        return None, None, None, None


@contextmanager
def substituted(module: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Let a module see other tensors in place of its parameters."""
    originals = {name: module._parameters.pop(name) for name in values}
    module.__dict__.update(values)
    try:
        yield
    finally:
        for name, parameter in originals.items():
            del module.__dict__[name]
            module._parameters[name] = parameter


def relative_bias(module: nn.Module, capture: Capture) -> Forward:
    """T5's relative attention bias: (1, heads, queries, keys) for the whole batch, here one per row of it."""
    table = module.relative_attention_bias
    assert isinstance(table, nn.Embedding)
    weight, where = capture.name(table, "weight"), capture.module_name(table)
    original = module.compute_bias
    assert callable(original)

    def on_backward(ids: Tensor, g: Tensor) -> None:
        rows = capture.examples.rows
        spans = capture.examples.of((rows, ids.numel()), where)
        G = g.permute(0, 2, 3, 1).reshape(-1, g.shape[1])  # (rows · queries · keys, heads)
        assert weight is not None
        capture.record(weight, Rows(G, ids.flatten().repeat(rows), spans, table.num_embeddings))

    def compute_bias(*args: Any, **kwargs: Any) -> Tensor:
        capture.called(weight)
        seen: list[Tensor] = []

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = table.register_forward_pre_hook(look)
        try:
            bias = original(*args, **kwargs).detach()
        finally:
            handle.remove()
        shape = (capture.examples.rows, *bias.shape[1:])
        return Expand.apply(bias, shape, capture.anchor, lambda g: on_backward(seen[0], g))

    return compute_bias
