"""Mitigations, one file each: a file in this folder is registered under its name.

A method is written ``name:option=value,option=value``, several are composed with ``+`` in the order in which
their hooks run: ``replay:fraction=0.01+ewc:strength=100``. A name that ends in ``.py`` is a file of your own.
"""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from forgetting.errors import UsageError, did_you_mean
from forgetting.mitigations.base import Compose, Mitigation, Options, RunContext

__all__ = [
    "Compose",
    "Mitigation",
    "Options",
    "RunContext",
    "build_mitigation",
    "get_mitigation",
    "mitigation_names",
    "parse_mitigation",
]


def mitigation_names() -> list[str]:
    """The registered mitigations, by name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def _the_class(module: ModuleType, source: str) -> type[Mitigation]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Mitigation) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UsageError(f"mitigation {source!r}: defines {len(found)} subclasses of Mitigation; it needs exactly one")
    return found[0]


def _load_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"forgetting_user_mitigation_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"mitigation {str(path)!r}: no such file; give a Python file that defines one Mitigation")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"mitigation {str(path)!r}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def get_mitigation(name: str) -> type[Mitigation]:
    """Return the class of a registered mitigation, or of the one in a file of your own.

    Raises:
        UsageError: if there is none of that name; the message gives the nearest.
    """
    if name.endswith(".py"):
        return _the_class(_load_file(Path(name)), name)
    if name not in mitigation_names():
        raise UsageError(f"unknown mitigation {name!r}{did_you_mean(name, mitigation_names())}")
    return _the_class(import_module(f"forgetting.mitigations.{name}"), name)


def parse_mitigation(text: str) -> list[tuple[str, dict[str, str]]]:
    """Split ``"replay:fraction=0.01+ewc"`` into ``[("replay", {"fraction": "0.01"}), ("ewc", {})]``.

    Raises:
        UsageError: if a part has no name, an option no ``=``, or an option is given twice.
    """
    parts: list[tuple[str, dict[str, str]]] = []
    # A plus between digits belongs to a number (1e+3), not to the composition.
    for part in re.split(r"\+(?!\d)", text):
        name, _, rest = part.strip().partition(":")
        if not name:
            raise UsageError(f"mitigation {text!r}: a part has no name; write name:option=value+name")
        options: dict[str, str] = {}
        for item in filter(None, (piece.strip() for piece in rest.split(","))):
            key, equals, value = item.partition("=")
            if not equals or not key or not value:
                raise UsageError(f"mitigation {text!r}: {item!r} is not option=value")
            if key in options:
                raise UsageError(f"mitigation {text!r}: option {key!r} is given twice")
            options[key] = value
        parts.append((name, options))
    return parts


def _build_part(name: str, options: dict[str, str]) -> Mitigation:
    cls = get_mitigation(name)
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"mitigation {name!r}: unknown option {key!r}{did_you_mean(key, cls.Options.model_fields)}"
            ) from None
        given = f" = {options[key]!r}" if key in options else ""
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"mitigation {name!r}: {key + given + ': ' if key else ''}{message}") from None


def build_mitigation(text: str) -> Mitigation:
    """Build what ``text`` says; several parts become a :class:`Compose`.

    Raises:
        UsageError: for an unknown name or option (with the nearest one), a value out of range, a method given
            twice, or methods that make no sense together.
    """
    parsed = parse_mitigation(text)
    names = [name for name, _ in parsed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"mitigation {text!r}: {name!r} occurs twice; each method once")
    parts = [_build_part(name, options) for name, options in parsed]
    if len(parts) == 1:
        parts[0].check(parts)
        return parts[0]
    return Compose(parts)
