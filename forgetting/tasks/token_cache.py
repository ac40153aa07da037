"""Training features, tokenised once: kept in a folder by what they were made of, and read from there by every run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forgetting.tasks.rows import ROWS, Rows, write_rows

if TYPE_CHECKING:
    from forgetting.families.base import Family
    from forgetting.tasks.encode import Feature
    from forgetting.tasks.task import Example, Task

Split = Literal["train", "validation"]


class TokenCache:
    """The features of a family's tasks, as Arrow files in a folder.

    A file's name is a digest of all that its content depends on: the data with their templates filled in, the
    tokenizer (or image processor), the family and scenario, the model's configuration, the length, and the code and
    the libraries that tokenise. Files are written under another name, flushed and renamed; one that is not whole is
    written again.

    Args:
        folder: Where.
        family: Encodes.
        data: Digest of the data: of every example of every task, as the family has them.
    """

    def __init__(self, folder: Path, family: Family, data: str) -> None:
        self.folder, self.family, self.data = folder, family, data
        self._found: dict[tuple[str, Split, int], tuple[Task, Rows[Feature]]] = {}

    def features(self, task: Task, split: Split, max_length: int) -> Sequence[Feature]:
        """Return the features of a task's split.

        Raises:
            UsageError: if an example cannot be encoded, or the folder not be written.
        """
        key = (task.name, split, max_length)
        known = self._found.get(key)
        if known is None or known[0] is not task:
            known = self._found[key] = task, self._file(task, split, max_length)
        return known[1]

    def _file(self, task: Task, split: Split, max_length: int) -> Rows[Feature]:
        from pyarrow import ArrowInvalid

        from forgetting.results import atomic_file

        of = json.dumps([self._encoder, task.name, split, max_length])
        path = self.folder / f"tokens-{hashlib.sha256(of.encode()).hexdigest()[:32]}.arrow"
        examples: Sequence[Example] = getattr(task, split)
        try:
            with open(path, "rb") as file:
                found: Rows[Feature] = Rows(file, dict)
            if len(found) == len(examples):
                return found
        except (FileNotFoundError, ArrowInvalid):
            pass  # not tokenised yet, or cut short by something other than our atomic write
        with atomic_file(path) as file:
            write_rows(self._encoded(task, examples, max_length), file)
        with open(path, "rb") as file:
            return Rows(file, dict)

    def _encoded(self, task: Task, examples: Sequence[Example], max_length: int) -> Iterator[Feature]:
        rest = iter(examples)
        while part := list(islice(rest, ROWS)):
            yield from self.family.encode(task, part, max_length)

    @cached_property
    def _encoder(self) -> str:
        """Digest of everything but the task, the split and the length."""
        family = self.family
        with tempfile.TemporaryDirectory() as folder:
            family.tokenizer.save_pretrained(folder)
            files = {str(path.relative_to(folder)): _digest(path) for path in Path(folder).rglob("*") if path.is_file()}
        about: dict[str, Any] = {
            "data": self.data,
            "tokenizer": [type(family.tokenizer).__name__, sorted(files.items())],
            "family": [type(family).__name__, family.scenario_used],
            "model": family.base.model.config.to_dict(),
            "code": _code(),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _code() -> list[str]:
    """Digests of the modules that make features, and versions of the libraries that do."""
    package = Path(__file__).resolve().parents[1]
    modules = [package / "evaluation" / "encoding.py", *(package / "families").glob("*.py")]
    modules += [package / "tasks" / name for name in ("encode.py", "rows.py", "task.py", "token_cache.py")]
    libraries = ("transformers", "tokenizers", "torch", "pillow")
    return [*(_digest(path) for path in sorted(modules)), *(f"{name} {version(name)}" for name in libraries)]
