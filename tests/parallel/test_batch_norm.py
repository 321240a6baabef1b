"""Global batch norm in a world of one; tests/distributed/test_batch_norm.py has the ranks."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from rmd_dist.errors import ConfigError
from rmd_dist.parallel import collectives as dist
from rmd_dist.parallel.batch_norm import GlobalBatchNorm1d, GlobalBatchNorm2d, convert_batch_norm


def _net(fused: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchNormAct2d(4) if fused else nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.BatchNorm1d(5, affine=False),
    )


def test_conversion_keeps_parameters_buffers_and_keys():
    net = _net()
    before, parameters = net.state_dict(), list(net.parameters())
    net = convert_batch_norm(net)
    assert isinstance(net[1], GlobalBatchNorm2d)
    assert isinstance(net[4], GlobalBatchNorm1d)
    assert list(net.state_dict()) == list(before)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert convert_batch_norm(net)[1] is net[1]
    alone = convert_batch_norm(nn.BatchNorm2d(3))
    assert isinstance(alone, GlobalBatchNorm2d)


@pytest.mark.parametrize("fused", [False, True])
def test_converted_for_one_rank_is_bit_for_bit_the_native_layer(fused):
    native, converted = _net(fused), convert_batch_norm(_net(fused))
    x = torch.randn(6, 3, 8, 8)
    for train in (True, False):
        native.train(train), converted.train(train)
        assert torch.equal(native(x), converted(x))
    for key, value in native.state_dict().items():
        assert torch.equal(value, converted.state_dict()[key])


def test_conversion_refuses_what_it_cannot_make_global(monkeypatch):
    assert isinstance(convert_batch_norm(nn.BatchNorm3d(2)), nn.BatchNorm3d)  # one rank needs no other
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="BatchNorm3d"):
        convert_batch_norm(nn.Sequential(nn.BatchNorm3d(2)))
