"""lm-eval's tasks on data from a local folder: the task's definition stays, only where its splits come from changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.tasks._factory import TaskFactory

from forgetting.errors import UsageError

if TYPE_CHECKING:
    import datasets
    from lm_eval.tasks._index import Entry

SUFFIXES = (".jsonl", ".json", ".parquet")
LOCAL_BUILDERS = {"json", "csv", "parquet", "text", "arrow"}


class LocalDataFactory(TaskFactory):
    """Builds tasks whose splits are read from ``data_dir`` instead of the hub.

    For a task of the data set ``owner/base`` with configuration ``name``, the first that exists of
    ``<task>``, ``<base>/<name>`` and ``<name>`` (``<base>`` where there is no configuration) is taken: either a
    folder with a file per split (``test.jsonl``, ``.json``, ``.parquet``, or ``test-00000-of-00002.parquet``;
    also within its folder ``data``), or a single file ``<...>.jsonl`` that is the split the task is scored on.
    Tasks that bring their own data (a ``custom_dataset``, or data files) are left as they are.
    """

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.data_dir = data_dir

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config = super()._load_full_config(entry, overrides)
        path = config.get("dataset_path")
        if path is None or path in LOCAL_BUILDERS or config.get("custom_dataset") or "group" in config:
            return config
        return {**config, **self._local(config)}

    def _local(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in a task's configuration."""
        task = config["task"]
        scored = config.get("test_split") or config.get("validation_split") or "test"
        shots = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
        needed = [scored]
        if (config.get("num_fewshot") or 0) > 0:
            needed.append(shots or config.get("training_split") or config.get("validation_split") or scored)
        where, files = self._find(config, scored)
        for split in needed:
            if split not in files:
                found = ", ".join(sorted(files))
                raise UsageError(
                    f"data_dir {str(self.data_dir)!r}: task {task!r} needs the split {split!r}, and {where} has "
                    f"{found}; give {where / split}.jsonl (or .json, .parquet)"
                )
        # lm-eval reads every split that the definition names, whether it is used or not.
        unused = {key: None for key in ("training_split", "validation_split") if config.get(key) not in files}
        if config.get("fewshot_split") not in files:
            unused["fewshot_split"] = None
        wanted = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
        splits = {name: _read(paths) for name, paths in files.items() if name in wanted | set(needed)}
        return {**unused, "custom_dataset": lambda **_: splits, "dataset_kwargs": None}

    def _find(self, config: Mapping[str, Any], scored: str) -> tuple[Path, dict[str, list[Path]]]:
        """The data's folder, and files by split."""
        base, name = str(config["dataset_path"]).rsplit("/", 1)[-1], config.get("dataset_name")
        candidates = [config["task"], *([f"{base}/{name}", name] if name else [base])]
        for candidate in candidates:
            folder = self.data_dir / candidate
            if folder.is_dir() and (files := _split_files(folder)):
                return folder, files
            single = folder.with_name(folder.name + ".jsonl")
            if single.is_file():
                return single, {scored: [single]}
        raise UsageError(
            f"data_dir {str(self.data_dir)!r}: has no data for task {config['task']!r}; "
            f"give {self.data_dir / candidates[-1]}.jsonl, or the folder with {scored}.jsonl (.json, .parquet)"
        )


def _split_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted([*folder.iterdir(), *folder.glob("data/*")]):
        if path.suffix in SUFFIXES and path.is_file():
            files.setdefault(path.stem.split("-")[0], []).append(path)
    return files


def _read(paths: list[Path]) -> datasets.Dataset:
    """Read a split into memory (``datasets.load_dataset`` would write a copy into the user's cache)."""
    import datasets

    rows: list[dict[str, Any]] = []
    path = paths[0]
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return datasets.concatenate_datasets([datasets.Dataset(parquet.read_table(path)) for path in paths])
        for path in paths:
            text = path.read_text(encoding="utf-8")
            whole = text.lstrip().startswith("[")
            rows += json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
        return datasets.Dataset.from_list(rows)
    except Exception as error:  # of JSON, of Arrow, and of rows that are no objects or not alike
        what = "parquet" if path.suffix == ".parquet" else "JSON or JSON lines of objects with the same columns"
        problem = " ".join(str(error).split())[:200]
        raise UsageError(f"data_dir: {str(path)!r} is not {what} ({problem})") from None
