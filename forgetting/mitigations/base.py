"""The mitigation interface: one class, hooks in the order in which they run, each optional.

A mitigation is never told which task is being tested. What came before task 1 is task 0: the pretrained state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

from forgetting.errors import UsageError
from forgetting.weights import under_prefix, with_prefix

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from forgetting.config import TrainingConfig
    from forgetting.models import ModelFamily
    from forgetting.tasks.pretraining import PretrainingText
    from forgetting.tasks.task import Task

    Features = Sequence[dict[str, Any]]


class Options(BaseModel):
    """Options of a mitigation: typed fields with a description each; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class RunContext:
    """What a mitigation may know about its run.

    Attributes:
        seed: Of the run; a mitigation that draws at random derives its own generator from it.
        tokenizer: The model's.
        training: How tasks are trained.
        pretraining: Text like the base model's pretraining data, split into train, validation and held-out;
            the held-out part is for measuring only.
        tasks: Every task of the run, in order: for references (joint training); a mitigation that looks ahead is one.
        encode_task: Training features of a task's training split (``forgetting.tasks.encode``).
        encode_validation: The same of its validation split.
        encode_text: Features of documents, every token carrying loss.
        pack: Rows for training: the features themselves, or packed where the training says so.
    """

    seed: int
    tokenizer: PreTrainedTokenizerBase
    training: TrainingConfig
    pretraining: PretrainingText
    tasks: tuple[Task, ...]
    encode_task: Callable[[Task], Features]
    encode_validation: Callable[[Task], Features]
    encode_text: Callable[[Sequence[str]], Features]
    pack: Callable[[Features], Features]


OptionsT = TypeVar("OptionsT", bound=Options)

Processes = Literal["one", "replicated", "sharded"]
"""How many processes may train one model, each with what of it; see :class:`Mitigation`."""

STEP_HOOKS = ("callbacks", "loss", "after_backward", "after_step")
"""Hooks that run at every step, or make what does."""


class Mitigation(Generic[OptionsT]):
    """Base of all mitigations; as it stands, it does nothing (naive fine-tuning).

    Subclass it in one file named after the method, set the class attributes, override the hooks you need.

    Attributes:
        summary: One line: what it does.
        paper: Reference; equation: what is computed, in one line.
        cost: Extra forward passes per step and floats stored, in words.
        Options: Its options; every field has a description.
        null: Options under which a run equals naive bit for bit, or ``None`` where there are none.
        reference: Whether it is a bound to compare with, which a learner of one task after the other cannot reach.
        replaces_weights: Whether it gives the model other weights between two tasks; one part of a run at most does.
        task_oracle: Whether it is told which task is tested (``scoring``, ``demonstrations``), as no other method is.
        starts: Where ``setup`` leaves the model's function: at the base model's bit for bit, at it up to rounding (a
            weight in parts that are added up), or elsewhere (a prompt before every input). Row 0 is the base's always.
        families: The families of models (``forgetting.families``) that it works on.
        processes: How one model may be trained by several processes: ``one`` if they would not do what one process
            does (``loss`` depends on more than the batch, on a minibatch that it draws); ``replicated`` if each must
            have all weights (DDP); ``sharded`` if each may hold a part of every weight too (FSDP2), which a class says
            that keeps to ``forgetting.fisher.shards.local`` where it changes weights or gradients. What is not
            possible is refused before training.
        resumes_within_task: Whether a killed task goes on from its middle, bit for bit; else it starts again from its
            beginning. A class that overrides a hook of a step (``loss``, ``after_backward``, ``after_step``,
            ``callbacks``) says so itself, and else does not: all that these gather for later steps must be in
            ``task_state``, and an item of its data set must depend on nothing but the index.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    cost: ClassVar[str] = "none"
    Options: ClassVar[type[Options]] = Options
    null: ClassVar[dict[str, Any] | None] = None
    reference: ClassVar[bool] = False
    replaces_weights: ClassVar[bool] = False
    task_oracle: ClassVar[bool] = False
    starts: ClassVar[Literal["base", "rounded", "elsewhere"]] = "base"
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder", "encoder", "encoder_decoder", "vision")
    processes: ClassVar[Processes] = "replicated"
    resumes_within_task: ClassVar[bool] = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = vars(cls)
        if "resumes_within_task" not in own and any(hook in own for hook in STEP_HOOKS):
            cls.resumes_within_task = False

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def check(self, chain: Sequence[Mitigation]) -> None:
        """Raise UsageError if this method makes no sense among ``chain`` (all parts in order, itself included)."""

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise UsageError if the options do not fit the pretrained model; called before anything is trained."""

    def check_training(self, model: PreTrainedModel, training: TrainingConfig) -> None:
        """Raise UsageError if the pretrained model, trained so, leaves no place for the method; called there too."""

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin a run with the pretrained model; may wrap it. Called once, before row 0's weights change."""
        self.context = context
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Prepare for a task; may wrap the model."""
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """Change what a task is trained on. ``seen`` are the tasks before it, in order."""
        return dataset

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Change how a task is trained (learning rate, steps); ``max_steps=0`` trains nothing."""
        return args

    def learning_rates(self, model: PreTrainedModel) -> dict[str, float]:
        """Multiples of the learning rate by parameter name; 1 where a name is left out."""
        return {}

    def callbacks(self, model: PreTrainedModel, task: Task) -> list[TrainerCallback]:
        """Callbacks for the task's trainer (early stopping)."""
        return []

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """Add to the training loss (distillation); ``loss`` is a scalar, the batch's mean in nats per token.

        ``batch`` is what the model was given, and ``weights`` (B, T) where the features have any.
        What is added is a mean too: the trainer weighs a batch by its tokens where several make one step.
        """
        return loss

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Change the accumulated gradients, before they are clipped; once per optimizer step.

        ``again`` computes them anew at the present weights, from the step's batches and every part's ``loss``; what
        other parts did to the gradients after the backward pass is then gone. Dropout draws what it drew the first
        time, and the global generator stands afterwards where it stood before.
        """

    @property
    def changes_gradients(self) -> bool:
        """Whether :meth:`after_backward` does: a part that computes them ``again`` must then stand before this one."""
        return type(self).after_backward is not Mitigation.after_backward

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Change the weights after the optimizer's step, taken with ``learning_rate``."""

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Consolidate what was learned (Fisher, merge); may replace the model."""
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """Other states in which to score the model (``adapter_off``), as contexts to score within."""
        return {}

    def scoring(self, model: PreTrainedModel, task: Task) -> AbstractContextManager:
        """The state in which ``task``'s test split is scored (its own adapter); for a ``task_oracle`` only."""
        return nullcontext()

    def demonstrations(self, task: Task) -> str:
        """Text put before every prompt of ``task``'s test split (examples in context); for a ``task_oracle`` only."""
        return ""

    def stored_floats(self) -> int:
        """Numbers kept for later tasks, beyond the model's own parameters."""
        return 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What must survive an interruption between tasks, beyond the model's weights."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; called after :meth:`setup`."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, and was given {sorted(state)}")

    def task_state(self) -> dict[str, torch.Tensor]:
        """What was gathered since the task began, and the next step needs; see ``resumes_within_task``."""
        return {}

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`task_state` gave; called after ``before_task``, ``train_dataset`` and ``callbacks``."""
        if state:
            raise ValueError(f"{type(self).__name__} gathers nothing within a task, and was given {sorted(state)}")


class Compose(Mitigation[Options]):
    """Several mitigations as one: every hook runs over the parts in the order written.

    State is kept per part under ``<position>.``, so that two parts never share a key.
    """

    def __init__(self, parts: Sequence[Mitigation]) -> None:
        super().__init__(Options())
        self.parts = list(parts)
        self.reference = any(part.reference for part in self.parts)  # type: ignore[misc]  # the whole is what a part is
        self.task_oracle = any(part.task_oracle for part in self.parts)  # type: ignore[misc]
        self.processes = min((part.processes for part in self.parts), key=get_args(Processes).index)  # type: ignore[misc]
        self.resumes_within_task = all(part.resumes_within_task for part in self.parts)  # type: ignore[misc]
        replacing = [type(part).__module__.rpartition(".")[2] for part in self.parts if part.replaces_weights]
        if len(replacing) > 1:
            raise UsageError(
                f"mitigations {replacing[0]!r} and {replacing[1]!r}: each gives the model other weights between two "
                "tasks; leave one of them out"
            )
        self.families = tuple(f for f in Mitigation.families if all(f in part.families for part in self.parts))  # type: ignore[misc]
        order = ("base", "rounded", "elsewhere")
        self.starts = max((part.starts for part in self.parts), key=order.index)  # type: ignore[misc]
        for part in self.parts:
            part.check(self.parts)

    def check_model(self, model: PreTrainedModel) -> None:
        """See Mitigation."""
        for part in self.parts:
            part.check_model(model)

    def check_training(self, model: PreTrainedModel, training: TrainingConfig) -> None:
        """See Mitigation."""
        for part in self.parts:
            part.check_training(model, training)

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """See Mitigation."""
        super().setup(model, context)
        for part in self.parts:
            model = part.setup(model, context)
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """See Mitigation; what replaces weights does so first: others note where the training begins."""
        for part in sorted(self.parts, key=lambda part: part.reference or not part.replaces_weights):
            model = part.before_task(model, task)
        return model

    def train_dataset(self, dataset: Dataset, task: Task, seen: Sequence[Task]) -> Dataset:
        """See Mitigation."""
        for part in self.parts:
            dataset = part.train_dataset(dataset, task, seen)
        return dataset

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """See Mitigation."""
        for part in self.parts:
            args = part.training_arguments(args)
        return args

    def learning_rates(self, model: PreTrainedModel) -> dict[str, float]:
        """See Mitigation; several parts' multiples of one parameter's rate are multiplied."""
        rates: dict[str, float] = {}
        for part in self.parts:
            for name, multiple in part.learning_rates(model).items():
                rates[name] = rates.get(name, 1.0) * multiple
        return rates

    def callbacks(self, model: PreTrainedModel, task: Task) -> list[TrainerCallback]:
        """See Mitigation."""
        return [callback for part in self.parts for callback in part.callbacks(model, task)]

    def loss(
        self, model: PreTrainedModel, batch: dict[str, torch.Tensor], outputs: Any, loss: torch.Tensor
    ) -> torch.Tensor:
        """See Mitigation."""
        for part in self.parts:
            loss = part.loss(model, batch, outputs, loss)
        return loss

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """See Mitigation."""
        for part in self.parts:
            part.after_backward(model, again)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """See Mitigation."""
        for part in self.parts:
            part.after_step(model, learning_rate)

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """See Mitigation; what replaces weights does so last: others consolidate what the training reached."""
        for part in sorted(self.parts, key=lambda part: part.replaces_weights):
            model = part.after_task(model, task)
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """See Mitigation."""
        return {name: view for part in self.parts for name, view in part.views(model).items()}

    @contextmanager
    def scoring(self, model: PreTrainedModel, task: Task) -> Iterator[None]:
        """See Mitigation."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.scoring(model, task))
            yield

    def demonstrations(self, task: Task) -> str:
        """See Mitigation."""
        return "".join(part.demonstrations(task) for part in self.parts)

    def stored_floats(self) -> int:
        """See Mitigation."""
        return sum(part.stored_floats() for part in self.parts)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See Mitigation."""
        states = (with_prefix(str(i), part.state_dict()) for i, part in enumerate(self.parts))
        return {key: value for state in states for key, value in state.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See Mitigation."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(under_prefix(str(i), state))

    def task_state(self) -> dict[str, torch.Tensor]:
        """See Mitigation."""
        states = (with_prefix(str(i), part.task_state()) for i, part in enumerate(self.parts))
        return {key: value for state in states for key, value in state.items()}

    def load_task_state(self, state: dict[str, torch.Tensor]) -> None:
        """See Mitigation."""
        for i, part in enumerate(self.parts):
            part.load_task_state(under_prefix(str(i), state))
