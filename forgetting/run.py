"""ONE run: a pretrained model learns a sequence of tasks under a mitigation, and is measured after each."""

from __future__ import annotations

import copy
import hashlib
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forgetting import interruption
from forgetting.checkpoint import (
    EVERY,
    Interval,
    drop_newer,
    drop_older,
    latest_row,
    latest_step,
    load_checkpoint,
    save_checkpoint,
)
from forgetting.config import RunConfig
from forgetting.distributed import (
    barrier,
    begin,
    check_shareable,
    main_first,
    own_randomness,
    sharded,
    world_size,
)
from forgetting.errors import RunFailed, UsageError
from forgetting.evaluation.evaluator import Evaluator
from forgetting.families import FAMILIES
from forgetting.mitigations import Mitigation, RunContext, build_mitigation, parse_mitigation
from forgetting.models import LoadedModel, load_model
from forgetting.out_of_memory import is_device_failure, is_out_of_memory
from forgetting.provenance import peak_memory_bytes, provenance
from forgetting.results import Cost, Items, ResultStore, RunRecord, TaskCost, TaskInfo
from forgetting.sharding import finite, shard
from forgetting.tasks.encode import ExampleDataset, pack
from forgetting.tasks.pretraining import PretrainingText
from forgetting.tasks.sequence import load_sequence
from forgetting.tasks.task import Sequence, Task
from forgetting.tasks.token_cache import TokenCache
from forgetting.tracking import Tracker
from forgetting.trainer import ContinualTrainer, training_arguments
from forgetting.training_state import TaskCheckpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

    from forgetting.families.base import Family

Progress = Callable[[str, float, str], None]
"""Called with (run id, share of the run that is done, what is being done)."""


@dataclass
class Setting:
    """What all runs of a study share: loaded, tokenised and measured once per process."""

    family: Family
    pretraining: PretrainingText
    evaluator: Evaluator
    cache_dir: Path
    another: Callable[[], PreTrainedModel] | None = None
    """Makes copies of a pretrained model that is sharded."""

    @property
    def base(self) -> LoadedModel:
        """The pretrained model, as it is trained and scored."""
        return self.family.base

    def pretrained(self) -> PreTrainedModel:
        """A copy of the pretrained model, to be trained."""
        return copy.deepcopy(self.base.model) if self.another is None else self.another()

    @property
    def sequence(self) -> Sequence:
        """What is learned."""
        return self.family.sequence

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every example and document: names of files stay when what is in them changes."""
        found = hashlib.sha256()
        for part in self._shown():
            found.update(part.encode())
        return found.hexdigest()

    def _shown(self) -> Iterator[str]:
        """The repr of (tasks, training and validation text, held-out text), piece by piece."""
        text = self.pretraining
        yield "(["
        for position, task in enumerate(self.sequence.tasks):
            yield f"{', ' if position else ''}({task.name!r}, ("
            yield from (f"{', ' if i else ''}{example!r}" for i, example in enumerate(task.train))
            yield f"{',' if len(task.train) == 1 else ''}), {task.validation!r}, {task.test!r})"
        yield f"], {text.train!r}, {text.validation!r}, {sorted(text.held_out.items())!r})"

    @cached_property
    def tokens(self) -> TokenCache:
        """The training features of the sequence's tasks."""
        return TokenCache(self.cache_dir, self.family, self.digest)


@lru_cache(maxsize=1)
def _setting(shared: str, cache_dir: Path) -> Setting:
    config = RunConfig.model_validate_json(shared)
    loaded = load_model(config.model, trust_remote_code=config.trust_remote_code)
    sequence = load_sequence(config.sequence)
    family = FAMILIES.get(loaded.family)(loaded, sequence, config.sequence.scenario)
    if config.training.packing and loaded.family != "decoder":
        raise UsageError(f"training.packing: is for decoders, and model {config.model!r} is none; leave it out")
    pretraining = family.pretraining(config.pretraining, cache_dir)
    evaluator = Evaluator(family, config.evaluation, pretraining, config.training.max_length)
    return Setting(family, pretraining, evaluator, cache_dir)


def prepare(config: RunConfig, store: ResultStore) -> Setting:
    """Load model, sequence, pretraining text and suites; runs that differ in mitigation and seed share them."""
    begin()
    shared = config.model_copy(update={"mitigation": "", "seed": 0})
    with main_first():  # which may write text sampled from the model into the cache
        setting = _setting(shared.model_dump_json(), store.folder / "cache")
    check_shareable(setting.base.model)
    if sharded() and setting.another is None:  # after what one process does alone
        setting.another = shard(setting.base)
    return setting


def release() -> None:
    """Let go of what :func:`prepare` keeps, and of its memory on a GPU."""
    _setting.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def task_seed(seed: int, position: int) -> int:
    """Seed of everything random in a run's task: each task has its own, so that a resumed run meets the same."""
    return seed * 1000 + position


def run_sequence(
    config: RunConfig,
    store: ResultStore,
    *,
    progress: Progress = lambda run_id, share, doing: None,
    tracker: Tracker | None = None,
    checkpoint_every: str = EVERY,
) -> RunRecord:
    """Run to the end, or go on from the last finished task, or from a checkpoint within a task.

    Two processes must not run the same run at the same time: :class:`forgetting.lock.StudyLock`, which the launchers
    hold, sees to that.

    Args:
        config: What to run.
        store: Where it is kept.
        progress: Told of what is done.
        tracker: Told of rows.
        checkpoint_every: How often a task's training is saved, see :class:`forgetting.checkpoint.Interval`. It
            changes no number; a mitigation that cannot go on within a task begins it again.

    Returns:
        The record, ``finished`` or ``failed`` with its reason; either way it is in the store.

    Raises:
        UsageError: for input that cannot be used, before any training.
        Interrupted: if a signal asked to stop; what was done is in the store.
    """
    interval = Interval(checkpoint_every)
    record = store.load(config.run_id)
    if record is not None and record.status != "running":
        return record
    mitigation = build_mitigation(config.mitigation)
    setting = prepare(config, store)
    if record is not None:
        check_unchanged(record, config, setting)
    tracker = tracker or Tracker()
    tasks = setting.sequence.tasks
    items: Items = {"R": [], "G": []}
    if record is None:
        record = _new_record(config, store, setting)
    else:  # items are written before the record: a kill in between leaves a row too many
        stored = store.load_items(config.run_id)
        items = {"R": stored["R"][: len(record.rows)], "G": stored["G"][: len(record.rows)]}
    barrier()  # all have read what is stored before the first writes
    tracker.start(record)

    def finish_row(evaluation: Any) -> None:
        record.rows.append(evaluation.row)
        items["R"].append(evaluation.items["R"])
        items["G"].append(evaluation.items["G"])
        record.cost.peak_memory_bytes = max(record.cost.peak_memory_bytes, peak_memory_bytes())
        store.save(record, items)
        tracker.row(record)

    try:
        if not record.rows:
            progress(config.run_id, 0.0, "base model")
            finish_row(setting.evaluator.base_row())
        begun = time.perf_counter()
        model = mitigation.setup(setting.pretrained(), run_context(config, setting))
        record.cost.setup_seconds = time.perf_counter() - begun
        checkpoints = store.checkpoint_path(config.run_id)
        done = latest_row(checkpoints, len(record.rows) - 1)
        if done:
            load_checkpoint(checkpoints, done, model, mitigation)
        barrier()
        drop_newer(checkpoints, done)
        # Rows whose weights are lost cannot be followed by others: they are measured again.
        record.rows, record.cost.tasks = record.rows[: done + 1], record.cost.tasks[:done]
        items = {"R": items["R"][: done + 1], "G": items["G"][: done + 1]}
        for position, task in enumerate(tasks[done:], start=done):

            def on_step(step: int, steps: int, position: int = position, task: Task = task) -> None:
                share = (position + 0.8 * step / steps) / len(tasks)
                progress(config.run_id, share, f"{task.name}, step {step}/{steps}")

            saving = TaskCheckpoints(checkpoints, position, interval)
            model, cost = train_task(config, setting, mitigation, model, position, on_step, checkpoints=saving)
            if not finite(model):
                raise RunFailed(f"weights are not finite after task {task.name!r}; lower the learning rate")
            record.cost.tasks.append(cost)
            record.cost.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            record.cost.stored_floats = max(record.cost.stored_floats, mitigation.stored_floats())
            progress(config.run_id, (position + 0.8) / len(tasks), f"{task.name}, evaluation")
            evaluation = setting.evaluator.evaluate(model, mitigation, task)
            save_checkpoint(checkpoints, position + 1, model, mitigation)
            finish_row(evaluation)
            drop_older(checkpoints, position + 1)
            progress(config.run_id, (position + 1) / len(tasks), f"{task.name}, done")
        record.status = "finished"
    except RunFailed as error:
        record.status, record.reason = "failed", str(error)
    except UsageError:  # a full disk, a folder that went away: the run is whole up to its last row
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_out_of_memory(error):
            problem = " ".join(str(error).split())[:200]
            raise UsageError(
                f"run {config.run_id!r}: {problem}; rows up to {len(record.rows) - 1} are stored, make room and resume"
            ) from None
        if is_device_failure(error):
            problem = " ".join(str(error).split())[:200]
            raise UsageError(
                f"run {config.run_id!r}: the accelerator failed: {problem}; rows up to {len(record.rows) - 1} are "
                "stored, resume once it works"
            ) from None
        if world_size() > 1:  # the other processes wait for this one: all must end
            raise
        # A mitigation of one's own, say: that run fails, not the study.
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, line {where.lineno}"
        record.status, record.reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())} ({place})"
    store.save(record)
    store.drop_checkpoint(config.run_id)
    tracker.finish(record)
    progress(config.run_id, 1.0, record.status)
    return record


def check_unchanged(record: RunRecord, config: RunConfig, setting: Setting) -> None:
    """Raise UsageError if a stored run saw other data, or other code of one's own, than there is now."""
    now = _sources(config, setting)
    for what, digest in record.provenance["sources"].items():
        if now.get(what) != digest:
            raise UsageError(
                f"run {record.run_id!r}: {what} changed since it was begun; "
                "give another --output or name, or delete its files in runs to run it again"
            )


def _sources(config: RunConfig, setting: Setting) -> dict[str, str]:
    """Digests of what a configuration only names."""
    digests = {"data": setting.digest}
    for name, _ in parse_mitigation(config.mitigation):
        if name.endswith(".py"):
            digests[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return digests


def _new_record(config: RunConfig, store: ResultStore, setting: Setting) -> RunRecord:
    return RunRecord(
        run_id=config.run_id,
        study=store.folder.name,
        config=config,
        config_hash=config.hash,
        provenance={**provenance(setting.pretraining.notes), "sources": _sources(config, setting)},
        tasks=[
            TaskInfo(
                name=task.name,
                metric=task.metric,
                chance=task.chance,
                n_train=len(task.train),
                n_validation=len(task.validation),
                n_test=len(task.test),
                notes=task.notes,
            )
            for task in setting.sequence.tasks
        ],
        capabilities=setting.evaluator.capabilities.capabilities(),
        cost=Cost(parameters=sum(p.numel() for p in setting.base.model.parameters())),
    )


def run_context(config: RunConfig, setting: Setting) -> RunContext:
    """Return what a run's mitigation may know."""
    family, max_length = setting.family, config.training.max_length
    text_length = min(max_length, config.pretraining.max_length)
    return RunContext(
        seed=config.seed,
        tokenizer=family.tokenizer,
        training=config.training,
        pretraining=setting.pretraining,
        tasks=setting.sequence.tasks,
        encode_task=lambda task: setting.tokens.features(task, "train", max_length),
        encode_validation=lambda task: setting.tokens.features(task, "validation", max_length),
        encode_text=lambda texts: family.encode_pretraining(texts, text_length),
        pack=(lambda features: pack(features, max_length)) if config.training.packing else (lambda features: features),
    )


def train_task(
    config: RunConfig,
    setting: Setting,
    mitigation: Mitigation,
    model: PreTrainedModel,
    position: int,
    on_step: Callable[[int, int], None],
    callbacks: Iterable[TrainerCallback] = (),
    checkpoints: TaskCheckpoints | None = None,
) -> tuple[PreTrainedModel, TaskCost]:
    """Train on one task; the mitigation's own work before and after is in the time, and that of ``callbacks``.

    With ``checkpoints`` it goes on from the newest of them that is whole, and saves more; not where a part of the
    mitigation cannot be restored within a task, nor where several processes train one model, each with random states
    and counters of its own.
    """
    if not mitigation.resumes_within_task or world_size() > 1:
        checkpoints = None
    task, seen = setting.sequence.tasks[position], setting.sequence.tasks[:position]
    begun = time.perf_counter()
    torch.manual_seed(task_seed(config.seed, position))
    context = run_context(config, setting)
    with tempfile.TemporaryDirectory() as scratch:
        model = mitigation.before_task(model, task)
        features = context.pack(context.encode_task(task))
        dataset = mitigation.train_dataset(ExampleDataset(features), task, seen)
        args = training_arguments(config.training, seed=task_seed(config.seed, position), output=scratch)
        args = mitigation.training_arguments(args)
        trainer = ContinualTrainer(
            model,
            dataset,
            mitigation,
            args,
            setting.base.tokenizer,
            callbacks=[*mitigation.callbacks(model, task), *callbacks],
            on_step=on_step,
            checkpoints=checkpoints,
        )
        if args.max_steps != 0:  # the Trainer would take 0 as no limit
            newest = latest_step(checkpoints.folder, checkpoints.row) if checkpoints else None
            with interruption.held(), own_randomness(args.seed):
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        trainer.count_everywhere()
    model = mitigation.after_task(model, task)
    tail = trainer.losses[-max(1, len(trainer.losses) // 10) :]
    cost = TaskCost(
        task=task.name,
        steps=len(trainer.losses),
        tokens=dict(trainer.tokens),
        examples=dict(trainer.examples),
        truncated=trainer.truncated,
        flops=trainer.state.total_flos,
        seconds=(checkpoints.seconds_before if checkpoints else 0.0) + time.perf_counter() - begun,
        train_loss=sum(tail) / len(tail) if tail else None,
        log=[(step, round(loss, 6)) for step, loss in enumerate(trainer.losses, start=1)],
        split_to=trainer.split_to,
    )
    return model, cost


def fine_tuned(config: RunConfig, store: ResultStore) -> tuple[Setting, PreTrainedModel]:
    """Train as a run does on its first task, without measuring or storing anything; the setting, and the model."""
    setting = prepare(config, store)
    mitigation = build_mitigation(config.mitigation)
    model = mitigation.setup(setting.pretrained(), run_context(config, setting))
    model, _ = train_task(config, setting, mitigation, model, 0, lambda step, steps: None)
    return setting, model
