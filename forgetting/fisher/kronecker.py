"""Kronecker-factored Fisher information of linear layers, plain (K-FAC) and eigenvalue-corrected (EKFAC)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from forgetting.fisher.capture import Capture, select_parameters
from forgetting.fisher.diagonal import Backend, check_arguments, product_squares
from forgetting.fisher.engine import Batch, Captured, Draw, Progress, Totals
from forgetting.fisher.estimators import Estimator, shifts_labels
from forgetting.fisher.examples import compute_dtype
from forgetting.fisher.shards import refuse
from forgetting.fisher.storage import DiagonalFisher
from forgetting.fisher.uses import Product, Use, add_squares
from forgetting.matmul import multiply

MAX_SIZE = 4096
"""A weight with a longer side (a language model's head) is kept diagonal: a factor would have its square."""


@dataclass(frozen=True)
class Factor:
    """One weight's block of the Fisher: (Q_A ⊗ Q_G) diag(Λ) (Q_A ⊗ Q_G)ᵀ.

    Attributes:
        G_basis: (O, O), eigenvectors of the output gradients' second moment, in columns.
        A_basis: (I, I), of the inputs'.
        eigenvalues: (O, I): products of both moments' eigenvalues for K-FAC; for EKFAC the mean over examples of the
            squared gradient in this basis.
    """

    G_basis: Tensor
    A_basis: Tensor
    eigenvalues: Tensor

    def rotate(self, weight: Tensor) -> Tensor:
        """Into the basis: Q_Gᵀ W Q_A."""
        return self.G_basis.T @ weight @ self.A_basis

    def rotate_back(self, rotated: Tensor) -> Tensor:
        """Out of the basis."""
        return self.G_basis @ rotated @ self.A_basis.T


@dataclass(frozen=True)
class KroneckerFisher:
    """The Fisher information in blocks.

    Attributes:
        factors: Of the weights of Linear and Conv1D layers that are used for nothing else, by name.
        diagonal: Of all other parameters.
        corrected: EKFAC.
    """

    factors: dict[str, Factor]
    diagonal: DiagonalFisher
    corrected: bool


def kfac_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    corrected: bool = True,
    estimator: Estimator = "sample",
    samples: int = 1,
    parameters: Iterable[str] | None = None,
    max_examples: int | None = None,
    backend: Backend = "auto",
    generator: torch.Generator | None = None,
    shift_labels: bool | None = None,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> KroneckerFisher:
    """Compute Kronecker factors of Linear and Conv1D weights, and the diagonal of everything else.

    A = E_tokens[a aᵀ] over all tokens of all uses that have a gradient ("expand", Eschenhagen et al. 2023,
    arXiv 2311.00636), G = E_examples[Σ_t g gᵀ], F ≈ A ⊗ G (Martens & Grosse 2015, arXiv 1503.05671). With
    ``corrected``, a second pass with the same labels replaces the eigenvalues by E_examples[(Q_Gᵀ (G_eᵀA_e) Q_A)∘²],
    the best diagonal in that basis (George et al. 2018, arXiv 1806.03884): there the unit is the example, summed over
    its tokens, as in ``diagonal_fisher``.

    Args:
        model: As in ``diagonal_fisher``, like all that is not said here.
        batches: Gone through once; those that are used are kept for the second pass.
        corrected: EKFAC.
        estimator: ``sample`` or ``empirical``.
        samples: Draws per example.
        parameters: Names or patterns.
        max_examples: Stop after so many.
        backend: ``torch``, ``triton`` or ``auto``.
        generator: Of the drawn labels.
        shift_labels: The logits at a token predict the next one.
        max_size: Weights with a longer side are kept diagonal.
        progress: Called after every batch, of either pass.

    Raises:
        NoRule, ValueError: as ``diagonal_fisher``.
    """
    if estimator not in ("sample", "empirical") or backend == "reference":
        raise ValueError(f"kfac_fisher: estimator {estimator!r}, backend {backend!r}; give 'sample' or 'empirical'")
    check_arguments(estimator, samples, max_examples, backend)
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    seen: list[Batch] = []
    start = generator.get_state()
    chosen = select_parameters(model, parameters)
    refuse("the Kronecker-factored Fisher information", chosen.values())
    shift = shifts_labels(model) if shift_labels is None else shift_labels
    blocks = _blocks(model, chosen, max_size)
    products = product_squares(backend, next(iter(chosen.values())).device)
    draw = Draw(estimator, samples, generator)
    totals = Totals({name: p for name, p in chosen.items() if name not in blocks}, torch.float32)
    moments = {name: _Moments.zeros(chosen[name]) for name in blocks}

    def collect(name: str, uses: list[Use]) -> None:
        if name not in moments:
            add_squares(totals[name], uses, products)
            return
        for use in uses:
            assert isinstance(use, Product)
            moments[name].add(use)

    engine = Captured(Capture(model, chosen, collect), draw, shift)
    first = _kept(batches, seen)
    engine.run(first, next(iter(chosen.values())), max_examples, progress)
    factors = {name: moment.factor(engine.examples) for name, moment in moments.items()}
    if corrected and factors:
        squares = {name: torch.zeros_like(factor.eigenvalues) for name, factor in factors.items()}

        def correct(name: str, uses: list[Use]) -> None:
            factor = factors[name]
            rotated = [
                Product(multiply(use.G.to(wide), factor.G_basis), multiply(use.A.to(wide), factor.A_basis), use.spans)
                for use in uses
                if isinstance(use, Product) and (wide := compute_dtype(use.G))
            ]
            products(squares[name], rotated)

        generator.set_state(start)
        second = Captured(Capture(model, {name: chosen[name] for name in factors}, correct), draw, shift)
        second.run(seen, next(iter(chosen.values())), max_examples, progress)
        factors = {
            name: replace(factor, eigenvalues=squares[name] / second.examples) for name, factor in factors.items()
        }
    diagonal = DiagonalFisher(
        values=totals.mean(engine.examples),
        estimator=estimator,
        samples=samples if estimator == "sample" else None,
        examples=engine.examples,
        tokens=engine.tokens,
    )
    return KroneckerFisher(factors, diagonal, corrected)


def _blocks(model: nn.Module, chosen: dict[str, nn.Parameter], max_size: int) -> set[str]:
    """Names of the weights that only Linear and Conv1D layers own, no side longer than ``max_size``."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    return {
        name
        for name, parameter in chosen.items()
        if parameter.dim() == 2
        and max(parameter.shape) <= max_size
        and all(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in owners[id(parameter)])
    }


@dataclass
class _Moments:
    """Sums over tokens: a aᵀ and its number of tokens, g gᵀ."""

    A: Tensor
    G: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, weight: Tensor) -> _Moments:
        rows, columns = weight.shape
        dtype = compute_dtype(weight)
        return cls(
            torch.zeros(columns, columns, dtype=dtype, device=weight.device),
            torch.zeros(rows, rows, dtype=dtype, device=weight.device),
        )

    def add(self, use: Product) -> None:
        A, G = use.A.to(self.A.dtype), use.G.to(self.G.dtype)
        reached = (G != 0).any(1)  # padding, and tokens on which no prediction depends, have no gradient
        self.A += multiply(A.T, A * reached[:, None])
        self.G += multiply(G.T, G)
        self.tokens += int(reached.sum())

    def factor(self, examples: int) -> Factor:
        A_values, A_basis = torch.linalg.eigh(self.A / self.tokens)
        G_values, G_basis = torch.linalg.eigh(self.G / examples)
        return Factor(G_basis, A_basis, G_values.clamp(min=0)[:, None] * A_values.clamp(min=0)[None, :])


def _kept(batches: Iterable[Batch], seen: list[Batch]) -> Iterator[Batch]:
    """The batches, as they are drawn put into ``seen``."""
    for batch in batches:
        seen.append(batch)
        yield batch
