"""A study: plan a grid of runs, launch them, resume what was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forgetting import interruption
from forgetting.checkpoint import EVERY, Interval
from forgetting.config import RunConfig, StudyConfig
from forgetting.distributed import is_main, sharded, world_size
from forgetting.errors import UsageError, did_you_mean
from forgetting.lock import StudyLock
from forgetting.mitigations import build_mitigation
from forgetting.results import ResultStore, RunRecord

if TYPE_CHECKING:
    from forgetting.launchers import Launch
    from forgetting.run import Progress, Setting


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        config: What will run.
        steps: Optimizer steps over all tasks, as far as they are known before training.
        rows_done: Rows that an earlier start already finished.
        finished: Whether there is nothing left to do.
    """

    config: RunConfig
    steps: int
    rows_done: int
    finished: bool


@dataclass(frozen=True)
class Plan:
    """What a study will do, known before any training.

    Attributes:
        runs: In the order in which they start.
        tasks: Names, in order.
        seconds: Estimate for what is left, one process, from timed training steps and scored batches.
        warnings: What the user should know (duplicates between train and test, untested settings).
    """

    runs: list[PlannedRun]
    tasks: list[str]
    seconds: float
    warnings: list[str]

    @property
    def left(self) -> list[PlannedRun]:
        """Runs that are not finished."""
        return [run for run in self.runs if not run.finished]


def _steps(config: RunConfig, sizes: list[int]) -> int:
    """Optimizer steps of a run over tasks of these training sizes; early stopping can only shorten them."""
    from math import ceil
    from tempfile import gettempdir

    from forgetting.trainer import training_arguments

    training, total = config.training, 0
    per_step = training.batch_size * training.gradient_accumulation
    mitigation = build_mitigation(config.mitigation)
    for size in sizes:
        arguments = training_arguments(training, seed=0, output=gettempdir())
        if training.epochs is not None:
            arguments.max_steps = ceil(ceil(size / per_step) * training.epochs)
        total += mitigation.training_arguments(arguments).max_steps
    return total


def _seconds_per_step(setting: Setting, config: RunConfig) -> float:
    """Time two forward and backward passes of the first task, on a copy of nothing: gradients are dropped.

    A batch that does not fit in memory is timed by as much of it as does, for training splits it.
    """
    from forgetting.out_of_memory import free, is_out_of_memory
    from forgetting.trainer import padded_batches

    first = setting.sequence.tasks[0]
    features = setting.family.encode(first, first.train[: config.training.batch_size], config.training.max_length)
    model = setting.base.model
    rows, times = len(features), list[float]()
    while len(times) < 2:
        batch = padded_batches(features[:rows], setting.base.tokenizer, rows)[0]
        begun = time.perf_counter()
        try:
            model(**{key: value.to(model.device) for key, value in batch.items()}).loss.backward()
            times.append(time.perf_counter() - begun)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise UsageError(
                    f"model {config.model!r}: one example of at most {config.training.max_length} tokens does not fit "
                    "in memory; give a smaller max_length, or gradient_checkpointing"
                ) from None
            rows = (rows + 1) // 2
        finally:
            model.zero_grad(set_to_none=True)
        if not times:
            free()
    # The optimizer and the trainer's own loop cost about a third more than the two passes.
    return 1.35 * min(times) * len(features) / rows * config.training.gradient_accumulation


def plan_study(config: StudyConfig, folder: Path | str) -> Plan:
    """Check everything that can be checked, and say what a study will do; trains nothing.

    It writes nothing but text sampled from the base model, which the runs then find.

    Raises:
        UsageError: for anything in the configuration that cannot be used.
    """
    for text in config.mitigations:
        build_mitigation(text)
    from forgetting.run import check_unchanged, prepare

    store = ResultStore(folder)
    store.check(config)
    runs = config.runs()
    setting = prepare(runs[0], store)
    for text in config.mitigations:
        mitigation = build_mitigation(text)
        if (family := setting.base.family) not in mitigation.families:
            works = f"works on {', '.join(mitigation.families)}" if mitigation.families else "its parts share no family"
            raise UsageError(f"mitigation {text!r}: {works}, and model {config.model!r} is of family {family}")
        if world_size() > 1:
            from forgetting.sharding import check_supported

            check_supported(text, mitigation, divided=sharded())
        mitigation.check_model(setting.base.model)
        mitigation.check_training(setting.base.model, config.training)
    tasks = setting.sequence.tasks
    planned = []
    for run in runs:
        record = store.load(run.run_id)
        if record is not None:
            check_unchanged(record, run, setting)
        planned.append(
            PlannedRun(
                config=run,
                steps=_steps(run, [len(task.train) for task in tasks]),
                rows_done=len(record.rows) if record else 0,
                finished=record is not None and record.status != "running",
            )
        )
    per_step = _seconds_per_step(setting, runs[0])
    per_row = setting.evaluator.estimate_seconds()
    seconds = per_row + sum(
        (1 - max(run.rows_done - 1, 0) / len(tasks)) * (run.steps * per_step + len(tasks) * per_row)
        for run in planned
        if not run.finished
    )
    warnings = [
        f"task {task.name!r}: {key.replace('_', ' ')}: {value}" for task in tasks for key, value in task.notes.items()
    ]
    if config.trust_remote_code:
        warnings.append("trust_remote_code is ON: code that came with the model will run on this machine")
    return Plan(planned, [task.name for task in tasks], seconds, warnings)


def run_studies(
    studies: Mapping[Path, StudyConfig],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    wandb_project: str | None = None,
    on_plan: Callable[[Plan, Path], None] | None = None,
    hours: float | None = None,
    checkpoint_every: str = EVERY,
    launch: Launch | None = None,
    only: str | None = None,
) -> None:
    """Run studies, or what is left of them, by one pool of processes: first seeds first.

    Args:
        studies: By the folder where their results go; a folder that holds that very study is continued.
        workers: Processes; the cores are divided among them.
        progress: Called as runs proceed.
        wandb_project: Log there too.
        on_plan: Called with each plan, before the first run.
        hours: No run is begun after so many; the studies can be resumed.
        launch: Where the runs are computed (``forgetting.launchers``); in local processes where not given. With
            ``workers=0``, Ray takes as many runs at once as its cluster has room for.
        only: The id of the one run to do; the others are left alone, and may be done by other processes.
        checkpoint_every: How often a task's training is saved in its middle: ``10 minutes``, ``50 steps``, ``never``.

    Raises:
        UsageError: before any training, for a configuration that cannot be used, a folder that holds another
            study, a run that is not in the grid, or one that another process works on.
        Interrupted: on SIGINT or SIGTERM, once the present step is finished and saved.
    """
    from forgetting.launch import launch as launch_here

    here = launch in (None, launch_here)
    if workers < (1 if here else 0):
        raise UsageError(f"workers = {workers}: needs at least 1")
    if (workers > 1 or not here) and world_size() > 1:
        raise UsageError(f"workers = {workers}: {world_size()} processes train one model together; give 1, here")
    known = [run.run_id for config in studies.values() for run in config.runs()]
    if only is not None and only not in known:
        raise UsageError(f"--only {only!r}: is no run of the study{did_you_mean(only, known)}")
    if hours is not None and not hours >= 0:
        raise UsageError(f"hours = {hours}: needs a number from 0 on")
    Interval(checkpoint_every)
    begun = time.monotonic()
    locks = [StudyLock(folder, run=only) for folder in studies] if is_main() else []
    for lock in locks:  # before what takes time, and writes
        lock.check()
    with interruption.graceful(), ExitStack() as held:
        plans = {folder: plan_study(config, folder) for folder, config in studies.items()}
        for lock in locks:
            held.enter_context(lock)
        runs = []
        for folder, config in studies.items():
            store = ResultStore.create(folder, config)
            if is_main() and only is None:
                store.clean()
            runs += [
                (config.seeds.index(run.config.seed), run.config, store)
                for run in plans[folder].left
                if only in (None, run.config.run_id)
            ]
            if on_plan is not None:
                on_plan(plans[folder], folder)
        runs.sort(key=lambda run: run[0])
        (launch or launch_here)(
            [(run, store) for _, run, store in runs],
            workers=workers,
            progress=progress,
            wandb_project=wandb_project,
            # planning is part of it
            hours=None if hours is None else max(0.0, hours - (time.monotonic() - begun) / 3600),
            checkpoint_every=checkpoint_every,
        )


def run_study(
    config: StudyConfig,
    folder: Path | str,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    wandb_project: str | None = None,
    on_plan: Callable[[Plan, Path], None] | None = None,
    hours: float | None = None,
    checkpoint_every: str = EVERY,
    launch: Launch | None = None,
    only: str | None = None,
) -> list[RunRecord]:
    """Run a study, or what is left of it; see :func:`run_studies`.

    Returns:
        All records, failed ones too, in the order of the grid.
    """
    run_studies(
        {Path(folder): config},
        workers=workers,
        progress=progress,
        wandb_project=wandb_project,
        on_plan=on_plan,
        hours=hours,
        checkpoint_every=checkpoint_every,
        launch=launch,
        only=only,
    )
    return list(ResultStore(folder).records())
