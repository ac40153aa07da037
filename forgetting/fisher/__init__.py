"""Fisher information of a model's parameters; needs only torch."""

from forgetting.fisher.capture import NoRule
from forgetting.fisher.diagonal import diagonal_fisher
from forgetting.fisher.storage import DiagonalFisher

__all__ = ["DiagonalFisher", "NoRule", "diagonal_fisher"]
