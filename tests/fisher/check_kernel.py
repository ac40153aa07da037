"""Compare the Triton backend with the torch backend in float64; ``python tests/fisher/check_kernel.py cpu|cuda``.

On a CPU run it with ``TRITON_INTERPRET=1``. It needs torch and triton only, besides transformers for whole models.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from forgetting.fisher import diagonal_fisher
from forgetting.fisher.examples import Spans
from forgetting.fisher.kernel import triton_product_squares
from forgetting.fisher.uses import Product, loop_product_squares

UNEVEN = Spans((0, 5, 70, 130), (5, 69, 70, 201), 210)  # one example is empty, and padding is in between
CASES = [
    # examples, O, I
    (Spans.rows(3, 64), 64, 64),
    (Spans.rows(5, 7), 33, 130),
    (Spans.rows(1, 130), 70, 5),
    (Spans.rows(4, 1), 20, 12),
    (UNEVEN, 65, 40),
]


def check_products(device: str) -> None:
    """Products of every kind of range, in fp32 and bf16, in one use and two."""
    for spans, rows, columns in CASES:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
            generator = torch.Generator().manual_seed(rows)
            G, A = (torch.randn(spans.tokens, n, generator=generator).to(device, dtype) for n in (rows, columns))
            uses = [Product(G, A, spans)]
            for count in (1, 2):
                ours = torch.zeros(rows, columns, device=device)
                exact = torch.zeros(rows, columns, dtype=torch.float64, device=device)
                triton_product_squares(ours, uses * count)
                loop_product_squares(exact, [Product(u.G.double(), u.A.double(), u.spans) for u in uses * count])
                error = float((ours - exact).abs().max() / exact.abs().max())
                assert error <= tolerance, (spans, rows, columns, dtype, count, error)
                again = torch.zeros(rows, columns, device=device)
                triton_product_squares(again, uses * count)
                assert torch.equal(ours, again)


def check_models(device: str) -> None:
    """Whole models, padded and tied."""
    from tests.fisher.families import FAMILIES

    for family in ("llama-tied", "gpt2-tied", "albert", "t5-tied", "lora"):
        model, batch = FAMILIES[family]()
        model = model.float().to(device)
        values = [
            diagonal_fisher(model, [batch], estimator="empirical", backend=backend).values  # type: ignore[arg-type]
            for backend in ("triton", "torch")
        ]
        for name, expected in values[1].items():
            scale = max(float(expected.max()), 1e-12)
            assert float((values[0][name] - expected).abs().max()) <= 1e-5 * scale, (family, name)


if __name__ == "__main__":
    check_products(sys.argv[1])
    check_models(sys.argv[1])
    print("all agree")
