"""The relation graph as the paper writes it: whole matrices, autograd. What RelationLoss is held against."""

from __future__ import annotations

import torch
from torch import Tensor


def _standardized(features: Tensor) -> Tensor:
    centred = features - features.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True)


def naive_terms(
    student: Tensor,
    teacher: Tensor,
    node_weight: float = 0.8,
    edge_weight: float = 0.35,
    reference_batch: int | None = 64,
    node_target: str = "identity",
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, node, edge) of features (B, D), in their own precision; no constant rows."""
    s, t = _standardized(student), _standardized(teacher)
    batch = len(s)
    weights = torch.ones(batch, batch, dtype=s.dtype)
    if reference_batch is not None:
        if batch > 1:
            weights *= reference_batch * (reference_batch - 1) / (batch * (batch - 1))
        weights.fill_diagonal_(reference_batch / batch)
    edge = (weights * (t @ t.T - s @ s.T).square()).sum().sqrt()
    node = edge.new_tensor(float("nan"))
    if s.shape[1] == t.shape[1]:
        target = torch.eye(batch, dtype=s.dtype) if node_target == "identity" else t @ t.T
        node = (weights * (t @ s.T - target).square()).sum().sqrt()
    loss = edge_weight * edge + (node_weight * node if node_weight else 0)
    return loss, node, edge


def features(batch: int, width: int, kind: str = "apart", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher features (B, D) in fp32.

    `apart` have nothing in common, `related` are positive and clustered like those of networks, `near`
    are too and differ by 1e-4.
    """
    g = torch.Generator().manual_seed(1000 * seed + batch)
    teacher, student = (torch.randn(batch, width, generator=g) for _ in range(2))
    if kind == "apart":
        return student, teacher
    centres = torch.randn(5, width, generator=g)[torch.randint(5, (batch,), generator=g)]
    teacher = (teacher + 2 * centres).relu()
    if kind == "related":
        return (student + centres).relu(), teacher
    return teacher + 1e-4 * student, teacher
