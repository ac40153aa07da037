"""Rows in an Arrow file, read where they lie: memory does not grow with their number.

A file of more than :data:`SMALL` bytes is mapped into memory, and the pages that were read are given back from time to
time; the bytes of a smaller one are held. Both are read alike, at any index, and every row is made anew, so that
whoever asks for it may change it.

Values of a row are texts, integers, lists of integers, or float32 tensors; the same keys and kinds in every row.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

from forgetting.errors import UsageError
from forgetting.tasks.lazy import ItemT, Lazy
from forgetting.tasks.task import Example

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256
"""Rows per record batch: what is in memory at once while a file is written or read through."""
SMALL = 1 << 20
"""Bytes of a file that is held in memory, not mapped: a mapping takes a file handle of the process."""
KEPT = 16
"""Rows asked for between two times that mapped pages are given back: each may bring in several times 64 KiB."""


def write_rows(rows: Iterable[dict[str, Any]], file: BinaryIO) -> None:
    """Write rows as an Arrow file of batches of :data:`ROWS` rows.

    Raises:
        TypeError: for a value of another kind than those above.
    """
    import pyarrow as pa

    source = iter(rows)
    first = next(source, None)
    schema = pa.schema([] if first is None else [_field(name, value) for name, value in first.items()])
    with pa.ipc.new_file(file, schema) as writer:
        rest = source if first is None else chain([first], source)
        while part := list(islice(rest, ROWS)):
            columns = [
                pa.array([_stored(row[field.name]) for row in part], type=field.type)  # None is not among them
                for field in schema
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _field(name: str, value: Any) -> pa.Field:
    import pyarrow as pa
    import torch

    if isinstance(value, str):
        return pa.field(name, pa.utf8(), nullable=False)
    if isinstance(value, int):
        return pa.field(name, pa.int64(), nullable=False)
    if isinstance(value, list):
        return pa.field(name, pa.list_(pa.int32()), nullable=False)
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        shape = {"shape": json.dumps(list(value.shape))}
        return pa.field(name, pa.list_(pa.float32()), nullable=False, metadata=shape)
    raise TypeError(
        f"rows: {name!r} is {type(value).__name__}; text, an integer, a list of integers or a float32 tensor"
    )


def _stored(value: Any) -> Any:
    return value.flatten().numpy() if hasattr(value, "flatten") else value


def _reader(column: pa.Array, field: pa.Field) -> Callable[[int], Any]:
    """Return what reads a column's value in a row; nothing is copied before it is asked for."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_integer(field.type):
        numbers = column.to_numpy()
        return lambda row: int(numbers[row])
    if pa.types.is_string(field.type):
        _, positions, data = column.buffers()
        ends, texts = np.frombuffer(positions, np.int32), memoryview(data or b"")
        return lambda row: str(texts[ends[row] : ends[row + 1]], "utf-8")
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    if field.metadata is None:
        return lambda row: values[offsets[row] : offsets[row + 1]].tolist()
    import torch

    shape = json.loads(field.metadata[b"shape"])
    return lambda row: torch.from_numpy(values[offsets[row] : offsets[row + 1]].copy()).reshape(shape)


class Rows(Lazy[ItemT]):
    """The rows of an Arrow file that :func:`write_rows` wrote.

    Args:
        file: Open for reading; it may be closed, and deleted, afterwards.
        make: Makes an item of a row's values.

    Raises:
        pyarrow.ArrowInvalid: if it is not whole.
    """

    def __init__(self, file: BinaryIO, make: Callable[[dict[str, Any]], ItemT]) -> None:
        import pyarrow as pa

        file.seek(0, 2)
        small = file.tell() <= SMALL
        file.seek(0)
        content: Any = file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped: mmap.mmap | None = None if small else content
        self._file = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content)))
        self._make = make
        self._asked = 0
        self._read: dict[int, dict[str, Callable[[int], Any]]] = {}
        batches = self._file.num_record_batches
        self._size = (batches - 1) * ROWS + self._file.get_batch(batches - 1).num_rows if batches else 0

    def __len__(self) -> int:
        return self._size

    def _readers(self, number: int) -> dict[str, Callable[[int], Any]]:
        batch = self._file.get_batch(number)
        return {field.name: _reader(column, field) for field, column in zip(batch.schema, batch.columns, strict=True)}

    def item(self, index: int) -> ItemT:
        """See :class:`Lazy`."""
        number, row = divmod(index, ROWS)
        readers = self._read.get(number)
        if readers is None:
            readers = self._read[number] = self._readers(number)
        self._asked += 1
        if self._asked % KEPT == 0:
            self._give_back()
        return self._make({name: read(row) for name, read in readers.items()})

    def __iter__(self) -> Iterator[ItemT]:
        for begin in range(0, self._size, ROWS):
            readers = self._readers(begin // ROWS)
            for row in range(min(ROWS, self._size - begin)):
                yield self._make({name: read(row) for name, read in readers.items()})
            self._give_back()

    def _give_back(self) -> None:
        """Mapped pages count as the process's memory until the system needs them; they are read again when needed."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def stored_examples(examples: Iterable[Example]) -> Rows[Example]:
    """Write examples of text to a temporary file without a name, and return them from there.

    Raises:
        UsageError: if the temporary folder has no room.
    """
    with tempfile.TemporaryFile() as file:
        try:
            write_rows(map(_row, examples), file)
            file.flush()
        except OSError as error:
            raise UsageError(
                f"temporary folder {tempfile.gettempdir()!r}: cannot be written: {error.strerror or error}; "
                "name one with free space in TMPDIR"
            ) from None
        return Rows(file, _example)


def _row(example: Example) -> dict[str, Any]:
    choices = "" if example.choices is None else json.dumps(example.choices)
    return {"prompt": example.prompt, "completion": example.completion, "choices": choices}


def _example(row: dict[str, Any]) -> Example:
    return Example(row["prompt"], row["completion"], _choices(row["choices"]))


@lru_cache(maxsize=256)
def _choices(text: str) -> tuple[str, ...] | None:
    """The choices, which most examples of a task share."""
    return tuple(json.loads(text)) if text else None
