"""SimSiam's loss: a slow loop, float64 autograd, closed forms; and the measure of collapse."""

from __future__ import annotations

import pytest
import torch

from rmd_dist.losses import feature_spread, simsiam_loss


def _views(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(5, 8, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(4)]


def test_equals_a_slow_loop():
    p1, p2, z1, z2 = _views()

    def cos(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    expected = [
        -cos(a, d) / 2 - cos(b, c) / 2
        for a, b, c, d in zip(*(v.tolist() for v in (p1, p2, z1, z2)), strict=True)
    ]
    assert simsiam_loss((p1, p2), (z1, z2)).tolist() == pytest.approx(expected, rel=1e-12)


def test_of_more_views_each_is_drawn_to_the_mean_of_the_others():
    p, z = _views()[:3], _views()[1:]
    expected = -sum(
        torch.nn.functional.cosine_similarity(p[i], (z[j] + z[k]) / 2)
        for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    )
    torch.testing.assert_close(simsiam_loss(p, z), expected / 3, rtol=1e-12, atol=1e-14)


def test_gradient_reaches_the_predictions_alone():
    p1, p2, z1, z2 = _views()
    simsiam_loss((p1, p2), (z1, z2)).sum().backward()
    assert z1.grad is None
    assert z2.grad is None
    for p, z in ((p1, z2), (p2, z1)):
        # d cos / d p = (z^ - cos p^) / |p|
        unit_p, unit_z = (v.detach() / v.detach().norm(dim=1, keepdim=True) for v in (p, z))
        cos = (unit_p * unit_z).sum(1, keepdim=True)
        expected = -(unit_z - cos * unit_p) / p.detach().norm(dim=1, keepdim=True) / 2
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=1e-14)


def test_closed_forms():
    a, b = torch.eye(2)
    assert simsiam_loss((a[None], a[None]), (3 * a[None], 2 * a[None])).item() == pytest.approx(-1)
    assert simsiam_loss((a[None], a[None]), (b[None], -a[None])).item() == pytest.approx(0.5)


def test_fp32_inside_autocast():
    views = _views(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = simsiam_loss(views[:2], views[2:])
    assert inside.dtype == torch.float32
    assert torch.equal(inside, simsiam_loss(*([v.float() for v in half] for half in (views[:2], views[2:]))))


def test_spread_is_about_1_when_healthy_and_0_when_collapsed():
    z = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert feature_spread(z).item() == pytest.approx(1, abs=0.02)
    assert feature_spread(7 * z).item() == pytest.approx(feature_spread(z).item())
    assert feature_spread(z[:1].expand(32, -1) * torch.rand(32, 1)).item() == pytest.approx(0, abs=1e-4)
    assert feature_spread(z[:1]).item() == 0
