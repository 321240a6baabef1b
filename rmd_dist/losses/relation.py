"""The relation-graph loss (paper section 3.3), over the samples of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rmd_dist import parallel
from rmd_dist.errors import ConfigError
from rmd_dist.losses.relation_forms import FORMS, NodeTarget, Weights, cheaper, z_scores
from rmd_dist.parallel.numerics import full_precision


class RelationTerms(NamedTuple):
    """Fp32 scalars, equal on every rank; only `loss` carries gradient."""

    loss: Tensor
    """node_weight node + edge_weight edge."""

    node: Tensor
    """||T S^T - I||_F; NaN where student and teacher differ in width, which leaves it undefined."""

    edge: Tensor
    """||E_t - E_s||_F."""


class RelationMatrices(NamedTuple):
    """What a batch's graph looks like, each (B, B): E_t = T T^T, E_s = S S^T, N = T S^T."""

    teacher: Tensor
    student: Tensor
    node: Tensor


def relation_matrices(student: Tensor, teacher: Tensor) -> RelationMatrices:
    """Pearson correlations between the rows of features (B, D), of this rank's samples only: to look at."""
    with torch.no_grad(), full_precision(student.device):
        s, t = (z_scores(f)[0].div_(f.shape[1] ** 0.5).float() for f in (student, teacher))
        return RelationMatrices(t @ t.T, s @ s.T, t @ s.T)


class _Relation(torch.autograd.Function):
    """The gradient needs no collective: `rows` makes it in the forward pass, `gram` in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, sizes: Sequence[int], need: bool, loss: RelationLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = sum(sizes)
        width = max(student.shape[1], teacher.shape[1])
        form = cheaper(batch, width, len(sizes)) if loss.form == "auto" else loss.form
        graph = FORMS[form](student, teacher, sizes, loss.weights(batch), loss.node_target, need)
        norms = graph.squares.sqrt()
        if need:
            inverse = norms.reciprocal().masked_fill_(norms == 0, 0.0)  # the gradient of a norm at 0 is 0
            ctx.gradient = (graph.gradient, inverse) if graph.later else None
            ctx.save_for_backward(*((student, teacher) if graph.later else (graph.gradient(inverse),)))
        node, edge = norms.to(student.dtype).unbind()
        ctx.mark_non_differentiable(node, edge)
        ctx.set_materialize_grads(False)
        return torch.add(loss.node_weight * node, edge, alpha=loss.edge_weight), node, edge

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made, *_ = ctx.saved_tensors  # or the features, looked at here so that torch tells of changed ones
        if ctx.gradient is None:
            return made * grads[0], None, None, None, None
        gradient, inverse = ctx.gradient
        with full_precision(made.device):
            return gradient(inverse * grads[0]), None, None, None, None


class RelationLoss(nn.Module):
    """L_graph = node_weight ||T S^T - I||_F + edge_weight ||E_t - E_s||_F (paper equation 10).

    T and S are the standardised rows of teacher and student over ALL ranks, so that T S^T holds Pearson
    correlations. Every rank sees the global value; gradients follow the convention of rmd_dist.parallel. A
    constant row counts as a zero row and gets no gradient. Computed in fp32 proper, whatever autocast and
    TensorFloat-32 are set to.

    Args:
        node_weight, edge_weight: weights of the two terms, at least 0.
        form: `rows`, `gram`, or `auto` for the cheaper; equal in exact arithmetic (relation_forms.py).
        reference_batch: R, the loss is what is expected of a graph of R nodes, so that its weight keeps
            its meaning at any batch size: diagonal squares count R / B, others R (R - 1) / (B (B - 1)).
            None: the raw norms.
        node_target: `identity` is the paper's. `teacher` (ours, not the paper's) pulls the node matrix
            to E_t instead: a perfect copy of a teacher with clusters then has loss 0.

    Raises:
        ConfigError: for an argument out of its range.
    """

    def __init__(
        self,
        node_weight: float = 0.8,
        edge_weight: float = 0.35,
        form: Literal["auto", "rows", "gram"] = "auto",
        reference_batch: int | None = 64,
        node_target: NodeTarget = "identity",
    ) -> None:
        super().__init__()
        if form not in ("auto", *FORMS):
            raise ConfigError(f"graph.form: {form!r} is not known; use auto, {' or '.join(FORMS)}")
        if node_target not in ("identity", "teacher"):
            raise ConfigError(f"graph.node_target: {node_target!r} is not known; use identity or teacher")
        for name, value in (("node_weight", node_weight), ("edge_weight", edge_weight)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"graph.{name}: {value} is out of range; use a number of at least 0")
        if reference_batch is not None and reference_batch < 2:
            raise ConfigError(
                f"graph.reference_batch: {reference_batch} is too small; use at least 2, or null"
            )
        self.node_weight, self.edge_weight = node_weight, edge_weight
        self.form, self.node_target = form, node_target
        self.reference_batch = reference_batch

    def parts(self) -> tuple[RelationLoss, RelationLoss]:
        """(nodes alone, edges alone), whose losses add up to this one's; for features of their own each."""
        rest = (self.form, self.reference_batch, self.node_target)
        return RelationLoss(self.node_weight, 0.0, *rest), RelationLoss(0.0, self.edge_weight, *rest)

    def weights(self, batch: int) -> Weights:
        """Of diagonal and off-diagonal squares in a graph of `batch` nodes, and of the norms' gradients."""
        diag = off = 1.0
        if self.reference_batch is not None:
            nodes, pairs = self.reference_batch, batch * (batch - 1)
            diag = nodes / batch
            off = nodes * (nodes - 1) / pairs if pairs else diag  # a lone node has no pairs
        scale = parallel.average_gradient_scale()
        return Weights(diag, off, self.node_weight * scale, self.edge_weight * scale)

    def forward(self, student: Tensor, teacher: Tensor, sizes: Sequence[int] | None = None) -> RelationTerms:
        """Terms of the graph of all ranks' samples.

        Args:
            student: this rank's features (b, D).
            teacher: the same samples' (b, D); gets no gradient. With node_weight 0 its width may differ.
            sizes: b of every rank, where the caller knows; unset, those of parallel.row_counts.

        Raises:
            ConfigError: for node matching between features of different width.
            ValueError: where no rank has a sample.
        """
        assert student.dim() == teacher.dim() == 2 and len(student) == len(teacher)
        same = student.shape[1] == teacher.shape[1]
        if not same and self.node_weight:
            raise ConfigError(
                f"node matching compares features one by one, but the student has {student.shape[1]} and the "
                f"teacher {teacher.shape[1]}: use a teacher of the student's model, graph.projector linear, "
                "or graph.node_weight 0"
            )
        if sizes is None:
            sizes = parallel.row_counts(student)
        if sum(sizes) == 0:
            raise ValueError("a relation graph needs at least one sample over all ranks")
        need = student.requires_grad and torch.is_grad_enabled()
        with full_precision(student.device):
            if student.dtype != torch.float64:
                student, teacher = student.float(), teacher.float()
            loss, node, edge = _Relation.apply(student, teacher.to(student.dtype), sizes, need, self)
        return RelationTerms(loss, node if same else torch.full_like(node, torch.nan), edge)

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        names = ("node_weight", "edge_weight", "form", "reference_batch", "node_target")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
