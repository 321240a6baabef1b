"""rmd_dist.parallel in a world of one, and what needs no ranks; tests/distributed/ has the rest."""

from __future__ import annotations

import pytest
import torch

from rmd_dist.parallel import collectives as dist


def test_a_world_of_one():
    assert (dist.world_size(), dist.rank(), dist.is_main()) == (1, 0, True)
    assert dist.average_gradient_scale() == 1.0
    dist.barrier()
    dist.shutdown()
    x = torch.arange(6.0).reshape(3, 2)
    for out in (dist.all_reduce_sum(x), dist.all_gather_rows(x)):
        assert torch.equal(out, x)
        assert out.data_ptr() != x.data_ptr()
    assert dist.all_gather_object({"a": 1}) == [{"a": 1}]
    assert dist.broadcast_object("b") == "b"


def test_global_mean_of_one_rank_is_the_mean():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean = dist.global_mean(values)
    mean.backward()
    assert mean.item() == 3.0
    torch.testing.assert_close(values.grad, torch.full((3,), 1 / 3))


def test_global_mean_of_half_precision_is_taken_in_fp32():
    values = torch.full((5000,), 3.1, dtype=torch.bfloat16, requires_grad=True)
    mean = dist.global_mean(values)
    mean.backward()
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(values[0].item(), rel=1e-6)
    assert values.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("n", [0, 1, 7, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_cover_everything_once_in_order(n, world):
    rows = list(range(n))
    shares = [rows[dist.share(n, r, world)] for r in range(world)]
    assert [row for s in shares for row in s] == rows
    sizes = dist.share_sizes(n, world)
    assert sizes == [len(s) for s in shares]
    assert max(sizes) - min(sizes) <= 1
