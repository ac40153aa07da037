"""Typed, lazy registries: a name stands for an object that is imported when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Generic, TypeVar

from forgetting.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects, given as ``"module:attribute"`` and imported on first use.

    Args:
        kind: What is registered, for messages (``"mitigation"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, str | T] = {}

    def add(self, name: str, target: str | T) -> None:
        """Register ``target`` (an object, or ``"module:attribute"``) under ``name``; a name is given once.

        Raises:
            ValueError: if the name is taken by another target.
        """
        if self._entries.get(name, target) != target:
            raise ValueError(f"{self.kind} {name!r} is already registered")
        self._entries[name] = target

    def get(self, name: str) -> T:
        """Return what ``name`` stands for.

        Raises:
            UsageError: if nothing has that name; the message gives the nearest one.
        """
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(import_module(module), attribute)
            self._entries[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
