"""Global batch norm on ranks against nn.BatchNorm over the whole batch in float64: values and gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from rmd_dist.parallel import collectives as dist
from rmd_dist.parallel.batch_norm import GlobalBatchNorm1d, convert_batch_norm

SHAPES = {"map": (3, 5, 4), "vector": (6,), "sequence": (3, 5)}


def _data(n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Inputs whose mean is far from 0 and differs from sample to sample, and gradients of the outputs."""
    g = torch.Generator().manual_seed(n)
    x = (
        torch.randn(n, *shape, generator=g, dtype=torch.float64)
        + torch.randn(n, *[1] * len(shape), generator=g, dtype=torch.float64) * 2
        + 5
    )
    return x, torch.randn(n, *shape, generator=g, dtype=torch.float64)


def _layer(shape: tuple[int, ...], affine: bool, momentum: float | None) -> nn.Module:
    layer = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(
        shape[0], affine=affine, momentum=momentum
    )
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 2, shape[0]))
            layer.bias.copy_(torch.linspace(0, 1, shape[0]))
    return layer


def _run(
    sizes: list[int],
    shape: tuple[int, ...],
    affine: bool,
    momentum: float | None,
    dtype: torch.dtype,
    channels_last: bool,
    device: str = "cpu",
) -> dict[str, Tensor]:
    layer = convert_batch_norm(_layer(shape, affine, momentum))
    layer.to(device, dtype if dtype == torch.float64 else torch.float32)
    start = sum(sizes[: dist.rank()])
    own = slice(start, start + sizes[dist.rank()])
    for step in (1, 0):  # the running statistics see two batches
        x, dy = (t[own].to(device, dtype) * (1 + step) for t in _data(sum(sizes), shape))
        if channels_last:
            x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
        layer.zero_grad()
        x.requires_grad_()
        y = layer(x)
        y.backward(dy)
    assert not channels_last or y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == x.grad.dtype == dtype
    layer.eval()
    out = {"y": y.detach(), "dx": x.grad, "eval": layer(x).detach(), **layer.state_dict()}
    if affine:
        out |= {"dweight": layer.weight.grad, "dbias": layer.bias.grad}
    return {name: value.cpu() for name, value in out.items()}


def _check(answers: list[dict[str, Tensor]], expected: dict[str, Tensor], rtol: float) -> None:
    for key, value in expected.items():
        if key in ("y", "dx", "eval"):
            got = torch.cat([a[key] for a in answers])
        elif key in ("dweight", "dbias"):
            got = torch.stack([a[key] for a in answers]).sum(0)
        else:
            got = answers[0][key]
            assert all(torch.equal(got, a[key]) for a in answers), f"ranks disagree on {key}"
        torch.testing.assert_close(
            got.double(),
            value.double(),
            rtol=rtol,
            atol=rtol * value.abs().max().item(),
            msg=lambda m, key=key: f"{key}: {m}",
        )


@pytest.mark.parametrize("sizes", [[4, 4], [1, 6], [3, 2, 4], [2, 0, 1], [1, 1]])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_batch_norm_over_the_whole_batch(ranks, sizes, shape):
    for affine, momentum in [(True, 0.1), (False, None)]:
        expected = _run([sum(sizes)], shape, affine, momentum, torch.float64, False)
        double = ranks(len(sizes)).run(_run, sizes, shape, affine, momentum, torch.float64, False)
        _check(double, expected, 1e-10)
        if sum(sizes) > 2:  # of two values the gradient is a difference of equals, all rounding in fp32
            single = ranks(len(sizes)).run(_run, sizes, shape, affine, momentum, torch.float32, False)
            _check(single, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_and_half_precision(ranks, dtype):
    sizes, shape = [3, 5], SHAPES["map"]
    for channels_last in (True, False):
        expected = _run([sum(sizes)], shape, True, 0.1, torch.float64, channels_last)
        _check(
            ranks(2).run(_run, sizes, shape, True, 0.1, dtype, channels_last),
            expected,
            1e-5 if dtype == torch.float32 else 3e-2,
        )


def _two_layers_in_autocast() -> tuple[str, float]:
    torch.manual_seed(dist.rank())
    net = convert_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(torch.randn(4, 3, 2, 2) * 3 + dist.rank() * 10)
        F.relu(y).sum().backward()
    return str(y.dtype), dist.all_reduce_sum(y.float().mean()).item() / dist.world_size()


def test_under_autocast(ranks):
    for dtype, mean in ranks(2).run(_two_layers_in_autocast):
        assert dtype == "torch.bfloat16"
        assert abs(mean) < 0.01  # over both ranks; each rank's own is not near 0


def _one_value() -> str:
    layer = GlobalBatchNorm1d(2)
    try:
        layer(torch.zeros(1 - dist.rank(), 2))
    except ValueError as error:
        return str(error)
    return ""


def test_a_single_value_is_refused(ranks):
    assert all("more than 1 value" in message for message in ranks(2).run(_one_value))


def _nothing_is_asked(obj: object) -> list[object]:
    raise AssertionError(f"a message was sent for what is known: {obj}")


def _known_sizes(sizes: list[int], fused: bool, known: bool) -> tuple[Tensor, Tensor]:
    """Output and input gradient of one layer, with the ranks' sizes known beforehand or not."""
    torch.manual_seed(0)
    layer = convert_batch_norm(BatchNormAct2d(3) if fused else nn.BatchNorm2d(3)).double()
    start = sum(sizes[: dist.rank()])
    x, dy = (t[start : start + sizes[dist.rank()]] for t in _data(sum(sizes), (3, 5, 4)))
    x = x.requires_grad_()
    asking = dist.all_gather_object
    try:
        with dist.rows_known(sizes) if known else contextlib.nullcontext():
            if known and all(sizes):
                dist.all_gather_object = _nothing_is_asked
            y = layer(x)
    finally:
        dist.all_gather_object = asking
    y.backward(dy)
    return y.detach(), x.grad


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("sizes", [[3, 2], [4, 0]])
def test_what_the_host_knows_is_not_asked_for(ranks, sizes, fused):
    """And timm's batch norm with an activation has its ReLU on ranks too."""
    (whole,) = ranks(1).run(_known_sizes, [sum(sizes)], fused, False)
    for known in (False, True):
        parts = ranks(2).run(_known_sizes, sizes, fused, known)
        for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(found), expected, rtol=1e-10, atol=1e-10)
    assert (whole[0] >= 0).all() == fused
