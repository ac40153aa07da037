"""The rules of the norms over the last dimension: LayerNorm, RMSNorm, and those that transformers writes out."""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from forgetting.fisher.examples import compute_dtype
from forgetting.fisher.layers import Backward, Expand, Forward, substituted
from forgetting.fisher.uses import Sums

if TYPE_CHECKING:
    from forgetting.fisher.capture import Capture


class _LayerNorm(torch.autograd.Function):
    """y = n(x)∘w + b over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, anchor: Tensor, on_backward: Backward
    ) -> Tensor:
        y, mean, inverse = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.on_backward = on_backward
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        (g,) = grads
        ctx.on_backward(((x - mean) * inverse).to(g.dtype), g)
        gx, _, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, weight.shape, mean, inverse, weight, bias, [True, False, False]
        )
        return gx, None, None, None, None, None


def layer_norm(module: nn.Module, capture: Capture) -> Forward:
    """nn.LayerNorm over the last dimension."""
    assert isinstance(module, nn.LayerNorm)
    weight, bias, where = capture.name(module, "weight"), capture.name(module, "bias"), capture.module_name(module)
    if len(module.normalized_shape) != 1:
        raise ValueError(f"{where}: LayerNorm over {len(module.normalized_shape)} dimensions has no rule")

    def on_backward(normalised: Tensor, g: Tensor) -> None:
        spans = capture.examples.of(g.shape[:-1], where)
        if weight is not None:
            capture.record(weight, Sums((normalised * g).flatten(0, -2), spans))
        if bias is not None:
            capture.record(bias, Sums(g.reshape(-1, g.shape[-1]), spans))

    def forward(input: Tensor) -> Tensor:
        capture.called(weight, bias)
        vector = None if module.bias is None else module.bias.detach()
        return _LayerNorm.apply(input, module.weight.detach(), vector, module.eps, capture.anchor, on_backward)

    return forward


def scale_norm(module: nn.Module, capture: Capture, original: Forward | None = None) -> Forward:
    """The RMSNorms of transformers: any arithmetic, in which the weight (D,) meets x (..., D) elementwise."""
    weight, where = capture.name(module, "weight"), capture.module_name(module)
    compute = original or module.forward

    def on_backward(g: Tensor) -> None:
        assert weight is not None
        spans = capture.examples.of(g.shape[:-1], where)
        capture.record(weight, Sums(g.reshape(-1, g.shape[-1]), spans))

    def forward(hidden_states: Tensor) -> Tensor:
        capture.called(weight)
        wide = Expand.apply(module.weight.detach(), hidden_states.shape, capture.anchor, on_backward)  # type: ignore[operator]
        with substituted(module, {"weight": wide}):
            return compute(hidden_states)

    return forward


class _RootMeanSquareNorm(torch.autograd.Function):
    """y = w∘n, n = x / √(mean x² + ε) rounded to x's type, over the last dimension.

    Autograd makes the input's gradient of these lines in a dozen passes over the tokens. With p = g∘n, which is the
    weight's gradient per token and needed anyway, it is (g∘w − n (p·w) / D) / √(mean x² + ε): four.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, anchor: Tensor, on_backward: Backward) -> Tensor:
        wide = x.to(compute_dtype(x))
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.on_backward = on_backward
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        g, weight = grads[0].to(inverse.dtype), weight.to(inverse.dtype)
        normalised = (x.to(inverse.dtype) * inverse).to(x.dtype).to(inverse.dtype)
        per_token = g * normalised
        ctx.on_backward(per_token)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        along = (per_token @ weight).div_(x.shape[-1])[..., None]
        gx = (g * weight).addcmul_(normalised, along, value=-1).mul_(inverse)
        return gx.to(x.dtype), None, None, None, None


def _llama(self: Any, hidden_states: Any) -> Any:
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * hidden_states.to(input_dtype)


def _t5(self: Any, hidden_states: Any) -> Any:
    variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    if self.weight.dtype in [torch.float16, torch.bfloat16]:
        hidden_states = hidden_states.to(self.weight.dtype)
    return self.weight * hidden_states


def _instructions(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_consts


_WRITTEN_OUT = {_instructions(forward.__code__) for forward in (_llama, _t5)}


def is_written_out(module: nn.Module) -> bool:
    """Whether a module's ``forward`` is, instruction for instruction, that of transformers' Llama or T5.

    More than a hundred of its classes repeat it, from Mistral to Qwen; a class that does anything else is told apart.
    """
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and _instructions(code) in _WRITTEN_OUT


def written_out_norm(module: nn.Module, capture: Capture) -> Forward:
    """A norm that ``is_written_out``; in float64, which it rounds to float32 on the way, by its own arithmetic."""
    weight, where = capture.name(module, "weight"), capture.module_name(module)
    rounding = scale_norm(module, capture)

    def on_backward(per_token: Tensor) -> None:
        assert weight is not None
        capture.record(weight, Sums(per_token.flatten(0, -2), capture.examples.of(per_token.shape[:-1], where)))

    def forward(hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != module.weight.dtype or hidden_states.dtype == torch.float64:
            return rounding(hidden_states)
        capture.called(weight)
        matrix, epsilon = module.weight.detach(), module.variance_epsilon  # type: ignore[operator]
        return _RootMeanSquareNorm.apply(hidden_states, matrix, epsilon, capture.anchor, on_backward)

    return forward


def root_mean_square_norm(module: nn.Module, capture: Capture) -> Forward:
    """nn.RMSNorm, whose fused form takes no weight per token."""
    assert isinstance(module, nn.RMSNorm)

    def unfused(x: Tensor) -> Tensor:
        return functional.rms_norm(x, module.normalized_shape, None, module.eps) * module.weight

    return scale_norm(module, capture, unfused)
