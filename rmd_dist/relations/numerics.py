"""What the estimates of relations share: rows in blocks, and the minimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK_NUMBERS = 1 << 22
"""Numbers of a block of rows that are held at once, whatever the number of rows."""


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows, each of a bounded number of numbers; `width`: numbers of a row."""
    size = max(256, BLOCK_NUMBERS // max(width, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def minimise(
    parameters: Tensor,
    closure: Callable[[], Tensor],
    iterations: int,
    tolerance_grad: float,
    tolerance_change: float,
) -> None:
    """Minimise by L-BFGS, in place; `closure` gives the objective and sets the gradient of `parameters`."""
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
    )
    with torch.no_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
