"""Quadratic penalties around earlier weights, weighted by their Fisher information: EWC.

With Fisher information F_i at weights θ_i the penalty is P(θ) = ½ Σ_i (θ − θ_i)ᵀ F_i (θ − θ_i), and λP is added to
the loss. Both ways of applying it are in closed form, past autograd:

- ``add_gradient``: λ∇P is added to the loss's gradient. Through Adam it loses its scale, and at large λ it diverges;
- ``step``: after the optimizer's step, the implicit step θ ← argmin_u ‖u − θ‖²/2η + λP(u), stable at any strength.

Strength. F is a mean over examples, so that λ means the same for any number of them. Others write the same λ
otherwise; ``raw_strength`` converts:

============  ==========================================================================================  ===========
convention    what is added to a loss of example means                                                    our λ
============  ==========================================================================================  ===========
mean          ½ λ Σ F̄ (θ−θ*)², the loss a mean over predicted tokens (as transformers' is)               λ
van_de_ven    ½ λ Σ F̄ (θ−θ*)², the loss a mean over examples of their tokens' sum (arXiv 2502.11756)      λ / n
kirkpatrick   ½ λ Σ F (θ−θ*)², the loss −log p(D), a sum over the new task's N examples, F the precision
              of Laplace's posterior, a sum over its M examples (arXiv 1612.00796, eq. 3)                 λ M / (n N)
avalanche     λ Σ F (θ−θ*)², without ½ (``EWCPlugin``; its F is the estimator ``batched``)                 2 λ / n
============  ==========================================================================================  ===========

n is the new task's mean number of predicted tokens per example (1 for a classifier).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from forgetting.fisher.kronecker import Factor, KroneckerFisher
from forgetting.fisher.storage import DiagonalFisher

Convention = Literal["mean", "van_de_ven", "kirkpatrick", "avalanche"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


def raw_strength(
    value: float, convention: Convention, *, tokens: float = 1.0, examples: int = 1, fisher_examples: int = 1
) -> float:
    """Our λ for another's, see the module.

    Args:
        value: λ as the other writes it.
        convention: Whose.
        tokens: Mean number of predicted tokens per example of the task that is trained on.
        examples: That task's number of examples.
        fisher_examples: Examples of which the Fisher information was taken.
    """
    if convention == "mean":
        return value
    if convention == "kirkpatrick":
        return value * fisher_examples / (tokens * examples)
    return (2 * value if convention == "avalanche" else value) / tokens


class DiagonalPenalty:
    """All diagonal penalties as one quadratic: Σ F_i and Σ F_i θ_i; nothing grows with the number of tasks.

    Args:
        online: Schwarz et al. 2018 (arXiv 1805.06370): F ← decay · F + F_i, around the latest weights alone;
            else the sum of the penalties around each task's own (Kirkpatrick et al. 2017, Huszár 2018).
        decay: Of the online Fisher information, in (0, 1].

    Attributes:
        fisher, weighted: Σ F_i and Σ F_i θ_i, by parameter.
    """

    def __init__(self, *, online: bool = False, decay: float = 1.0) -> None:
        self.online, self.decay = online, decay
        self.fisher: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}
        self._constant = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def consolidate(self, fisher: DiagonalFisher, parameters: Mapping[str, Tensor]) -> None:
        """Protect the present weights."""
        for name, value in fisher.values.items():
            theta = parameters[name].detach().to(value.dtype)
            before = self.fisher.get(name)
            if before is None:
                self.fisher[name], self.weighted[name] = value.clone(), value * theta
            elif self.online:
                before.mul_(self.decay).add_(value)
                self.weighted[name] = before * theta
            else:
                before.add_(value)
                self.weighted[name].addcmul_(value, theta)
        added = sum(
            float((self.fisher[name] if self.online else value).double().mul(parameters[name].double() ** 2).sum())
            for name, value in fisher.values.items()
        )
        self._constant = torch.tensor(added if self.online else float(self._constant) + added, dtype=torch.float64)

    def value(self, parameters: Mapping[str, Tensor]) -> float:
        """P(θ), computed in float64."""
        total = float(self._constant)
        for name, fisher in self.fisher.items():
            theta = parameters[name].detach().double()
            total += float((fisher.double() * theta**2 - 2 * self.weighted[name].double() * theta).sum())
        return total / 2

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ(ΣF_i θ − ΣF_i θ_i) to the parameters' ``grad``."""
        named = {name: (p.data, p.grad) for name, p in parameters.items() if name in self.fisher and p.grad is not None}
        if not named or strength == 0:
            return
        gradient = torch._foreach_mul([data for data, _ in named.values()], [self.fisher[name] for name in named])
        torch._foreach_sub_(gradient, [self.weighted[name] for name in named])
        torch._foreach_add_([grad for _, grad in named.values()], gradient, alpha=strength)

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step of size ηλ = ``strength``: θ ← (θ + ηλ ΣF_iθ_i) / (1 + ηλ ΣF_i)."""
        named = {name: p for name, p in parameters.items() if name in self.fisher and p.requires_grad}
        if not named or strength == 0:
            return
        weights = [p.data for p in named.values()]
        denominator = torch._foreach_mul([self.fisher[name] for name in named], strength)
        torch._foreach_add_(denominator, 1.0)
        torch._foreach_add_(weights, [self.weighted[name] for name in named], alpha=strength)
        torch._foreach_div_(weights, denominator)

    def stored_floats(self) -> int:
        """Two per protected parameter."""
        return sum(value.numel() for value in (*self.fisher.values(), *self.weighted.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        if not self.fisher:
            return {}
        state = {f"fisher.{name}": value for name, value in self.fisher.items()}
        return state | {f"weighted.{n}": value for n, value in self.weighted.items()} | {"constant": self._constant}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore."""
        self.fisher = _part(state, "fisher.")
        self.weighted = _part(state, "weighted.")
        self._constant = state.get("constant", torch.zeros((), dtype=torch.float64))


class KroneckerPenalty:
    """Penalties in the eigenbases of Kronecker factors, a term per task; other parameters by a DiagonalPenalty.

    Bases of different tasks differ, so that terms cannot be summed: memory and time grow with the tasks. The implicit
    steps of the terms are taken one after another.
    """

    def __init__(self) -> None:
        self.terms: list[tuple[dict[str, Factor], dict[str, Tensor]]] = []
        self.diagonal = DiagonalPenalty()

    @torch.no_grad()
    def consolidate(self, fisher: KroneckerFisher, parameters: Mapping[str, Tensor]) -> None:
        """Protect the present weights."""
        self.terms.append((fisher.factors, {name: parameters[name].detach().clone() for name in fisher.factors}))
        self.diagonal.consolidate(fisher.diagonal, parameters)

    def value(self, parameters: Mapping[str, Tensor]) -> float:
        """P(θ)."""
        total = self.diagonal.value(parameters)
        for factors, anchors in self.terms:
            for name, factor in factors.items():
                moved = factor.rotate(parameters[name].detach() - anchors[name])
                total += float((factor.eigenvalues * moved**2).sum()) / 2
        return total

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ∇P to the parameters' ``grad``."""
        self.diagonal.add_gradient(parameters, strength)
        for factors, anchors in self.terms:
            for name, factor in factors.items():
                parameter = parameters[name]
                if parameter.grad is not None and strength:
                    moved = factor.rotate(parameter.data - anchors[name])
                    parameter.grad.add_(factor.rotate_back(factor.eigenvalues * moved), alpha=strength)

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step of size ηλ = ``strength``, in each term's basis."""
        self.diagonal.step(parameters, strength)
        for factors, anchors in self.terms:
            for name, factor in factors.items():
                parameter = parameters[name]
                if parameter.requires_grad and strength:
                    moved = factor.rotate(parameter.data - anchors[name]) / (1 + strength * factor.eigenvalues)
                    parameter.data.copy_(anchors[name] + factor.rotate_back(moved))

    def stored_floats(self) -> int:
        """Two bases, eigenvalues and weights per task, and the diagonal."""
        stored = sum(
            f.G_basis.numel() + f.A_basis.numel() + 2 * f.eigenvalues.numel() for t, _ in self.terms for f in t.values()
        )
        return stored + self.diagonal.stored_floats()

    def state_dict(self) -> dict[str, Tensor]:
        """All terms."""
        state = {f"diagonal.{key}": value for key, value in self.diagonal.state_dict().items()}
        for i, (factors, anchors) in enumerate(self.terms):
            for name, factor in factors.items():
                state |= {
                    f"term.{i}.G.{name}": factor.G_basis,
                    f"term.{i}.A.{name}": factor.A_basis,
                    f"term.{i}.eigenvalues.{name}": factor.eigenvalues,
                    f"term.{i}.anchor.{name}": anchors[name],
                }
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore."""
        self.diagonal.load_state_dict(_part(state, "diagonal."))
        self.terms = []
        while part := _part(state, f"term.{len(self.terms)}."):
            G, A, eigenvalues = (_part(part, kind) for kind in ("G.", "A.", "eigenvalues."))
            factors = {name: Factor(G[name], A[name], eigenvalues[name]) for name in G}
            self.terms.append((factors, _part(part, "anchor.")))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
