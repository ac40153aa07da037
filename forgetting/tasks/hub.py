"""Tasks from a data set of the hub, or from a local folder or file in a format that ``datasets`` reads."""

from __future__ import annotations

import json
import os.path
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.config import TaskConfig
from forgetting.errors import UsageError, did_you_mean
from forgetting.hub import DAMAGED, NO_ANSWER, advice, bound_waits, drop_damaged
from forgetting.tasks.files import one_line, own_path
from forgetting.tasks.rows import stored_examples
from forgetting.tasks.streamed import StreamedSplits, kept
from forgetting.tasks.text import RawSplits, rows_to_examples

if TYPE_CHECKING:
    from datasets import Dataset

    from forgetting.tasks.task import Example

_FILES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""File endings to the builders of ``datasets``."""


def load_hub_dataset(source: str, subset: str | None, where: str) -> Mapping[str, Dataset]:
    """Return the splits, each read when it is asked for; code that comes with a data set is never run.

    They are streamed once into the cache of ``datasets``, and mapped into memory; what ``save_to_disk`` wrote is mapped
    where it lies. Where the hub is not to be asked (``HF_HUB_OFFLINE``) or does not answer, what was streamed before is
    used, and where nothing was, what ``datasets`` itself has downloaded.

    Args:
        source: Hub id, folder (data files, or what ``save_to_disk`` wrote), or a csv, json, jsonl or parquet file.
        subset: Configuration name.
        where: For messages.

    Raises:
        UsageError: if the source does not exist, has no such subset, cannot be read, or names files outside of it.
    """
    from datasets import load_dataset, load_dataset_builder, load_from_disk
    from huggingface_hub import constants

    path = own_path(source, where)
    bound_waits()
    try:
        if path.is_file():
            if path.suffix.lower() not in _FILES:
                raise UsageError(
                    f"{where} {source!r}: ends in {path.suffix!r}; known file formats: {', '.join(sorted(_FILES))}"
                )
            builder = load_dataset_builder(_FILES[path.suffix.lower()], data_files={"train": str(path)})
            return StreamedSplits(builder, str(path.absolute()), subset, f"{where} {source!r}")
        if path.is_dir() and (path / "dataset_dict.json").is_file():
            for split in json.loads((path / "dataset_dict.json").read_bytes())["splits"]:
                _check_saved(path, split, f"{where} {source!r}")
            return load_from_disk(str(path))
        if path.is_dir() and (path / "state.json").is_file():
            _check_saved(path, ".", f"{where} {source!r}")
            return {"train": load_from_disk(str(path))}
        if not path.is_dir() and source.startswith((".", "/", "~")):
            raise UsageError(f"{where} {source!r}: no such file or folder")
        place = str(path) if path.is_dir() else source
        if constants.HF_HUB_OFFLINE and not path.is_dir():
            return kept(source, subset, where) or load_dataset(place, name=subset)
        builder = load_dataset_builder(place, name=subset)
        for files in (builder.config.data_files or {}).values():
            for file in files:
                _check_inside(str(file), str(path.absolute()) if path.is_dir() else None, f"{where} {source!r}")
        return StreamedSplits(builder, str(path.absolute()) if path.is_dir() else source, subset, f"{where} {source!r}")
    except UsageError:
        raise
    except Exception as error:  # datasets raises many kinds, of several libraries
        named = f" (subset {subset!r})" if subset else ""
        here = path.is_dir() or path.is_file()
        place = "the folder" if here else "neither a folder nor a data set of the hub"
        what = None if here else advice(error)
        before = kept(source, subset, where) if what == NO_ANSWER else None
        if before is not None:
            return before
        if not here and what is None and drop_damaged("datasets", source):
            what = DAMAGED
        raise UsageError(
            f"{where} {source!r}{named}: {place} that can be loaded{f'; {what}' if what else ''}: {one_line(error)}"
        ) from None


def _check_inside(file: str, folder: str | None, where: str) -> None:
    """Refuse a file that a data set's own description places elsewhere: outside the folder, or on this machine.

    Links within a folder are followed: the hub's cache is made of them.
    """
    if folder is None:
        inside = file.startswith("hf://")
    else:
        inside = os.path.normpath(os.path.join(folder, file)).startswith(os.path.join(os.path.normpath(folder), ""))
    if not inside:
        raise UsageError(f"{where}: its description names the file {file!r}, which is not part of it; leave it out")


def _check_saved(folder: Path, split: str, where: str) -> None:
    """The same for what ``save_to_disk`` wrote: the names of splits and of Arrow files."""
    place = str(folder.absolute())
    if split != ".":
        _check_inside(split, place, where)
    for file in json.loads((folder / split / "state.json").read_bytes())["_data_files"]:
        _check_inside(os.path.join(split, file["filename"]), place, where)


def _rows(dataset: Dataset, place: str, keep: list[int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    chosen = range(len(dataset)) if keep is None else keep
    selected = dataset if keep is None else dataset.select(keep)
    try:
        for number, row in zip(chosen, selected, strict=True):
            yield f"{place}, row {number}", row
    except Exception as error:  # Arrow files are mapped, and read only here
        raise UsageError(f"{place}: cannot be read: {one_line(error)}") from None


def read_hub(config: TaskConfig) -> RawSplits:
    """Read a task of a hub data set; ``validation`` and ``test`` name its splits.

    Integer labels become texts by ``labels``, or by the names that the data set itself gives them. Where a
    test split and ``train_size`` are given, only as many training rows are read as can be needed, drawn by
    ``split_seed``.

    Raises:
        UsageError: for a source, subset, split, column or value that cannot be used.
    """
    where = f"task {config.name!r}"
    data = load_hub_dataset(config.train, config.subset, f"{where}, train")
    available = {str(name) for name in data}

    def read(field: str, split: str | None, wanted: int | None = None) -> Sequence[Example] | None:
        if split is None:
            return None
        if split not in available:
            raise UsageError(
                f"{where}: {field} {split!r} is not a split of {config.train!r}{did_you_mean(split, available)}"
            )
        dataset = data[split]
        keep = None
        if wanted is not None and wanted < len(dataset):
            keep = sorted(random.Random(f"hub-{field}-{config.split_seed}").sample(range(len(dataset)), wanted))
        feature = dataset.features.get(config.columns.completion)
        names = getattr(feature, "names", None)
        labels = config.labels or (tuple(names) if names else None)
        rows = _rows(dataset, f"{where}, {split} of {config.train!r}", keep)
        return stored_examples(rows_to_examples(rows, config, labels=labels))

    pool = None
    if config.train_size is not None and config.test is not None:
        pool = config.train_size + (0 if config.validation else config.validation_size or 200)
    train = read("train_split", config.train_split, pool)
    assert train is not None
    return RawSplits(train, read("validation", config.validation), read("test", config.test, config.test_size))
