"""ResultStore: what a study's runs leave behind, written atomically, one JSON per run (``forgetting.records``).

Layout of a study's folder::

    study.yaml                 the configuration
    runs/<run id>.json         one RunRecord
    runs/<run id>.items.json.gz  per-item outcomes of every row
    cache/                     text sampled from the base model, and tokenised data, shared by the study's runs
    checkpoints/<run id>/      what an unfinished run goes on from (``forgetting.checkpoint``)
    .lock                      who works on the study, while somebody does (``forgetting.lock``)
    summary.csv, figures/, report.html   derived by `forgetting report`
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from forgetting.checkpoint import flush
from forgetting.config import StudyConfig, parse_study, read_yaml, write_yaml
from forgetting.distributed import is_main
from forgetting.errors import UsageError
from forgetting.records import (
    CapabilityInfo,
    Cost,
    Items,
    Row,
    RunRecord,
    TaskCost,
    TaskInfo,
    TextDrift,
    read_items,
    read_record,
)

__all__ = [
    "CapabilityInfo",
    "Cost",
    "Items",
    "ResultStore",
    "Row",
    "RunRecord",
    "TaskCost",
    "TaskInfo",
    "TextDrift",
    "atomic_file",
    "read_items",
    "read_record",
    "write_atomically",
]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole, see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write within, then flush to disk and rename: a reader sees the old file or the new one, never a part.

    Raises:
        UsageError: if the folder cannot be written (read-only, full); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        if not isinstance(error, OSError):
            raise
        raise UsageError(
            f"output {str(path)!r}: cannot be written: {error.strerror or error}; "
            "what was finished before is intact, give a writable folder with free space"
        ) from None


def _first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any]:
    """Return where two configurations first differ, as a dotted key, and what each has there."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        key = next(key for key in new if old[key] != new[key])
        return _first_difference(old[key], new[key], f"{path}.{key}" if path else key)
    return path, old, new


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


class ResultStore:
    """The folder of one study.

    Args:
        folder: ``results/<study>``; made by :meth:`create`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @classmethod
    def create(cls, folder: Path | str, config: StudyConfig) -> ResultStore:
        """Make the folder, or open it where it already holds this very study.

        Raises:
            UsageError: if it holds a study with another configuration, or cannot be written.
        """
        store = cls(folder)
        store.check(config)
        if is_main():
            write_atomically(store.config_path, write_yaml(config).encode())
        return store

    def check(self, config: StudyConfig) -> None:
        """Raise UsageError if the folder holds a study with another configuration, or cannot become one."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"output {str(self.folder)!r}: is a file; give a folder")
        if not self.config_path.exists():
            return
        existing = self.config()
        if existing != config:
            changed, old, new = _first_difference(existing.model_dump(mode="json"), config.model_dump(mode="json"))
            raise UsageError(
                f"output {str(self.folder)!r}: holds another study ({changed}: {_short(old)} there, {_short(new)} "
                "here); a study is not changed once it was begun, give another --output or name"
            )

    def clean(self) -> None:
        """Delete what processes that were killed left behind; with the lock held.

        That is what they wrote under a temporary name, Ray's marks, and models of runs that ended.
        """
        left = [(self.folder, ".*.json*.tmp"), (self.folder, ".study.yaml.*.tmp"), (self.folder, ".ray-*")]
        left += [(self.folder / "runs", ".*.json*.tmp"), (self.folder / "cache", ".*.tmp")]
        for folder, pattern in left:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        for checkpoint in sorted((self.folder / "checkpoints").glob("*")):
            record = self.load(checkpoint.name)
            if record is not None and record.status != "running":
                self.drop_checkpoint(checkpoint.name)

    @classmethod
    def existing(cls, folder: Path | str) -> ResultStore:
        """Open the folder of a study that was begun.

        Raises:
            UsageError: if there is none.
        """
        store = cls(folder)
        if not store.config_path.exists():
            raise UsageError(
                f"study folder {str(folder)!r}: has no study.yaml; give a folder that `forgetting run` made"
            )
        return store

    @property
    def config_path(self) -> Path:
        """Where the study's configuration is."""
        return self.folder / "study.yaml"

    def config(self) -> StudyConfig:
        """Read the study's configuration."""
        return parse_study(read_yaml(self.config_path), source=str(self.config_path))

    def record_path(self, run_id: str) -> Path:
        """Where a run's JSON is."""
        return self.folder / "runs" / f"{run_id}.json"

    def items_path(self, run_id: str) -> Path:
        """Where a run's per-item outcomes are."""
        return self.folder / "runs" / f"{run_id}.items.json.gz"

    def checkpoint_path(self, run_id: str) -> Path:
        """Where a run's model is kept while it is unfinished."""
        return self.folder / "checkpoints" / run_id

    def load(self, run_id: str) -> RunRecord | None:
        """Read a run's record, or ``None`` where the run was never begun.

        Raises:
            UsageError: if the file is not a record of this schema.
        """
        path = self.record_path(run_id)
        return read_record(path, run_id) if path.exists() else None

    def load_items(self, run_id: str) -> Items:
        """Read a run's per-item outcomes (none where there are none).

        Raises:
            UsageError: if the file is damaged, or holds something else.
        """
        path = self.items_path(run_id)
        return read_items(path) if path.exists() else {"R": [], "G": []}

    def save(self, record: RunRecord, items: Items | None = None) -> None:
        """Write a record, and its items first, so that a record never promises items that are not there.

        Of several processes that train one model, the first writes.
        """
        if not is_main():
            return
        if items is not None:
            compressed = gzip.compress(json.dumps(items, separators=(",", ":")).encode(), mtime=0)
            write_atomically(self.items_path(record.run_id), compressed)
        write_atomically(self.record_path(record.run_id), record.model_dump_json(indent=1).encode())

    def drop_checkpoint(self, run_id: str) -> None:
        """Delete the model of a run that is finished."""
        if not is_main():
            return
        shutil.rmtree(self.checkpoint_path(run_id), ignore_errors=True)
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()

    def records(self) -> Iterator[RunRecord]:
        """Every run's record, in the order of the study's grid; runs that were never begun are left out."""
        for run in self.config().runs():
            record = self.load(run.run_id)
            if record is not None:
                yield record
