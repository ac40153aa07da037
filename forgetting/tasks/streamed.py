"""Data sets of the hub's format, streamed once into Arrow files: nothing is downloaded whole, or held in memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UsageError
from forgetting.hub import advice
from forgetting.results import atomic_file
from forgetting.tasks.files import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetBuilder, IterableDataset

logger = logging.getLogger(__name__)

BATCH = 1024
"""Rows of a stream that are in memory at once."""


class StreamedSplits(Mapping[str, "Dataset"]):
    """The splits of a data set, by name; one is streamed when it is first asked for, and mapped into memory.

    It is kept in a folder that is named after the version that was streamed: of the hub a commit, of local files their
    times. Where reading ends early nothing is kept, and the next time begins anew.

    Args:
        builder: Of ``datasets``.
        where: For messages.
    """

    def __init__(self, builder: DatasetBuilder, source: str, subset: str | None, where: str) -> None:
        self.builder, self.where = builder, where
        version = hashlib.sha256(str(builder.cache_dir).encode()).hexdigest()[:32]
        self.folder = versions(source, subset) / version

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self.builder.config.data_files or {}))

    def __len__(self) -> int:
        return len(self.builder.config.data_files or {})

    def __getitem__(self, split: str) -> Dataset:
        """Return a split.

        Raises:
            UsageError: if it cannot be read to its end.
        """
        path = self.folder / f"{split}.arrow"
        if not path.is_file():
            stream(self._opened(split), path, self._promised(split), f"{self.where}, split {split!r}")
        return mapped(path, self.where)

    def _opened(self, split: str) -> IterableDataset:
        try:
            return self.builder.as_streaming_dataset(split=split)
        except Exception as error:  # of several libraries
            raise _broken(f"{self.where}, split {split!r}: cannot be streamed", error) from None

    def _promised(self, split: str) -> int | None:
        """How many rows the data set's card says that there are, where it says so."""
        info = (self.builder.info.splits or {}).get(split)
        return info.num_examples if info is not None and info.num_examples else None


class KeptSplits(Mapping[str, "Dataset"]):
    """What was streamed of a data set before, for when the hub does not answer."""

    def __init__(self, folder: Path, where: str) -> None:
        self.files = {path.stem: path for path in sorted(folder.glob("*.arrow"))}
        self.where = where

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, split: str) -> Dataset:
        return mapped(self.files[split], self.where)


def kept(source: str, subset: str | None, where: str) -> KeptSplits | None:
    """Return what was streamed last of a data set; ``None`` where nothing was."""
    folders = [path for path in versions(source, subset).glob("*") if any(path.glob("*.arrow"))]
    if not folders:
        return None
    newest = max(folders, key=lambda path: path.stat().st_mtime)
    logger.warning("%s %r: is not asked of the hub; what was streamed before is used (%s)", where, source, newest)
    return KeptSplits(newest, where)


def versions(source: str, subset: str | None) -> Path:
    """The folder of a data set's versions, in the cache of ``datasets`` (HF_DATASETS_CACHE)."""
    from datasets import config

    name = hashlib.sha256(repr((source, subset)).encode()).hexdigest()[:16]
    return Path(config.HF_DATASETS_CACHE) / "forgetting" / f"{Path(source).name}-{name}"


def stream(rows: IterableDataset, path: Path, promised: int | None, where: str) -> None:
    """Write a stream to an Arrow file, whole or not at all.

    Args:
        rows: What is read.
        path: The file.
        promised: How many rows there must be; ``None`` where that is not known.
        where: For messages.

    Raises:
        UsageError: if the stream fails, or ends before it should, or the file cannot be written.
    """
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    with atomic_file(path) as file:
        writer = ArrowWriter(stream=pa.PythonFile(file, mode="w"), features=rows.features)
        count = 0
        for table in _tables(rows, where):
            writer.write_table(table)
            count += table.num_rows
        if count == 0:
            raise UsageError(f"{where}: has no rows; it needs at least one")
        if promised is not None and count != promised:
            raise UsageError(f"{where}: {count} rows came of {promised} that its card names; try again")
        writer.finalize(close_stream=False)


def _tables(rows: IterableDataset, where: str) -> Iterator[pa.Table]:
    try:
        yield from rows.with_format("arrow").iter(batch_size=BATCH)
    except Exception as error:  # of several libraries
        raise _broken(f"{where}: ended before it was read whole", error) from None


def _broken(what: str, error: Exception) -> UsageError:
    advised = advice(error)
    return UsageError(f"{what}{f'; {advised}' if advised else ''}: {one_line(error)}")


def mapped(path: Path, where: str) -> Any:
    """Open a file that :func:`stream` wrote; where it was damaged since, delete it.

    Raises:
        UsageError: if it was.
    """
    from datasets import Dataset

    try:
        return Dataset.from_file(str(path))
    except Exception as error:  # of pyarrow
        path.unlink(missing_ok=True)
        raise UsageError(f"{where}: {str(path)!r} was damaged, and is deleted; try again: {one_line(error)}") from None
