"""SimCLR's loss: a slow loop, closed forms, and any number of ranks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.losses import nt_xent


def _views(count: int = 2, rows: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 8, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def slow(views: list[Tensor], temperature: float) -> float:
    """By the paper's equation 1, one pair after the other."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    z = {(v, i): row.tolist() for v, view in enumerate(views) for i, row in enumerate(view)}

    def loss(a: tuple[int, int], b: tuple[int, int]) -> float:
        others = sum(math.exp(cosine(z[a], z[k]) / temperature) for k in z if k != a)
        return -math.log(math.exp(cosine(z[a], z[b]) / temperature) / others)

    pairs = [(v, w) for v in range(len(views)) for w in range(len(views)) if v != w]
    losses = [loss((v, i), (w, i)) for v, w in pairs for i in range(len(views[0]))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equals_a_slow_loop(count, temperature):
    views = _views(count)
    assert nt_xent(views, temperature).item() == pytest.approx(slow(views, temperature), rel=1e-12)


def test_gradients_are_those_of_finite_differences():
    views = [view.requires_grad_() for view in _views(3, 4)]
    assert torch.autograd.gradcheck(lambda *z: nt_xent(z, 0.5), views)


def test_closed_forms():
    alike = torch.ones(6, 8)
    assert nt_xent([alike, 2 * alike]).item() == pytest.approx(math.log(11))
    found = torch.eye(8)
    assert nt_xent([found, 3 * found], 0.01).item() == pytest.approx(0, abs=1e-6)
    assert nt_xent([alike[:1], -alike[:1]]).item() == 0  # there is nothing else to be told from


def test_fp32_inside_autocast():
    views = _views(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(views)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, nt_xent([view.float() for view in views]))


def test_backward_sends_nothing(ranks):
    """By symmetry a rank needs of others only what the forward pass has gathered."""
    assert ranks(2).run(_messages) == [0, 0]


def _messages() -> int:
    """Messages between tensors of ranks in the backward pass."""
    views = [view.requires_grad_() for view in _views()]
    loss, sent = nt_xent(views), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_reduce", "all_to_all_single"):
            patch.setattr(parallel.collectives.c10d, name, lambda *_: sent.append(1))
        loss.backward()
    return len(sent)


def _of_ranks(sizes: list[int]) -> tuple[float, Tensor]:
    """The global loss of linear projections of this rank's rows, and the projections' gradient here."""
    first = sum(sizes[: parallel.rank()])
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)
    own = [view[first : first + sizes[parallel.rank()]] @ weight for view in _views(3, sum(sizes))]
    loss = nt_xent(own, 0.5)
    loss.backward()
    return loss.item(), weight.grad


@pytest.mark.parametrize("sizes", [[3, 3], [1, 4, 2], [2, 0, 3]])
def test_negatives_come_from_all_ranks(ranks, sizes):
    """The global value everywhere, and DDP's average of the gradients is the global gradient."""
    ((value, gradient),) = ranks(1).run(_of_ranks, [sum(sizes)])
    answers = ranks(len(sizes)).run(_of_ranks, sizes)
    assert [answer for answer, _ in answers] == pytest.approx([value] * len(sizes), rel=1e-12)
    averaged = torch.stack([g for _, g in answers]).mean(0)
    torch.testing.assert_close(averaged, gradient, rtol=1e-10, atol=1e-14)
