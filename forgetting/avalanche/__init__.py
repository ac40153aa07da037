"""The bridge to Avalanche: the only folder that imports it (which takes seconds, so only where it is used).

Their loop, our sequences and methods: ``as_benchmark``, ``digits_benchmark``, ``local_benchmark``, ``TextTemplate``,
``as_plugin``, ``EWCPlugin``. Our loop, their methods: ``Driver`` (the mitigation ``avalanche``), ``replay_buffer``.
Their benchmarks as our sequences: ``from_benchmark``.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_PUBLIC = {
    "ArraySequence": "arrays",
    "ArraySplit": "arrays",
    "ArrayTask": "arrays",
    "Driver": "driver",
    "EWCPlugin": "ewc",
    "MitigationPlugin": "plugin",
    "Scenario": "arrays",
    "TextTemplate": "strategy",
    "as_benchmark": "benchmarks",
    "as_plugin": "plugin",
    "avalanche_plugin": "plugins",
    "digits_benchmark": "classic",
    "digits_sequence": "classic",
    "from_benchmark": "benchmarks",
    "local_benchmark": "classic",
    "mnist_sequence": "classic",
    "replay_buffer": "buffers",
    "text_context": "plugin",
}

__all__ = [*_PUBLIC]  # every name is a string


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'forgetting.avalanche' has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers that Avalanche's dependencies miss, and nothing here needs
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
