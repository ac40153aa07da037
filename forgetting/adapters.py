"""What the adapter methods share: peft wraps the model, and only what it adds is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from forgetting.errors import UsageError, did_you_mean
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, TrainingArguments

    from forgetting.config import TrainingConfig
    from forgetting.models import ModelFamily
    from forgetting.tasks.task import Task

ALL_LINEAR = "all-linear"
ESTIMATORS = ("sample", "empirical", "batched", "positionwise")


class AdapterOptions(Options):
    """Options that all adapter methods have."""

    lr_factor: float = Field(
        default=10.0, gt=0, description="multiple of the base learning rate: an adapter's best is not full's"
    )


AdapterOptionsT = TypeVar("AdapterOptionsT", bound=AdapterOptions)


class Adapter(Mitigation[AdapterOptionsT]):
    """Trains parameters that peft adds to a model whose own are frozen.

    Scored with the adapter on, and off (view ``adapter_off``): the model as it was when the adapter began. The
    comparison with full fine-tuning is fair only at each one's own learning rate: hence ``lr_factor``.
    """

    @property
    def name(self) -> str:
        """The registered name."""
        return type(self).__module__.rpartition(".")[2]

    def lasts(self) -> bool:
        """Whether one adapter is trained all run long; else it is merged, or another is begun, at every task."""
        return True

    def estimators(self) -> tuple[str, ...]:
        """Fisher estimators that can take its parameters."""
        return ("batched",)

    def config(self, model: PreTrainedModel) -> PeftConfig:
        """Return what peft needs to know."""
        raise NotImplementedError

    def check(self, chain: Sequence[Mitigation]) -> None:
        """One adapter method wraps a model."""
        others = [part.name for part in adapters_in(chain) if part is not self]
        if others:
            raise UsageError(f"mitigation {self.name!r}: stands beside {others[0]!r}; give one adapter method")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Wrap the model."""
        super().setup(model, context)
        self._tasks = 0
        return self.wrap(model)

    def wrap(self, model: PreTrainedModel, adapter: str = "default") -> PreTrainedModel:
        """Return the model with a new adapter, whose initialisation depends on the run's seed and the task alone."""
        import torch
        from peft import get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(self.context.seed * 1000 + self._tasks)
            wrapped = get_peft_model(model, self.config(model), adapter).train(model.training)
        for tensor in (
            *wrapped.parameters(),
            *wrapped.buffers(),
        ):  # a checkpoint refuses slices of what peft threw away
            if tensor.untyped_storage().nbytes() > tensor.nbytes:
                tensor.data = tensor.data.clone()
        return wrapped  # type: ignore[return-value]  # PeftModel forwards to it

    def training_arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Scale the rate."""
        args.learning_rate *= self.options.lr_factor
        return args

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Merge the adapter of the task before, and begin a new one."""
        if self._tasks and not self.lasts():
            model = self.wrap(model.merge_and_unload())  # type: ignore[operator]  # it is a PeftModel
        self._tasks += 1
        return model

    def views(self, model: PreTrainedModel) -> dict[str, AbstractContextManager]:
        """The model without its current adapter."""
        return {"adapter_off": model.disable_adapter()}  # type: ignore[operator]  # it is a PeftModel

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The number of tasks begun; the adapter's weights are the model's."""
        import torch

        return {"tasks": torch.tensor(self._tasks)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._tasks = int(state["tasks"])


class PromptOptions(AdapterOptions):
    """Options of methods that put virtual tokens before every input."""

    length: int = Field(default=20, ge=1, description="virtual tokens")
    text: str | None = Field(
        default=None,
        description="text whose tokens they start from, repeated or cut; else tokens drawn from the vocabulary",
    )


PromptOptionsT = TypeVar("PromptOptionsT", bound=PromptOptions)


class PromptAdapter(Adapter[PromptOptionsT]):
    """Puts trained virtual tokens before every input, from the start: the model begins elsewhere than at the base."""

    starts: ClassVar[Literal["base", "rounded", "elsewhere"]] = "elsewhere"
    families: ClassVar[tuple[ModelFamily, ...]] = ("decoder",)

    def check_training(self, model: PreTrainedModel, training: TrainingConfig) -> None:
        """The virtual tokens must find room."""
        if training.packing:
            raise UsageError(f"mitigation {self.name!r}: a packed row has no place for a prompt; set packing to false")
        positions = getattr(model.config, "max_position_embeddings", None)
        needed = self.options.length + training.max_length
        if positions is not None and needed > positions:
            raise UsageError(
                f"mitigation {self.name!r}: length = {self.options.length}: with max_length "
                f"{training.max_length} makes {needed} tokens, and the model has {positions} positions"
            )

    def starting_tokens(self, model: PreTrainedModel) -> torch.Tensor:
        """Return ``length`` token ids of ``text``, or of the vocabulary without its special tokens, int64."""
        import torch

        tokenizer, length = self.context.tokenizer, self.options.length
        if self.options.text is not None:
            ids = tokenizer(self.options.text, add_special_tokens=False)["input_ids"]
            if not ids:
                raise UsageError(f"mitigation {self.name!r}: text = {self.options.text!r}: has no token")
            return torch.tensor((ids * length)[:length])
        embeddings: Any = model.get_input_embeddings()
        special = set(tokenizer.all_special_ids)
        ids = [token for token in range(min(len(embeddings.weight), len(tokenizer))) if token not in special]
        generator = torch.Generator().manual_seed(self.context.seed * 1000)
        return torch.tensor(ids)[torch.randint(len(ids), (length,), generator=generator)]


def adapters_in(chain: Sequence[Mitigation]) -> list[Adapter]:
    """Return the adapter methods among the parts."""
    return [part for part in chain if isinstance(part, Adapter)]


def check_adapters(
    name: str, part: Mitigation, chain: Sequence[Mitigation], *, lasting: bool = True, estimators: Sequence[str] = ()
) -> None:
    """Raise UsageError where an adapter method takes away the parameters that another method holds on to.

    Args:
        name: The other method's.
        part: The other method, one of ``chain``.
        chain: All parts, in order.
        lasting: Whether what it holds on to must train throughout the run.
        estimators: Estimators of the Fisher information that it takes of what trains.
    """
    for adapter in adapters_in(chain):
        if chain.index(adapter) > chain.index(part):
            raise UsageError(
                f"mitigation {name!r}: stands before {adapter.name!r}, which freezes what it protects; "
                f"write {adapter.name}+{name}"
            )
        if lasting and not adapter.lasts():
            merges = "merge" in type(adapter.options).model_fields
            way_out = f"write {adapter.name}:merge=false+{name}" if merges else f"{adapter.name!r} begins one per task"
            raise UsageError(f"mitigation {name!r}: needs an adapter that lasts; {way_out}")
        for estimator in estimators:
            if estimator not in (allowed := adapter.estimators()):
                chosen = "estimator" in type(part.options).model_fields and allowed
                way_out = f"write {adapter.name}+{name}:estimator={allowed[0]}" if chosen else "leave one out"
                raise UsageError(
                    f"mitigation {name!r}: estimator = {estimator!r}: has no rule for what {adapter.name!r} trains; "
                    f"{way_out}"
                )


def check_base_first(name: str, part: Mitigation, chain: Sequence[Mitigation]) -> None:
    """Raise UsageError where what a method takes for the base model has a prompt before its inputs already."""
    for adapter in adapters_in(chain[: chain.index(part)]):
        if adapter.starts == "elsewhere":
            raise UsageError(
                f"mitigation {name!r}: stands after {adapter.name!r}, with which the model is not the base model; "
                f"write {name}+{adapter.name}"
            )


def task_type(model: PreTrainedModel) -> str | None:
    """Return peft's name for what the model does: a plain wrapper is all that a model without generation needs."""
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None


def target_names(target: str) -> list[str] | str:
    """Return the option ``target`` as peft takes it."""
    return ALL_LINEAR if target == ALL_LINEAR else target.split("|")


def targeted(model: PreTrainedModel, target: str, method: str) -> dict[str, Any]:
    """Return the modules that a method's option ``target`` names, by their names.

    Raises:
        UsageError: if one of the names fits no module.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if target == ALL_LINEAR:
        head = model.get_output_embeddings()
        return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    found: dict[str, Any] = {}
    for wanted in target.split("|"):
        fits = {n: m for n, m in model.named_modules() if n == wanted or n.endswith(f".{wanted}")}
        if not fits:
            names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
            raise UsageError(f"mitigation {method!r}: target = {wanted!r}: no such module{did_you_mean(wanted, names)}")
        found.update(fits)
    return found
