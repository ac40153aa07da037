"""A model for the time of a Fisher computation: every parameter's uses are told to a sink as the backward goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forgetting.fisher.examples import Examples
from forgetting.fisher.layers import relative_bias
from forgetting.fisher.rules import rule_for
from forgetting.fisher.uses import Use

Sink = Callable[[str, list[Use]], None]


class NoRule(ValueError):
    """Parameters for which there is no rule; they are named."""


def select_parameters(model: nn.Module, patterns: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Parameters by name, a tied one once under its first name.

    Args:
        model: Any module.
        patterns: Names, or patterns with ``*`` and ``?``, of parameters whether they require gradients or not;
            ``None`` for all that require gradients.

    Raises:
        ValueError: if a pattern fits no parameter, or there is none.
    """
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    aliases = {name: names[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    if patterns is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError("diagonal_fisher: no parameter requires a gradient")
        return chosen
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in aliases):
            raise ValueError(f"parameters: {pattern!r} fits none; there are {', '.join(list(named)[:5])}, …")
    chosen_names = {first for name, first in aliases.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return {name: p for name, p in named.items() if name in chosen_names}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no key-value cache; every module's mode and configuration is put back, after an exception too."""
    modes = {module: module.training for module in model.modules()}
    # Parts of a model may have configurations of their own (T5's decoder).
    configs = {id(c): c for m in modes if (c := getattr(m, "config", None)) is not None and hasattr(c, "use_cache")}
    caches = [(config, config.use_cache) for config in configs.values()]
    model.eval()
    for config, _ in caches:
        config.use_cache = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for config, cache in caches:
            config.use_cache = cache


class Capture:
    """Patches a model's layers while it is entered.

    Of each parameter in ``parameters``, all uses in a backward pass are handed to ``sink`` together, as soon as the
    last is known. The parameters' ordinary gradients are not computed; should something use one past its layer's
    ``forward``, that is noticed, and refused.

    Args:
        model: Left as it was found: ``forward``, ``requires_grad``, mode, gradients.
        parameters: By canonical name.
        sink: Called with a name and its uses.

    Raises:
        NoRule: if a parameter has none.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], sink: Sink) -> None:
        self.model = model
        self.parameters = parameters
        self.sink = sink
        self.examples = Examples(1)
        self.anchor = torch.zeros((), requires_grad=True)
        self._names = {id(p): name for name, p in parameters.items()}
        self._module_names = {module: name for name, module in model.named_modules()}
        self._calls: Counter[str] = Counter()
        self._uses: dict[str, list[Use]] = {}
        self._backward = self._active = False
        self._undo: list[Callable[[], None]] = []
        self._check()

    def name(self, module: nn.Module, local: str) -> str | None:
        """The canonical name of a module's parameter, where it is wanted."""
        parameter = module._parameters.get(local)
        return None if parameter is None else self._names.get(id(parameter))

    def module_name(self, module: nn.Module) -> str:
        """The name under which messages speak of a module."""
        return f"layer {self._module_names[module] or type(module).__name__}"

    def called(self, *names: str | None) -> None:
        """Note a use in the forward pass (recomputations, in the backward pass, are not new uses)."""
        if not self._backward:
            self._calls.update(name for name in names if name is not None)

    def record(self, name: str, use: Use) -> None:
        """Take a use from the backward pass."""
        uses = self._uses.setdefault(name, [])
        uses.append(use)
        if len(uses) == self._calls[name]:
            del self._uses[name]
            self._tell(name, uses)

    def _tell(self, name: str, uses: list[Use]) -> None:
        """Hand over; autocast, if it is on around all this, would round the products."""
        with torch.autocast(self.anchor.device.type, enabled=False):
            self.sink(name, uses)

    def forward(self, examples: Examples, *args: Any, **inputs: Any) -> Any:
        """Run the model on a batch."""
        self.examples = examples
        self._calls.clear()
        self._active = True
        try:
            return self.model(*args, **inputs)
        finally:
            self._active = False

    def backward(self, logits: Tensor, gradient: Tensor, retain_graph: bool = False) -> None:
        """Run one backward pass."""
        self._backward = self._active = True
        try:
            if logits.requires_grad:
                torch.autograd.backward(logits, gradient, retain_graph=retain_graph)
            for name in list(self._uses):  # a use that the logits do not depend on has no gradient
                self._tell(name, self._uses.pop(name))
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:  # a sharded one is given its gradient past its hooks
                    _refuse(name)(parameter.grad)
        finally:
            self._backward = self._active = False
            self._uses.clear()

    def _owners(self) -> Iterator[tuple[nn.Module, list[str]]]:
        for module in self._module_names:
            names = [self._names[id(p)] for p in module._parameters.values() if id(p) in self._names]
            if names:
                yield module, names

    def _check(self) -> None:
        ruled: set[str | None] = set()
        kinds: dict[str, str] = {}
        for module, names in self._owners():
            rule = rule_for(module)
            ruled |= {self.name(module, local) for local in rule[1]} if rule is not None else set()
            replaced = ", whose forward was replaced" if "forward" in module.__dict__ else ""
            kinds |= {name: type(module).__name__ + replaced for name in names}
        missing = [name for name in self.parameters if name not in ruled]
        if missing:
            raise NoRule(
                "diagonal_fisher: no rule for "
                + ", ".join(f"{name} (of a {kinds[name]})" for name in missing[:5])
                + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                + "; leave them out by parameters=[…], or use backend='reference'"
            )

    def __enter__(self) -> Capture:
        self.anchor = torch.zeros((), requires_grad=True, device=next(iter(self.parameters.values())).device)
        try:
            self._enter()
        except BaseException:
            self._restore()
            raise
        return self

    def _enter(self) -> None:
        mode = ExitStack()
        mode.enter_context(evaluating(self.model))
        self._undo.append(mode.close)
        for name, parameter in self.model.named_parameters():
            self._undo.append(partial(_set_requires_grad, parameter, parameter.requires_grad))
            parameter.requires_grad_(name in self.parameters)
            if name in self.parameters:
                self._undo.append(parameter.register_hook(_refuse(name)).remove)
                self._undo.append(partial(setattr, parameter, "grad", parameter.grad))
                parameter.grad = None
        # T5's attention broadcasts its bias over the batch: the table's own forward says too little.
        tables = set()
        for module in self._module_names:
            table = getattr(module, "relative_attention_bias", None)
            if isinstance(table, nn.Embedding) and self.name(table, "weight") and hasattr(module, "compute_bias"):
                self._patch(module, "compute_bias", relative_bias(module, self))
                tables.add(table)
        for module, _ in list(self._owners()):
            rule = rule_for(module)
            if rule is not None and module not in tables:
                self._patch(module, "forward", rule[0](module, self))
        for module in self._module_names:
            # transformers checkpoints in training mode only, and this is eval mode.
            kinds = [kind.__name__ for kind in type(module).__mro__]
            if "GradientCheckpointingLayer" in kinds and getattr(module, "gradient_checkpointing", False):
                self._patch(module, "forward", _checkpointed(module.forward))

    def _patch(self, module: nn.Module, attribute: str, function: Callable[..., Any]) -> None:
        before = module.__dict__.get(attribute)
        original = getattr(module, attribute)

        def gate(*args: Any, **kwargs: Any) -> Any:
            """Between batches the model is its own: what makes the batches may call it."""
            return (function if self._active else original)(*args, **kwargs)

        module.__dict__[attribute] = gate

        def undo() -> None:
            if before is None:
                del module.__dict__[attribute]
            else:
                module.__dict__[attribute] = before

        self._undo.append(undo)

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


def _set_requires_grad(parameter: nn.Parameter, flag: bool) -> None:
    parameter.requires_grad_(flag)


def _refuse(name: str) -> Callable[[Tensor], None]:
    def hook(_: Tensor) -> None:
        raise NoRule(
            f"diagonal_fisher: parameter {name} is used outside of its layer's forward, so that its gradient there has "
            "no rule; leave it out by parameters=[…], or use backend='reference'"
        )

    return hook


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return wrapped
