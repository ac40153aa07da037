"""Avalanche's own plugins by name, with what does not work in 0.6.0 repaired."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    GEMPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from torch import Tensor

from forgetting.errors import RunFailed

PluginName = Literal["ewc", "si", "mas", "rwalk", "lwf", "gem", "agem", "replay"]
PLUGINS: tuple[str, ...] = get_args(PluginName)


class SynapticIntelligence(SynapticIntelligencePlugin):
    """Theirs takes the weights with ``.cpu()``, on a CPU a view of them, which moves as they do: it protects nothing.

    Here what is kept is a copy.
    """

    def _keep(self, values: dict[str, Any]) -> None:
        for value in values.values():
            value.data = value.data.clone()

    def before_training_exp(self, strategy: Any, **arguments: Any) -> None:
        """Theirs; then copy the weights that the penalty is around."""
        super().before_training_exp(strategy, **arguments)
        self._keep(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **arguments: Any) -> None:
        """Theirs; then copy the weights that the step begins at."""
        super().before_training_iteration(strategy, **arguments)
        self._keep(self.syn_data["old_theta"])


class RWalk(RWalkPlugin):
    """Theirs divides by the greatest score, which is 0 in a task of fewer steps than are between two scores: NaN."""

    def after_training_exp(self, strategy: Any, *arguments: Any, **named: Any) -> None:
        """Theirs; before it, fail in one line where it would give NaN."""
        if not any(bool((score.data > 0).any()) for score in self.checkpoint_scores.values()):
            raise RunFailed(
                f"Avalanche's RWalk took no score above 0 in a task; it takes one every {self.delta_t} steps "
                "(interval): train longer, or give a shorter interval"
            )
        super().after_training_exp(strategy, *arguments, **named)


class GEM(GEMPlugin):
    """Theirs needs the solver quadprog, which is not among its dependencies; here scipy's solves the same program."""

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """The projected gradient g + Gᵀv, v = argmin ½ vᵀGGᵀv + (Gg)ᵀv with v ≥ the memory strength γ, (P,).

        With v = γ + u, u ≥ 0, and GGᵀ = LLᵀ it is the non-negative least squares of ‖Lᵀu + L⁻¹(GGᵀγ + Gg)‖.
        """
        from scipy.optimize import nnls

        G, gradient = self.G.cpu().double().numpy(), g.detach().cpu().double().numpy()
        squares = G @ G.T + 1e-3 * np.eye(len(G))  # theirs adds as much
        least = np.full(len(G), self.memory_strength)
        factor = np.linalg.cholesky(squares)
        u, _ = nnls(factor.T, -np.linalg.solve(factor, squares @ least + G @ gradient))
        return torch.from_numpy((least + u) @ G + gradient).float()


def avalanche_plugin(
    name: PluginName,
    *,
    strength: float = 1.0,
    decay: float | None = None,
    temperature: float = 2.0,
    memory: int = 200,
    sample: int = 32,
    interval: int = 10,
) -> Any:
    """Return one of Avalanche's plugins.

    Args:
        name: Which.
        strength: λ of ewc, si, mas and rwalk, α of lwf, γ of gem, in Avalanche's own conventions.
        decay: Of ewc: makes it online.
        temperature: Of lwf.
        memory: Examples kept per experience (gem, agem) or in all (replay).
        sample: Examples of the memory per step (agem, replay).
        interval: Steps between two scores (rwalk).
    """
    if name == "ewc":
        return EWCPlugin(strength, mode="separate" if decay is None else "online", decay_factor=decay)
    if name == "si":
        return SynapticIntelligence(strength)
    if name == "mas":
        return MASPlugin(strength)
    if name == "rwalk":
        return RWalk(strength, delta_t=interval)
    if name == "lwf":
        return LwFPlugin(strength, temperature)
    if name == "gem":
        return GEM(memory, strength)
    if name == "agem":
        return AGEMPlugin(memory, sample)
    return ReplayPlugin(memory, batch_size_mem=sample)
