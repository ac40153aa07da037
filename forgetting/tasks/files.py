"""Reading files that people wrote: every way in which one can be unusable gives one line that says which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forgetting.errors import UsageError, did_you_mean


def shown(value: object, limit: int = 60) -> str:
    """The repr of a value, cut to ``limit`` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(error: BaseException, limit: int = 200) -> str:
    """An exception's message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


@contextmanager
def _opening(path: Path, name: str) -> Iterator[None]:
    """Say in one line why a file cannot be read."""
    try:
        yield
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings[:200]) if siblings else "; the folder does not exist either"
        raise UsageError(f"{name}: no such file{hint}") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: is a folder; give a file in it") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a name with a null character
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name}: is not the name of a file: {error}") from None


def _not_utf8(name: str, line: int, byte: int) -> UsageError:
    return UsageError(f"{name}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")


def _empty(name: str) -> UsageError:
    return UsageError(f"{name}: is empty; it needs at least one example")


def read_utf8(path: Path, where: str) -> str:
    """Read a text file; a byte order mark is dropped.

    Args:
        path: Relative paths start at the working directory.
        where: What the file is, for messages (``"task 'news', train"``).

    Raises:
        UsageError: if it is missing, a folder, unreadable, empty, or not UTF-8.
    """
    name = f"{where} {str(path)!r}"
    with _opening(path, name):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, content[: error.start].count(b"\n") + 1, content[error.start]) from None
    if not text.strip():
        raise _empty(name)
    return text


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value; leave the row out or give a number")


def own_path(text: str, where: str) -> Path:
    """Return the path that a user wrote, ``~`` resolved.

    Raises:
        UsageError: naming ``where``, if it begins with the home folder of somebody who is not known here.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{where} {text!r}: {str(error).rstrip('.').lower()}; write the path out") from None


def _lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def parse_json(text: str, where: str, *, line: int | None = None) -> Any:
    """Parse JSON, strictly: NaN and Infinity are refused, and halves of characters.

    Args:
        text: A whole document, or one line of a JSONL file.
        where: For messages.
        line: The line's number; where not given, it is taken from the parser.

    Raises:
        UsageError: with the line number, if it is not JSON, holds NaN or an escaped half of a character (a lone
            surrogate), or is nested absurdly deep.
    """
    at = f"{where}, line {line}" if line else where
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text and _lone_surrogate(value):
            raise UsageError(f"{at}: holds half of a character (\\ud800 to \\udfff alone), which no text can hold")
        return value
    except UsageError:
        raise
    except json.JSONDecodeError as error:
        at = at if line else f"{where}, line {error.lineno}"
        raise UsageError(f"{at}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UsageError(f"{at}: is nested too deep; an example is a flat object") from None
    except ValueError as error:
        raise UsageError(f"{at}: {str(error).split(';')[0]}; give text or a finite number") from None


def json_lines(path: Path, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a JSONL file line by line: ``(place, object)`` each, blank ones skipped; the place names file and line.

    Raises:
        UsageError: see :func:`read_utf8` and :func:`parse_json`; and if a line is not an object.
    """
    name = f"{where} {str(path)!r}"
    empty = True
    for number, line in enumerate(_lines(path, name), start=1):
        if not line.strip():
            continue
        empty = False
        value = parse_json(line, name, line=number)
        if not isinstance(value, dict):
            raise UsageError(f"{name}, line {number}: is {kind(value)}, not an object {{...}} per line")
        yield f"{name}, line {number}", value
    if empty:
        raise _empty(name)


def _lines(path: Path, name: str) -> Iterator[str]:
    """The lines of a text file, one in memory at a time."""
    with _opening(path, name), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise _not_utf8(name, number, error.object[error.start]) from None
