"""StudyConfig and RunConfig: what YAML files and flags are validated into before anything runs.

A run's identity is the hash of its RunConfig's canonical JSON: two runs with one hash are the same run.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from forgetting.errors import UsageError, did_you_mean

Metric = Literal["accuracy", "exact_match", "token_f1", "rouge_l", "perplexity"]


DEFAULT_SEQUENCE = "micro-5"
MAX_SEED = 4_000_000
"""A run gives each task the seed 1000 · seed + position, which must fit 32 bits."""


class Strict(BaseModel):
    """Immutable; a key that is not a field is an error, and so is an infinite number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ColumnMapping(Strict):
    """Which columns of a data set are the prompt, the completion and the choices."""

    prompt: str = "prompt"
    completion: str = "completion"
    choices: str = "choices"


class TaskConfig(Strict):
    """One task of one's own.

    Attributes:
        name: Unique within the sequence.
        format: ``jsonl`` (objects with prompt, completion and, optionally, choices), ``superni``
            (SuperNI-style JSON), ``trace`` (TRACE-style JSON), ``hub`` (a data set of the hub, or a local
            folder in its format), or ``images`` (npz files with ``images``, uint8 (N, H, W) or (N, H, W, channels),
            and integer ``labels``, (N,)).
        train: A file; for ``hub`` the data set's id or folder.
        validation, test: Files (``hub``: split names). Where there is no test, it is cut from train by
            ``split_seed``; validation is cut from what then remains of train, never from test.
        subset: Configuration name of a hub data set.
        train_split: Split name of a hub data set to train on.
        columns: Column mapping of ``jsonl`` and ``hub``.
        template: A prompt template with ``{column}`` fields, instead of ``columns.prompt``.
        labels: For ``hub`` and ``images``: the names of integer labels (in ``columns.completion``); they become the
            choices.
        choices: The answers every item allows, where they are the same for all.
        metric: How the test split is scored; by default accuracy where there are choices, else exact_match.
        max_new_tokens: Length limit of greedy generations.
        train_size, validation_size, test_size: Items kept, drawn by ``split_seed``; all where not given
            (validation: a tenth of train, at most 200).
        split_seed: Seed of every cut, so that all runs of a study see the same splits.
    """

    name: str = Field(min_length=1)
    format: Literal["jsonl", "superni", "trace", "hub", "images"] = "jsonl"
    train: str
    validation: str | None = None
    test: str | None = None
    subset: str | None = None
    train_split: str = "train"
    columns: ColumnMapping = ColumnMapping()
    template: str | None = None
    labels: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    metric: Metric | None = None
    max_new_tokens: int = Field(default=32, ge=1)
    train_size: int | None = Field(default=None, ge=1)
    validation_size: int | None = Field(default=None, ge=1)
    test_size: int | None = Field(default=None, ge=1)
    split_seed: int = Field(default=0, ge=0)


class SequenceConfig(Strict):
    """A named sequence, or a list of tasks of one's own (then ``name`` is free).

    Attributes:
        name: ``micro-5``, ``standard-cl-order1``, ``trace`` ... (``forgetting list sequences``).
        data_dir: Local folder with the data of a named sequence; without it, the hub.
        tasks: Tasks of one's own, in order; or names that select and order the named sequence's tasks.
        scenario: What is known at test time: ``task`` (which task an item is of: its own choices, its own head),
            ``domain`` (not that, and all tasks have the same labels), ``class`` (not that: any task's classes). Where
            not given: ``task`` for encoders, ``class`` for vision; other models see each item's own choices.
        train_size, validation_size, test_size, split_seed: As in TaskConfig, for every task.
    """

    name: str = Field(min_length=1)
    data_dir: str | None = None
    tasks: tuple[TaskConfig, ...] | tuple[str, ...] | None = None
    scenario: Literal["task", "domain", "class"] | None = None
    train_size: int | None = Field(default=None, ge=1)
    validation_size: int | None = Field(default=None, ge=1)
    test_size: int | None = Field(default=None, ge=1)
    split_seed: int = Field(default=0, ge=0)


class TrainingConfig(Strict):
    """How each task is trained before a mitigation changes it.

    Attributes:
        learning_rate: Peak rate of AdamW.
        steps: Optimizer steps per task; exclusive with ``epochs``.
        epochs: Passes over the task's training examples.
        batch_size: Sequences per forward pass, of all processes together where several train one model.
        gradient_accumulation: Forward passes per optimizer step.
        scheduler: Learning-rate schedule within a task.
        warmup: Share of a task's steps over which the rate rises.
        weight_decay: AdamW's.
        max_grad_norm: Gradient-norm clipping; 0 switches it off.
        max_length: Tokens per sequence; longer prompts lose their beginning, and are counted.
        packing: Concatenate examples into rows of ``max_length`` tokens, attention kept within an example.
        precision: ``bf16`` is autocast; the weights stay in fp32.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    scheduler: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    max_length: int = Field(default=256, ge=8)
    packing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, values: Any) -> Any:
        if isinstance(values, dict):
            if values.get("steps") is not None and values.get("epochs") is not None:
                raise ValueError("steps and epochs are both given; give one")
            if values.get("steps") is None and values.get("epochs") is None:
                values = {**values, "steps": 100}
        return values


class EvaluationConfig(Strict):
    """What is measured after every task, besides the tasks' own scores.

    Attributes:
        suite: Capability suites (``micro``, ``blimp``, ``standard``), lm-eval task names, or folders of
            lm-eval YAML files; their union makes the columns of G. A vision model's one column is the accuracy of
            its own head on held-out pretraining images.
        data_dir: Local folder with the suites' data; without it, the hub.
        limit: Items per lm-eval task (the first ones, as in lm-eval); all where not given.
        offset: Items per lm-eval task that are passed over first, so that tuning and reporting can use other items.
        batch_size: Sequences per forward pass.
        drift: Measure cross-entropy and KL to the base model.
        drift_tokens: At most this many tokens per text and row.
        fisher_distance: Measure ½ΔθᵀFΔθ too, with the base model's Fisher information of held-out pretraining text;
            keeps a number per weight.
    """

    suite: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = (
        "micro",
    )
    data_dir: str | None = None
    limit: int | None = Field(default=None, ge=1)
    offset: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    drift: bool = True
    drift_tokens: int = Field(default=20_000, ge=1)
    fisher_distance: bool = False


class PretrainingConfig(Strict):
    """Text like that which the base model was pretrained on: for replay, Fisher, early stopping and drift.

    Attributes:
        source: ``micro`` (the embedded world's generator), ``self`` (sampled from the base model), a text or
            JSONL file, or a hub data set with a ``text`` column; for vision, an npz file as in TaskConfig. Where not
            given: ``micro`` for the embedded models, ``self`` for any other.
        documents: Documents for replay, Fisher and early stopping.
        held_out_documents: Documents on which the change of cross-entropy is measured; disjoint from the rest.
        held_out: Further text files on which it is measured too, as columns of their own.
        max_length: Tokens per document.
        seed: Of the sampling and of the split.
    """

    source: str | None = None
    documents: int = Field(default=1000, ge=4)
    held_out_documents: int = Field(default=200, ge=1)
    held_out: tuple[str, ...] = ()
    max_length: int = Field(default=128, ge=8)
    seed: int = Field(default=0, ge=0)


def _seeds(value: Any) -> Any:
    """A number of seeds stands for the first ones."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > MAX_SEED:
        raise ValueError(f"is more than the {MAX_SEED} seeds that there are")
    return tuple(range(value))


def _sequence(value: Any) -> Any:
    if isinstance(value, dict) and "tasks" not in value:
        return {"name": DEFAULT_SEQUENCE, **value}  # a key of the sequence may be set without naming it
    return {"name": value} if isinstance(value, str) else value


class RunConfig(Strict):
    """One model, one sequence, one mitigation, one seed: everything that a run's numbers depend on."""

    model: str
    sequence: SequenceConfig
    mitigation: str
    seed: int = Field(ge=0)
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    trust_remote_code: bool = False

    @property
    def hash(self) -> str:
        """The first 12 hex digits of the SHA-256 of the canonical JSON."""
        values = self.model_dump(mode="json")
        if values["sequence"]["scenario"] is None:
            del values["sequence"]["scenario"]  # runs from before there were scenarios keep their names
        if not values["evaluation"]["fisher_distance"]:
            del values["evaluation"]["fisher_distance"]  # likewise
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def run_id(self) -> str:
        """A readable name ending in the hash: ``ewc-s0-1f00ba123456``."""
        parts = (part.split(":")[0] for part in re.split(r"\+(?!\d)", self.mitigation))
        method = "+".join(Path(part).stem for part in parts)  # a file of one's own may stand anywhere
        return f"{method}-s{self.seed}-{self.hash}"


class StudyConfig(Strict):
    """A grid: one model and sequence, mitigations × seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str = "micro"
    sequence: Annotated[SequenceConfig, BeforeValidator(_sequence)] = SequenceConfig(name=DEFAULT_SEQUENCE)
    mitigations: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
    ] = Field(default=("naive",), min_length=1)
    seeds: Annotated[
        tuple[int, ...],
        BeforeValidator(_seeds),
    ] = Field(default=(0,), min_length=1)
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _no_repeats(self) -> StudyConfig:
        for field, values in (("mitigations", self.mitigations), ("seeds", self.seeds)):
            counts = Counter[str | int](values)
            repeated = [value for value in values if counts[value] > 1]
            if repeated:
                raise ValueError(f"{field}: {repeated[0]!r} occurs twice; each once")
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise ValueError(f"seeds: {seed} is not between 0 and {MAX_SEED}")
        return self

    def runs(self) -> list[RunConfig]:
        """Expand the grid: seeds outermost, so that every mitigation has a first seed before any has two."""
        shared = self.model_dump(exclude={"name", "mitigations", "seeds"})
        return [
            RunConfig(**shared, mitigation=mitigation, seed=seed)
            for seed in self.seeds
            for mitigation in self.mitigations
        ]


def _first_error(error: ValidationError, source: str) -> UsageError:
    """Turn pydantic's report into one line: where, the value, what would be valid."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple[")))
    if first["type"] == "extra_forbidden":
        owner: Any = StudyConfig
        for part in first["loc"][:-1]:
            annotation = owner.model_fields[part].annotation if part in getattr(owner, "model_fields", {}) else None
            owner = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else owner
        if first["loc"][0] == "sequence" and "tasks" in first["loc"]:
            owner = TaskConfig
        known = owner.model_fields if hasattr(owner, "model_fields") else ()
        return UsageError(f"{source}: unknown key {where!r}{did_you_mean(str(first['loc'][-1]), known)}")
    value = reprlib.repr(first.get("input"))  # a few lines of YAML can stand for gigabytes, by repetition
    shown = value if len(value) <= 60 else value[:57] + "..."
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(f"{source}: {where + ' = ' + shown + ': ' if where else ''}{message}")


def parse_study(values: dict[str, Any], *, source: str = "study") -> StudyConfig:
    """Validate a mapping into a StudyConfig.

    Raises:
        UsageError: one line naming the key (with the nearest known one), the value, and what would be valid.
    """
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise _first_error(error, source) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a study file, safely.

    Raises:
        UsageError: if the file is missing, not text, not YAML (with the line), or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"study file {str(path)!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"study file {str(path)!r}: is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # The last ones are what PyYAML raises of a tag with a value that does not fit it (!!float "").
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split()) or type(error).__name__
        raise UsageError(f"study file {str(path)!r}{line}: not YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UsageError(
            f"study file {str(path)!r}: holds {type(values).__name__}, not a mapping of keys such as model, sequence"
        )
    return values


def write_yaml(config: StudyConfig) -> str:
    """Return the YAML of a study; reading it gives an equal StudyConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
