"""RelationLoss on ranks with different samples, and different numbers of them, against float64 on one.

Contracts 1 and 3: every rank has the global value, and the mean over ranks of the gradients of weights
that all ranks share (what DDP makes) is the global gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rmd_dist.losses import RelationLoss
from rmd_dist.parallel import collectives as dist
from tests.losses.naive_graph import features, naive_terms

WIDTH = 24
SIZES = [[9], [5, 4], [1, 8], [3, 3, 3], [0, 2, 7], [2, 1, 5, 4]]


def _weight() -> Tensor:
    return torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)) / WIDTH**0.5


def _on_ranks(sizes: list[int], told: bool, options: dict[str, object]) -> tuple[list[float], Tensor, Tensor]:
    """Terms, the gradient of a shared linear layer's weight, and that of this rank's student features."""
    student, teacher = features(sum(sizes), WIDTH, "related")
    own = slice(sum(sizes[: dist.rank()]), sum(sizes[: dist.rank() + 1]))
    weight = _weight().requires_grad_()
    projected = student[own] @ weight
    projected.retain_grad()
    terms = RelationLoss(**options)(projected, teacher[own], sizes if told else None)
    terms.loss.backward()
    return [v.item() for v in terms], weight.grad, projected.grad


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", ["rows", "gram"])
def test_value_and_averaged_gradient_are_those_of_the_whole_batch(ranks, form, sizes):
    student, teacher = features(sum(sizes), WIDTH, "related")
    for target in ("identity", "teacher"):
        for reference in (64, None):
            options = {"form": form, "node_target": target, "reference_batch": reference}
            weight = _weight().double().requires_grad_()
            projected = student.double() @ weight
            expected = naive_terms(projected, teacher.double(), reference_batch=reference, node_target=target)
            gradient, rows = torch.autograd.grad(expected[0], [weight, projected])
            answers = ranks(len(sizes)).run(_on_ranks, sizes, reference is None, options)
            for terms, _, _ in answers:
                assert terms == answers[0][0], "ranks disagree"
                assert terms == pytest.approx([v.item() for v in expected], rel=2e-6)
            averaged = torch.stack([g for _, g, _ in answers]).mean(0).double()
            assert (averaged - gradient).norm() < 1e-5 * gradient.norm()
            # the convention of dist.py: W times the own rows' share
            gathered = torch.cat([g for _, _, g in answers]).double() / len(sizes)
            assert (gathered - rows).norm() < 1e-5 * rows.norm()


def _edge_cases(form: str) -> list[tuple[float, float, bool]]:
    """(node, edge, finite gradient) of one sample a rank, of copies of the teacher, of constant rows."""
    out = []
    student, teacher = features(2 * dist.world_size(), WIDTH, "related")
    mine = slice(2 * dist.rank(), 2 * dist.rank() + 2)
    constant = student[mine].clone()
    constant[0] = dist.rank()
    cases = (
        (student[mine][:1], teacher[mine][:1]),
        (teacher[mine].clone(), teacher[mine]),
        (constant, teacher[mine]),
    )
    for s, t in cases:
        s.requires_grad_()
        terms = RelationLoss(form=form)(s, t)
        terms.loss.backward()
        out.append((terms.node.item(), terms.edge.item(), bool(s.grad.isfinite().all())))
    return out


@pytest.mark.parametrize("form", ["rows", "gram"])
def test_edge_cases(ranks, form):
    answers = ranks(3).run(_edge_cases, form)
    assert answers[0] == answers[1] == answers[2]
    assert all(finite for _, _, finite in answers[0])
    assert answers[0][1][1] == 0  # a student equal to its teacher


def _collectives(form: str) -> tuple[int, int]:
    """Messages of the forward pass, and of the backward pass."""
    student, teacher = features(4, WIDTH, seed=dist.rank())
    calls: list[str] = []
    originals = {name: getattr(dist.c10d, name) for name in ("all_gather", "all_reduce", "all_to_all_single")}
    for name, original in originals.items():
        setattr(dist.c10d, name, lambda *args, name=name, f=original: (calls.append(name), f(*args))[1])
    try:
        loss = RelationLoss(form=form)(student.requires_grad_(), teacher, [4, 4]).loss
        forward = len(calls)
        loss.backward()
    finally:
        for name, original in originals.items():
            setattr(dist.c10d, name, original)
    return forward, len(calls) - forward


@pytest.mark.parametrize("form", ["rows", "gram"])
def test_backward_sends_nothing(ranks, form):
    assert ranks(2).run(_collectives, form) == [(2, 0), (2, 0)]
