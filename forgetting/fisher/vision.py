"""The rules of layers that see images: convolutions, batch norms, ViT's embeddings. See ``layers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from forgetting.fisher.layers import Backward, Expand, Forward, substituted
from forgetting.fisher.uses import Convolution, Sums

if TYPE_CHECKING:
    from forgetting.fisher.capture import Capture


def _channel_sums(values: Tensor, capture: Capture, where: str) -> Sums:
    """A use per channel, of values (B, C, ...): every position is a token."""
    flat = values.flatten(2).mT.reshape(-1, values.shape[1]) if values.dim() > 2 else values
    return Sums(flat, capture.examples.of((len(values), len(flat) // len(values)), where))


class _BatchNorm(torch.autograd.Function):
    """y = (x − μ) / √(σ² + ε) ∘ w + b per channel, with running statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, anchor: Tensor,
        on_backward: Backward,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, mean, (variance + eps).rsqrt(), weight)
        ctx.on_backward = on_backward
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, mean, inverse, weight = ctx.saved_tensors
        (g,) = grads
        channel = (1, -1, *[1] * (x.dim() - 2))
        ctx.on_backward((x - mean.view(channel)) * inverse.view(channel), g)
        gx = g * (weight * inverse).view(channel) if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None, None, None, None


def batch_norm(module: nn.Module, capture: Capture) -> Forward:
    """nn.BatchNorm1d, 2d and 3d in eval mode, where examples do not mix."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    weight, bias, where = capture.name(module, "weight"), capture.name(module, "bias"), capture.module_name(module)
    if module.running_mean is None or module.running_var is None:
        raise ValueError(f"{where}: a batch norm without running statistics mixes examples and has no rule")
    mean, variance = module.running_mean, module.running_var

    def on_backward(normalised: Tensor, g: Tensor) -> None:
        for name, values in ((weight, normalised * g), (bias, g)):
            if name is not None:
                capture.record(name, _channel_sums(values, capture, where))

    def forward(input: Tensor) -> Tensor:
        capture.called(weight, bias)
        return _BatchNorm.apply(
            input, mean, variance, module.weight.detach(), module.bias.detach(), module.eps, capture.anchor, on_backward
        )

    return forward


class _Convolution(torch.autograd.Function):
    """A two-dimensional convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...], anchor: Tensor,
        on_backward: Backward,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.on_backward = how, on_backward
        return functional.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (g,) = grads
        ctx.on_backward(x, g)
        gx = conv2d_input(x.shape, weight, g, *ctx.how) if ctx.needs_input_grad[0] else None
        return gx, None, None, None, None, None


def convolution(module: nn.Module, capture: Capture) -> Forward:
    """nn.Conv2d with zero padding."""
    assert isinstance(module, nn.Conv2d)
    weight, bias, where = capture.name(module, "weight"), capture.name(module, "bias"), capture.module_name(module)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise ValueError(f"{where}: a convolution with padding {module.padding_mode!r} or by name has no rule")
    unfold = {
        "kernel_size": module.kernel_size,
        "dilation": module.dilation,
        "padding": module.padding,
        "stride": module.stride,
    }
    how = (module.stride, module.padding, module.dilation, module.groups)

    def on_backward(x: Tensor, g: Tensor) -> None:
        if weight is not None:
            spans = capture.examples.of((len(x), 1), where)
            capture.record(weight, Convolution(g, x, spans, module.weight.shape, unfold, module.groups))
        if bias is not None:
            capture.record(bias, _channel_sums(g, capture, where))

    def forward(input: Tensor) -> Tensor:
        capture.called(weight, bias)
        vector = None if module.bias is None else module.bias.detach()
        return _Convolution.apply(input, module.weight.detach(), vector, how, capture.anchor, on_backward)

    return forward


def patch_embeddings(module: nn.Module, capture: Capture) -> Forward:
    """ViT's class token, mask token and positions, (1, n, D) each: broadcast over the batch."""
    original, where = module.forward, capture.module_name(module)
    local = {name: capture.name(module, name) for name, _ in module.named_parameters(recurse=False)}
    names = {name: known for name, known in local.items() if known is not None}

    def on_backward(name: str, g: Tensor) -> None:
        spans = capture.examples.of((len(g), 1), where)
        capture.record(name, Sums(g.flatten(1), spans))

    def forward(*args: Any, **kwargs: Any) -> Any:
        capture.called(*names.values())
        wide = {}
        for name, known in names.items():
            parameter = getattr(module, name).detach()
            shape = (capture.examples.rows, *parameter.shape[1:])
            wide[name] = Expand.apply(parameter, shape, capture.anchor, lambda g, known=known: on_backward(known, g))
        with substituted(module, wide):
            return original(*args, **kwargs)

    return forward
