"""rmd_dist.dist in a world of one, and what needs no ranks; tests/distributed/ has the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmd_dist import dist
from rmd_dist.config import ConfigError


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


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.BatchNorm1d(5, affine=False),
    )


def test_conversion_keeps_parameters_buffers_and_keys():
    net = _net()
    before, parameters = net.state_dict(), list(net.parameters())
    net = dist.convert_batch_norm(net, torch.device("cpu"))
    assert isinstance(net[1], dist.GlobalBatchNorm2d)
    assert isinstance(net[4], dist.GlobalBatchNorm1d)
    assert list(net.state_dict()) == list(before)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert dist.convert_batch_norm(net)[1] is net[1]
    alone = dist.convert_batch_norm(nn.BatchNorm2d(3))
    assert isinstance(alone, dist.GlobalBatchNorm2d)


def test_converted_for_one_rank_is_bit_for_bit_the_native_layer():
    native, converted = _net(), dist.convert_batch_norm(_net())
    x = torch.randn(6, 3, 8, 8)
    for train in (True, False):
        native.train(train), converted.train(train)
        assert torch.equal(native(x), converted(x))
    for key, value in native.state_dict().items():
        assert torch.equal(value, converted.state_dict()[key])


def test_cuda_conversion_is_torchs_sync_batch_norm():
    net = dist.convert_batch_norm(_net(), "cuda")
    assert isinstance(net[1], nn.SyncBatchNorm)
    assert list(net.state_dict()) == list(_net().state_dict())


def test_conversion_refuses_what_it_cannot_make_global(monkeypatch):
    assert isinstance(dist.convert_batch_norm(nn.BatchNorm3d(2)), nn.BatchNorm3d)  # one rank needs no other
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="BatchNorm3d"):
        dist.convert_batch_norm(nn.Sequential(nn.BatchNorm3d(2)))
