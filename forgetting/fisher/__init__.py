"""Fisher information of a model's parameters; needs only torch."""

from forgetting.fisher.diagonal import DiagonalFisher, diagonal_fisher

__all__ = ["DiagonalFisher", "diagonal_fisher"]
