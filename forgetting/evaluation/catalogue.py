"""What a suite's name stands for: lm-eval tasks, found without indexing more of lm-eval than is needed."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting.errors import UsageError
from forgetting.evaluation.untrusted import check_task_folder, sandbox_templates
from forgetting.registry import Registry

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class SuiteDefinition:
    """A named set of capabilities.

    Attributes:
        description: One line.
        folders: Where the tasks' files are: below lm-eval's ``tasks``; ``None`` stands for the embedded probes.
        names: Tasks and groups, a column each; without any, every task in the folders.
    """

    description: str
    folders: tuple[str, ...] | None
    names: tuple[str, ...] = ()

    def paths(self) -> list[Path]:
        """The folders, absolute."""
        if self.folders is None:
            from forgetting.micro.probes import probe_directory

            return [probe_directory()]
        import lm_eval

        root = Path(lm_eval.__file__).parent / "tasks"
        return [root / folder for folder in self.folders]


SUITES: Registry[SuiteDefinition] = Registry("suite")
SUITES.add("micro", SuiteDefinition("the embedded world's probes: one column per skill", folders=None))
SUITES.add("blimp", SuiteDefinition("BLiMP: 67 grammatical paradigms of minimal pairs, a column each", ("blimp",)))
SUITES.add(
    "standard",
    SuiteDefinition(
        "HellaSwag, ARC, WinoGrande, PIQA, OpenBookQA, BoolQ, LAMBADA, MMLU and GSM8K as lm-eval defines them",
        (
            "hellaswag",
            "arc",
            "winogrande",
            "piqa",
            "openbookqa",
            "super_glue/boolq",
            "lambada",
            "mmlu/default",
            "gsm8k",
        ),
        (
            "hellaswag",
            "arc_easy",
            "arc_challenge",
            "winogrande",
            "piqa",
            "openbookqa",
            "boolq",
            "lambada_openai",
            "mmlu",
            "gsm8k",
        ),
    ),
)
SUITES.add(
    "bias",
    SuiteDefinition(
        "BBQ (accuracy) and CrowS-Pairs in English (share of pairs whose stereotype is more probable; .5 is none)",
        ("bbq", "crows_pairs"),
        ("bbq", "crows_pairs_english"),
    ),
)


@dataclass(frozen=True)
class TaskGroup:
    """One column of G: a task, or a group's tasks together."""

    name: str
    tasks: tuple[Task, ...]
    version: str


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's and datasets' logging, printing and progress bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Compile each of lm-eval's templates once, where it would compile it anew for every document."""
    from lm_eval.utils import env

    env.from_string = functools.lru_cache(maxsize=256)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the class's own shows again


class Catalogue:
    """Loads tasks by name.

    Args:
        data_dir: Folder with the tasks' data (see :class:`forgetting.evaluation.local_data.LocalDataFactory`);
            without it, data come from the hub or from where the task's file says.
        trust_remote_code: Let task files in a folder of one's own name Python functions and other folders' files.
    """

    def __init__(self, data_dir: Path | None, *, trust_remote_code: bool = False) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise UsageError(f"data_dir {str(data_dir)!r}: is not a folder; give one with the suites' data")
        self.data_dir, self.trust_remote_code = data_dir, trust_remote_code
        sandbox_templates()

    def load(self, name: str) -> list[TaskGroup]:
        """Load what a name stands for.

        A suite gives its columns. A folder gives one for each task in it. A group (``mmlu``) gives one column for
        all its tasks, a tag one for each of its tasks.

        Raises:
            UsageError: if the name means nothing, or data cannot be found.
        """
        if name in SUITES:
            definition = SUITES.get(name)
            manager = self._suite_managers[name]
            return self._load(manager, list(definition.names or manager.all_subtasks))
        if Path(name).is_dir():
            if not self.trust_remote_code:
                check_task_folder(Path(name))
            manager = self._manager([Path(name)])
            if not manager.all_subtasks:
                raise UsageError(f"suite {name!r}: the folder has no lm-eval task (a YAML file with the key 'task')")
            return self._load(manager, list(manager.all_subtasks))
        if "/" in name or name.endswith((".yaml", ".yml")):
            raise UsageError(f"suite {name!r}: is not a folder; give a folder of lm-eval YAML files")
        for manager in self._suite_managers.values():
            if name in manager.all_tasks:
                return self._load(manager, [name])
        if name not in self._everything.all_tasks:
            raise UsageError(f"unknown suite or task {name!r}{self._hint(name)}")
        return self._load(self._everything, [name])

    def _hint(self, name: str) -> str:
        known = [*SUITES, *(task for m in self._suite_managers.values() for task in m.all_tasks)]
        # The nearest among thousands of names is rarely meant: those of the suites come first.
        for names in (known, self._everything.all_tasks):
            if near := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
                return f"; did you mean {near[0]!r}?"
        return f"; suites: {', '.join(SUITES)}; or an lm-eval task's name, or a folder of its YAML files"

    @cached_property
    def _suite_managers(self) -> dict[str, TaskManager]:
        return {name: self._manager(SUITES.get(name).paths()) for name in SUITES}

    @cached_property
    def _everything(self) -> TaskManager:
        return self._manager([], include_defaults=True)

    def _manager(self, folders: list[Path], include_defaults: bool = False) -> TaskManager:
        from lm_eval.tasks import TaskManager

        with quiet():
            manager = TaskManager(include_path=list(folders), include_defaults=include_defaults)
        if self.data_dir is not None:
            from forgetting.evaluation.local_data import LocalDataFactory

            manager._factory = LocalDataFactory(self.data_dir)
        return manager

    def _load(self, manager: TaskManager, names: list[str]) -> list[TaskGroup]:
        columns = []
        for name in names:
            try:
                with quiet(), compiled_templates():
                    loaded = manager.load([name])
            except UsageError:
                raise
            except Exception as error:  # the hub, the cache and a task's own code fail in many ways
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UsageError(
                    f"task {name!r}: cannot be loaded ({first}); check its file, or give data_dir, a local folder "
                    "with its data"
                ) from error
            tasks = loaded["tasks"]
            if name in loaded.get("groups", {}):
                columns.append(TaskGroup(name, tuple(tasks.values()), str(loaded["groups"][name].version)))
            else:
                columns += [TaskGroup(task, (tasks[task],), str(tasks[task].VERSION)) for task in tasks]
        for column in columns:
            _check(column)
        return columns


def _check(column: TaskGroup) -> None:
    for task in column.tasks:
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            what = "runs generated code" if getattr(task, "UNSAFE_CODE", False) else "needs images or sound"
            raise UsageError(f"task {column.name!r}: {what}; give tasks that read and write text only")
