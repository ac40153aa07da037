"""Gradient projection memory: linear layers do not change what they do to inputs that mattered before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from forgetting.errors import UsageError
from forgetting.mitigations.base import Mitigation, Options, RunContext

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from forgetting.models import ModelFamily
    from forgetting.tasks.task import Task


class GPMOptions(Options):
    """Options of gpm."""

    threshold: float = Field(
        default=0.95, ge=0, le=1, description="share of the inputs' energy that a layer's basis holds; 0 switches off"
    )
    examples: int = Field(
        default=64, ge=1, description="examples of each state whose inputs to the layers are looked at"
    )
    pretraining: bool = Field(default=True, description="protect the pretrained state too, as task 0, by its text")
    others: Literal["frozen", "free"] = Field(
        default="frozen",
        description="what is no linear layer's weight (embeddings, a head tied to them, norms, biases), once a state "
        "is protected",
    )
    project: Literal["step", "gradient"] = Field(
        default="step", description="step: the gradient, and then the optimizer's step; gradient: the gradient alone"
    )


class GPM(Mitigation[GPMOptions]):
    """Every linear layer's gradient is made orthogonal to the inputs that the layer had in earlier states.

    After each task, and before the first on pretraining text, as task 0, the layer's inputs at all tokens of a few
    examples are decomposed, and the leading directions that are new join its basis M. The layer's outputs at inputs
    in M's span then stay as they are. That says nothing of parameters that are not linear layers' weights: they are
    frozen by default, as the paper freezes batch norms after the first task, and then the whole network's outputs
    stay. A tied head is an embedding too, and counts as such. The paper descends by SGD. A step of Adam along a
    projected gradient leaves the subspace: by default the weights' displacement is therefore projected too.
    """

    summary: ClassVar[str] = "update linear layers only orthogonally to their inputs in earlier states"
    paper: ClassVar[str] = "Saha et al. 2021, arXiv 2103.09762"
    equation: ClassVar[str] = "ΔW ← ΔW − ΔW M Mᵀ, M of the inputs' leading singular vectors, threshold of their energy"
    cost: ClassVar[str] = (
        "I k floats per linear layer, k ≤ I; 4 products with the basis per step, 2 with project=gradient"
    )
    Options: ClassVar[type[Options]] = GPMOptions
    families: ClassVar[tuple[ModelFamily, ...]] = (
        "decoder",
        "encoder_decoder",
    )  # the others have heads and convolutions
    null: ClassVar[dict[str, Any] | None] = {"threshold": 0}
    resumes_within_task: ClassVar[bool] = True

    def check(self, chain: Sequence[Mitigation]) -> None:
        """The bases are of layers that must last."""
        from forgetting.adapters import check_adapters

        check_adapters("gpm", self, chain)

    def check_model(self, model: PreTrainedModel) -> None:
        """There must be something to protect."""
        if self.options.threshold > 0 and not _linear_weights(model):
            raise UsageError("mitigation 'gpm': the model has no linear layer of its own weight; take ogd")

    def setup(self, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
        """Begin with no basis."""
        super().setup(model, context)
        self._bases: dict[str, torch.Tensor] = {}  # by the weight's name, (I, k)
        self._before: dict[str, torch.Tensor] = {}
        self._layers: dict[str, tuple[nn.Parameter, list[nn.Module]]] = {}
        self._tasks = 0
        return model

    def before_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Before the first task, protect the pretrained state: only now is it known what will train."""
        from forgetting.tasks.memory import some_text

        if self.options.threshold == 0:
            return model
        self._layers = _linear_weights(model)
        if not self._layers:
            raise UsageError("mitigation 'gpm': no linear layer trains; leave one to train, or take ogd")
        if self._tasks == 0 and self.options.pretraining:
            self._protect(model, some_text(self.context, self.options.examples))
        if self._bases and self.options.others == "frozen":
            linear = {id(weight) for weight, _ in self._layers.values()}
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in linear)
        return model

    def after_task(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """Protect the task."""
        from forgetting.tasks.memory import some_of_task

        self._tasks += 1
        if self.options.threshold > 0:
            self._protect(model, some_of_task(self.context, task, self._tasks, self.options.examples))
        return model

    def _protect(self, model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
        from forgetting.projection import grown_basis

        for name, (moment, weight) in self._second_moments(model, features).items():
            known = self._bases.get(name, weight.new_zeros(len(moment), 0))
            basis = grown_basis(known, moment, self.options.threshold)
            if basis.shape[1]:
                self._bases[name] = basis

    def _second_moments(
        self, model: PreTrainedModel, features: Sequence[dict[str, Any]]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Σ x xᵀ over the inputs x of each layer, (I, I) in fp64, one example at a time: there is no padding."""
        import torch

        from forgetting.distillation import inputs
        from forgetting.trainer import padded_batches

        moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def hook(name: str, weight: torch.Tensor) -> Callable[[nn.Module, Any], None]:
            def add(module: nn.Module, args: Any) -> None:
                rows = args[0].detach().reshape(-1, args[0].shape[-1]).double()
                if name in moments:
                    moments[name][0].addmm_(rows.T, rows)
                else:
                    moments[name] = rows.T @ rows, weight.detach()

            return add

        handles = [
            module.register_forward_pre_hook(hook(name, weight))
            for name, (weight, modules) in self._layers.items()
            for module in modules
        ]
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in padded_batches(features, self.context.tokenizer, 1):
                    model(**inputs({key: value.to(model.device) for key, value in batch.items()}))
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()
        return moments

    def after_backward(self, model: PreTrainedModel, again: Callable[[], None]) -> None:
        """Project the gradients."""
        self._before = {}
        for name, (weight, _) in self._layers.items():
            if name in self._bases and weight.grad is not None:
                weight.grad.copy_(self._projected(name, weight.grad))
                if self.options.project == "step":
                    self._before[name] = weight.detach().clone()

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Project what the step did to the weights."""
        for name, before in self._before.items():
            weight = self._layers[name][0].data
            weight.copy_(before + self._projected(name, weight - before))

    def _projected(self, name: str, change: torch.Tensor) -> torch.Tensor:
        from forgetting.projection import without_inputs

        transposed = type(self._layers[name][1][0]).__name__ == "Conv1D"
        return without_inputs(change, self._bases[name], transposed=transposed)

    def stored_floats(self) -> int:
        """The bases."""
        return sum(basis.numel() for basis in self._bases.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The bases, and how many tasks were learned."""
        import torch

        return {"tasks": torch.tensor(self._tasks)} | {f"basis.{name}": value for name, value in self._bases.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore."""
        self._tasks = int(state["tasks"])
        self._bases = {key.removeprefix("basis."): value for key, value in state.items() if key.startswith("basis.")}


def _linear_weights(model: nn.Module) -> dict[str, tuple[nn.Parameter, list[nn.Module]]]:
    """Weights that train and that linear layers alone use, by name, with these layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    return {
        name: (parameter, users[parameter])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and all(isinstance(user, (nn.Linear, Conv1D)) and user.weight is parameter for user in users[parameter])
    }
