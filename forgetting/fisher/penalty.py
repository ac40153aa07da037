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
              of Laplace's posterior, a sum over its examples (arXiv 1612.00796, eq. 3): consolidate with
              their number as ``weight``                                                                  λ / (n N)
avalanche     λ Σ F (θ−θ*)², without ½ (``EWCPlugin``; its F is the estimator ``batched``)                 2 λ / n
============  ==========================================================================================  ===========

n is the new task's mean number of predicted tokens per example (1 for a classifier).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from forgetting.fisher.kronecker import Factor, KroneckerFisher
from forgetting.fisher.shards import local
from forgetting.fisher.storage import DiagonalFisher

Convention = Literal["mean", "van_de_ven", "kirkpatrick", "avalanche"]
TOLERANCE = 1e-5
"""Of the conjugate gradients, relative to the right-hand side."""
MAX_ITERATIONS = 100


def raw_strength(value: float, convention: Convention, *, tokens: float = 1.0, examples: int = 1) -> float:
    """Our λ for another's, see the module.

    Args:
        value: λ as the other writes it.
        convention: Whose.
        tokens: Mean number of predicted tokens per example of the task that is trained on.
        examples: That task's number of examples.
    """
    if convention == "mean":
        return value
    if convention == "kirkpatrick":
        return value / (tokens * examples)
    return (2 * value if convention == "avalanche" else value) / tokens


def fisher_weight(convention: Convention, examples: int) -> float:
    """What a mean over so many examples is consolidated with: Kirkpatrick's F is their sum."""
    return float(examples) if convention == "kirkpatrick" else 1.0


class DiagonalPenalty:
    """All diagonal penalties as one quadratic: Σ F_i and Σ F_i θ_i; nothing grows with the number of tasks.

    Of a sharded model the sums are divided as its parameters are, and each process moves its own rows.

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

    @torch.no_grad()
    def consolidate(
        self, fisher: DiagonalFisher | Mapping[str, Tensor], parameters: Mapping[str, Tensor], weight: float = 1.0
    ) -> None:
        """Protect the present weights, F times ``weight``; F may be any other importance, by parameter."""
        values = fisher.values if isinstance(fisher, DiagonalFisher) else fisher
        for name, mean in values.items():
            value = mean * weight
            theta = parameters[name].detach().to(value.dtype)
            before = self.fisher.get(name)
            if before is None:
                self.fisher[name], self.weighted[name] = value, value * theta
            elif self.online:
                before.mul_(self.decay).add_(value)
                self.weighted[name] = before * theta
            else:
                before.add_(value)
                self.weighted[name].addcmul_(value, theta)

    @torch.no_grad()
    def grow(self, parameters: Mapping[str, Tensor]) -> None:
        """Fit parameters that became longer (a head with new classes): what is new is not protected."""
        for sums in (self.fisher, self.weighted):
            for name, value in sums.items():
                if value.shape != parameters[name].shape:
                    longer = value.new_zeros(parameters[name].shape)
                    longer[tuple(slice(0, size) for size in value.shape)] = value
                    sums[name] = longer

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ(ΣF_i θ − ΣF_i θ_i) to the parameters' ``grad``."""
        named = {
            name: (local(p.data), local(p.grad))
            for name, p in parameters.items()
            if name in self.fisher and p.grad is not None
        }
        if not named or strength == 0:
            return
        gradient = torch._foreach_mul(
            [data for data, _ in named.values()], [local(self.fisher[name]) for name in named]
        )
        torch._foreach_sub_(gradient, [local(self.weighted[name]) for name in named])
        torch._foreach_add_([grad for _, grad in named.values()], gradient, alpha=strength)

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step of size ηλ = ``strength``: θ ← θ + (ΣF_iθ_i − ΣF_i θ) / (1/ηλ + ΣF_i)."""
        named = {name: local(p.data) for name, p in parameters.items() if name in self.fisher and p.requires_grad}
        if not named or strength == 0:
            return
        weights, fisher = list(named.values()), [local(self.fisher[name]) for name in named]
        towards = torch._foreach_mul(fisher, weights)
        torch._foreach_neg_(towards)
        torch._foreach_add_(towards, [local(self.weighted[name]) for name in named])
        torch._foreach_div_(towards, torch._foreach_add(fisher, 1 / strength))
        torch._foreach_add_(weights, towards)

    def stored_floats(self) -> int:
        """Two per protected parameter."""
        return sum(value.numel() for value in (*self.fisher.values(), *self.weighted.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        state = {f"fisher.{name}": value for name, value in self.fisher.items()}
        return state | {f"weighted.{name}": value for name, value in self.weighted.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore."""
        self.fisher = _part(state, "fisher.")
        self.weighted = _part(state, "weighted.")


class KroneckerPenalty:
    """Penalties in the eigenbases of Kronecker factors, a term per task; other parameters by a DiagonalPenalty.

    Bases of different tasks differ, so that terms cannot be summed: memory and time grow with the tasks. With one
    term the implicit step is in closed form; with more it is solved by conjugate gradients.
    """

    def __init__(self) -> None:
        self.terms: list[tuple[dict[str, Factor], dict[str, Tensor]]] = []
        self.diagonal = DiagonalPenalty()

    @torch.no_grad()
    def consolidate(self, fisher: KroneckerFisher, parameters: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Protect the present weights, F times ``weight``."""
        factors = {name: replace(f, eigenvalues=f.eigenvalues * weight) for name, f in fisher.factors.items()}
        anchors = {name: parameters[name].detach().to(f.eigenvalues.dtype, copy=True) for name, f in factors.items()}
        self.terms.append((factors, anchors))
        self.diagonal.consolidate(fisher.diagonal, parameters, weight)

    def _of(self, name: str) -> list[tuple[Factor, Tensor]]:
        return [(factors[name], anchors[name]) for factors, anchors in self.terms if name in factors]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for factors, _ in self.terms for name in factors))

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Add λ∇P to the parameters' ``grad``."""
        self.diagonal.add_gradient(parameters, strength)
        for name in self._names() if strength else ():
            parameter = parameters[name]
            if parameter.grad is not None:
                terms = self._of(name)
                theta = parameter.data.to(terms[0][1].dtype)
                parameter.grad.add_(_pull(theta, terms), alpha=-strength)

    @torch.no_grad()
    def step(self, parameters: Mapping[str, nn.Parameter], strength: float) -> None:
        """Take the implicit step of size ηλ = ``strength``."""
        self.diagonal.step(parameters, strength)
        for name in self._names() if strength else ():
            parameter = parameters[name]
            if parameter.requires_grad:
                theta = parameter.data.to(self._of(name)[0][1].dtype)
                parameter.data.copy_(theta + _implicit_move(theta, self._of(name), strength))

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


def _times(factor: Factor, moved: Tensor) -> Tensor:
    """F times a weight's displacement."""
    return factor.rotate_back(factor.eigenvalues * factor.rotate(moved))


def _pull(theta: Tensor, terms: list[tuple[Factor, Tensor]]) -> Tensor:
    """Σ F_i (θ_i − θ)."""
    return torch.stack([_times(factor, anchor - theta) for factor, anchor in terms]).sum(0)


def _implicit_move(theta: Tensor, terms: list[tuple[Factor, Tensor]], strength: float) -> Tensor:
    """Solve (1 + ηλ ΣF_i) δ = −ηλ Σ F_i (θ − θ_i) for the displacement δ.

    Conjugate gradients, preconditioned in the last term's basis by as many times its eigenvalues as there are terms;
    one term is solved at once by that.
    """
    last = terms[-1][0]

    def precondition(residual: Tensor) -> Tensor:
        return last.rotate_back(last.rotate(residual) / (1 + strength * len(terms) * last.eigenvalues))

    residual = strength * _pull(theta, terms)
    move = torch.zeros_like(theta)
    if len(terms) == 1:
        return precondition(residual)
    direction = preconditioned = precondition(residual)
    product, goal = (residual * preconditioned).sum(), TOLERANCE * residual.norm()
    for _ in range(MAX_ITERATIONS):
        if residual.norm() <= goal:
            break
        applied = direction + strength * torch.stack([_times(factor, direction) for factor, _ in terms]).sum(0)
        length = product / (direction * applied).sum()
        move = move + length * direction
        residual = residual - length * applied
        preconditioned = precondition(residual)
        before, product = product, (residual * preconditioned).sum()
        direction = preconditioned + product / before * direction
    return move


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
