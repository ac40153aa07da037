"""Fisher information of a model's parameters, and penalties made of it; needs only torch."""

from forgetting.fisher.capture import NoRule
from forgetting.fisher.diagonal import diagonal_fisher
from forgetting.fisher.kronecker import KroneckerFisher, kfac_fisher
from forgetting.fisher.penalty import DiagonalPenalty, KroneckerPenalty, fisher_weight, raw_strength
from forgetting.fisher.storage import DiagonalFisher

__all__ = [
    "DiagonalFisher",
    "DiagonalPenalty",
    "KroneckerFisher",
    "KroneckerPenalty",
    "NoRule",
    "diagonal_fisher",
    "fisher_weight",
    "kfac_fisher",
    "raw_strength",
]
