"""Registries: lazy, each name once, the nearest name in the error."""

from __future__ import annotations

import pytest

from forgetting.errors import UsageError
from forgetting.registry import Registry


def test_entries_are_imported_when_asked_for() -> None:
    registry: Registry[type] = Registry("thing")
    registry.add("fraction", "fractions:Fraction")
    registry.add("broken", "no_such_module:x")
    assert list(registry) == ["broken", "fraction"] and len(registry) == 2 and "fraction" in registry
    assert registry.get("fraction").__name__ == "Fraction"
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")


def test_unknown_and_repeated_names() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("replay", 1)
    registry.add("replay", 1)
    with pytest.raises(ValueError, match="already registered"):
        registry.add("replay", 2)
    with pytest.raises(UsageError, match=r"unknown thing 'repley'; did you mean 'replay'\?"):
        registry.get("repley")
    with pytest.raises(UsageError, match="known: replay"):
        registry.get("zzz")
