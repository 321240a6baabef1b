"""Collectives on real gloo ranks with different data, and different amounts of it, on each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rmd_dist.parallel import collectives as dist

WORLDS = [2, 3, 4]


def _rows(n: int, width: int = 3) -> Tensor:
    """The rows of the global batch; each rank takes its own."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def _own(rows: Tensor, sizes: list[int]) -> Tensor:
    start = sum(sizes[: dist.rank()])
    return rows[start : start + sizes[dist.rank()]]


def _gather(sizes: list[int], width: int, told: bool) -> bool:
    rows = _rows(sum(sizes), width)
    return torch.equal(dist.all_gather_rows(_own(rows, sizes), sizes if told else None), rows)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 5], [0, 2], [2, 1, 4], [4, 4, 4], [2, 0, 1, 7]])
def test_gathered_rows_are_the_global_batch(ranks, sizes):
    # width 5000 goes by the collective, width 3 by direct exchange
    for width, told in [(3, False), (3, True), (5000, False)]:
        assert all(ranks(len(sizes)).run(_gather, sizes, width, told))


def _wrong_sizes() -> str:
    try:
        dist.all_gather_rows(torch.zeros(2, 3), [1, 1])
    except AssertionError as error:
        return str(error)
    return "passed"


def test_sizes_that_are_wrong_are_told_and_not_sent(ranks):
    assert ranks(2).run(_wrong_sizes) == [f"rank {r} holds 2 rows, sizes says [1, 1]" for r in (0, 1)]


def _reduce(numel: int) -> tuple[bool, float]:
    x = torch.full((numel,), float(10 ** dist.rank()))
    kept = x.clone()
    total = dist.all_reduce_sum(x)
    return (
        torch.equal(x, kept),
        total[-1].item(),
    )


@pytest.mark.parametrize("world", WORLDS)
def test_sums(ranks, world):
    for numel in (1, 20_000):
        expected = float(sum(10**r for r in range(world)))
        assert ranks(world).run(_reduce, numel) == [(True, expected)] * world


def _objects() -> tuple[list[str], str]:
    return dist.all_gather_object(f"of {dist.rank()}"), dist.broadcast_object(f"of {dist.rank()}", src=1)


def test_objects(ranks):
    assert ranks(3).run(_objects) == [(["of 0", "of 1", "of 2"], "of 1")] * 3


def _mean(sizes: list[int]) -> tuple[float, Tensor]:
    """Global mean of squared rows' sums times a weight, and the weight's gradient on this rank."""
    x = _own(_rows(sum(sizes)), sizes)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss = dist.global_mean((x @ weight).square())
    loss.backward()
    return loss.item(), weight.grad


@pytest.mark.parametrize("sizes", [[4], [3, 3], [1, 6], [2, 0, 3], [1, 2, 3, 4]])
def test_global_mean_has_the_global_value_and_ddp_averages_to_the_global_gradient(ranks, sizes):
    ((value, gradient),) = ranks(1).run(_mean, [sum(sizes)])
    answers = ranks(len(sizes)).run(_mean, sizes)
    for answer, _ in answers:
        assert answer == pytest.approx(value, rel=1e-12)
    averaged = torch.stack([g for _, g in answers]).mean(0)  # what DDP does
    torch.testing.assert_close(averaged, gradient, rtol=1e-12, atol=0)
