"""What a family of models does in its own way: encode, score, and measure what the base model could do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from forgetting.tasks.pretraining import PretrainingText, load_pretraining
from forgetting.tasks.scenario import Scenario, with_scenario
from forgetting.tasks.task import Example, Image
from forgetting.tasks.task import Sequence as TaskSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forgetting.config import EvaluationConfig, PretrainingConfig
    from forgetting.evaluation.scores import TaskScore
    from forgetting.evaluation.suite import CapabilityScore
    from forgetting.models import LoadedModel
    from forgetting.results import CapabilityInfo, TextDrift
    from forgetting.tasks.encode import Feature
    from forgetting.tasks.task import Task


class Scorer(Protocol):
    """Scores one task's test split."""

    def score(self, model: PreTrainedModel) -> TaskScore:
        """Return the score of a model, which is left in the mode it was in."""

    def after(self, text: str) -> Scorer:
        """Return a scorer with ``text`` before every prompt."""


class Capabilities(Protocol):
    """Scores the columns of G."""

    def capabilities(self) -> list[CapabilityInfo]:
        """The columns."""

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
    ) -> Mapping[str, CapabilityScore]:
        """Return the scores of a model."""


class Drift(Protocol):
    """Measures the drift of a model from the base model."""

    def measure(self, model: PreTrainedModel, task: Sequence[Example] = ()) -> dict[str, TextDrift]:
        """Return a drift per text, and on the inputs and answers of a task where the family can measure it."""


class Family(ABC):
    """A family, for one base model and one sequence.

    Args:
        loaded: The base model as it was loaded.
        sequence: What it learns.
        scenario: What is known at test time (``forgetting.tasks.scenario``); the family's default where not given.

    Attributes:
        base: The base model as it is trained and scored: with heads for the tasks, where the family needs them.
        sequence: The sequence, each test item with the choices that the scenario leaves open.

    Raises:
        UsageError: if the sequence is not for such a model, or the scenario not for such a sequence.
    """

    scenario: ClassVar[Scenario | None] = None
    """The default; ``None`` leaves each item its own choices."""
    reads: ClassVar[str] = "text"
    cannot_sample: ClassVar[str] = ""
    """Why such a model cannot write its own pretraining text, where it cannot; ``{}`` is its name."""

    def __init__(self, loaded: LoadedModel, sequence: TaskSequence, scenario: Scenario | None = None) -> None:
        from forgetting.errors import UsageError

        for task in sequence.tasks:
            found = "images" if isinstance(task.train[0].prompt, Image) else "text"
            if found != self.reads:
                raise UsageError(
                    f"sequence {sequence.name!r}: task {task.name!r} is of {found}, and model {loaded.name!r} reads "
                    f"{self.reads}; see `forgetting list sequences` and `forgetting list models`"
                )
        self.scenario_used = scenario or self.scenario
        self.sequence = with_scenario(sequence, self.scenario_used)
        self.base = self.prepared(loaded)

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer (or image processor)."""
        return self.base.tokenizer

    @abstractmethod
    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """Return the model as it is trained."""

    def pretraining(self, config: PretrainingConfig, cache_dir: Path | None) -> PretrainingText:
        """Load what the base model was pretrained on, or the like.

        Raises:
            UsageError: if the model is to sample it and cannot.
        """
        from forgetting.errors import UsageError
        from forgetting.models import EMBEDDED

        samples = config.source == "self" or (config.source is None and self.base.name not in EMBEDDED)
        if samples and self.cannot_sample:
            raise UsageError(
                f"pretraining.source: 'self' samples text{self.cannot_sample.format(repr(self.base.name))}; "
                "give a text or JSONL file, or a hub data set"
            )
        return load_pretraining(config, self.base.name, self.base.model, self.tokenizer, cache_dir)

    @abstractmethod
    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Feature]:
        """Return training features of a task's examples."""

    @abstractmethod
    def encode_pretraining(self, documents: Sequence[Any], max_length: int) -> list[Feature]:
        """Return training features of documents of the pretraining data."""

    @abstractmethod
    def scorer(self, task: Task, batch_size: int, max_length: int) -> Scorer:
        """Return a scorer of a task's test split."""

    @abstractmethod
    def capabilities(self, config: EvaluationConfig, pretraining: PretrainingText) -> Capabilities:
        """Return what scores the columns of G."""

    @abstractmethod
    def drift(self, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> Drift:
        """Return what measures drift on the held-out pretraining data."""
