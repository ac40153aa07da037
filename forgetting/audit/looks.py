"""Sequential audits: look after an eighth, a quarter, half and all of the items, and stop when the verdict is decided.

Look k may err at a rate of alpha_k = α(t_k) − α(t_{k−1}), with t_k the share of the items seen and the spending
function α(t) = α t² (Lan & DeMets 1983, Biometrika 70:659; the power family of Kim & DeMets 1987, Biometrika 74:149).
Each look is a whole judgement at its alpha_k. The union bound gives the audit's error rate, Σ alpha_k = α: it holds for
any dependence between looks, capabilities and tests, so for Holm's correction within a look too, at the price of a
somewhat smaller power than bounds that use the looks' correlation. The last look has three quarters of α.

Items are taken in a random order, drawn by a fixed seed and the capability's name (so not by the order of the suite): a
task's items may be sorted (by subject, by length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
SEED = 0


def alphas(alpha: float) -> list[float]:
    """Each look's part of the error rate."""
    spent = [alpha * share**2 for share in SHARES]
    return [after - before for before, after in zip([0.0, *spent], spent, strict=False)]


def parts(sizes: Mapping[str, int]) -> list[dict[str, list[int]]]:
    """Positions of the items that each look adds, by capability; a capability with too few adds none at first.

    Args:
        sizes: Items per capability.
    """
    orders = {name: _generator(name).permutation(n) for name, n in sizes.items()}
    found: list[dict[str, list[int]]] = []
    for before, after in zip((0.0, *SHARES), SHARES, strict=False):
        found.append(
            {
                name: sorted(int(i) for i in order[round(before * len(order)) : round(after * len(order))])
                for name, order in orders.items()
                if round(before * len(order)) < round(after * len(order))
            }
        )
    return found


def _generator(name: str) -> np.random.Generator:
    """Of a capability's order."""
    return np.random.default_rng([SEED, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
