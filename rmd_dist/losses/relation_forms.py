"""The two closed forms of the relation graph's squared norms and of their gradients, over all ranks.

Notation, for B samples over all ranks, b of them here, and D features: T (teacher) and S (student) hold
z-scores, rows of mean 0 and variance 1, so that a Pearson correlation is an inner product of rows over D;
every matrix below is D times its namesake in the paper, until the end. Delta = S - T.

    E_s - E_t = S S^T - T T^T = Delta S^T + T Delta^T      exact, and 0 where student and teacher agree,
                                                           unlike the difference of two rounded products
    node residual = S T^T - D I                            or Delta T^T for node_target="teacher"

A squared norm is w_off (sum of off-diagonal squares) + w_diag (sum of diagonal squares), in short
sum_ij w_ij x_ij^2, and its gradient is taken with respect to this rank's student rows alone:

    d edge / d s_i = 4 sum_j w_ij (E_s - E_t)_ij s_j        (row i and column i of a symmetric matrix)
    d node / d s_i = 2 sum_j w_ij residual_ij t_j

Constants enter products as Python numbers: a tensor made of them would make a GPU wait for the host.

`rows_form` makes this rank's b rows of the matrices; `gram_form` takes D x D sums over ranks instead.
Neither has a collective in its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rmd_dist import parallel

BLOCK_NUMEL = {"cpu": 2**21, "cuda": 2**26}
"""Numbers in the largest temporary matrix: 8 MiB in fp32, which a CPU's cache holds; 256 MiB, so that a GPU
does not wait for the launches of many small ones."""

_CONSTANT = 1e-6
"""A row whose standard deviation is below so many times its mean is constant: the rest is rounding."""

_OPERATIONS_PER_FLOAT = 1000
"""Floating-point operations in the time that one number takes over a link, for the choice of a form."""

NodeTarget = Literal["identity", "teacher"]


class Weights(NamedTuple):
    """Weights of diagonal and off-diagonal squares, and of the two norms in a gradient; `off` is above 0."""

    diag: float
    off: float
    node: float
    edge: float


class Graph(NamedTuple):
    """Global squared norms, equal on every rank, and their gradient on this rank's rows."""

    squares: Tensor
    """(2,) fp64: node, edge."""

    gradient: Callable[[Tensor], Tensor]
    """1 / norms (2,) -> gradient of weights.node x (node norm) + weights.edge x (edge norm), (b, D)."""

    later: bool
    """Whether `gradient` can wait for the backward pass: it needs the features and D x D numbers alone."""


class Aligned(NamedTuple):
    """A student's and a teacher's z-scores, and what turns a gradient of the student's into its features'."""

    s: Tensor  # (b, D)
    t: Tensor  # (b, D)
    delta: Tensor  # (b, D), S - T
    features: Tensor  # (b, D_s)
    mean: Tensor  # (b, 1)
    rstd: Tensor  # (b, 1), 0 for a constant row

    def feature_gradient(self, grad: Tensor) -> Tensor:
        """d / d s (b, D) -> d / d features (b, D_s): the backward of a layer norm."""
        width = self.features.shape[1]
        wanted = [True, False, False]
        out: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad[:, :width], self.features, [width], self.mean, self.rstd, None, None, wanted
        )[0]
        return out


def block_numel(device: torch.device) -> int:
    """Numbers in the largest temporary matrix on a device: a block of rows of B x B, or of features."""
    return BLOCK_NUMEL.get(device.type, BLOCK_NUMEL["cpu"])


def z_scores(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (b, D) -> fp64 z-scores, means and 1 / standard deviation; z and the last are 0 where constant."""
    rows = features.to(torch.float64, copy=True)  # and in place from here: at 64 rows this is what costs
    mean = rows.mean(1, keepdim=True)
    rows.sub_(mean)
    std = torch.linalg.vector_norm(rows, dim=1, keepdim=True).mul_(features.shape[1] ** -0.5)
    rstd = std.masked_fill_(std <= mean.abs().mul_(_CONSTANT), torch.inf).reciprocal_()
    return rows.mul_(rstd), mean, rstd


def align(student: Tensor, teacher: Tensor) -> Aligned:
    """Z-scores of features (b, D_s) and (b, D_t), with D the larger width; in the features' own precision.

    The difference is taken in fp64: in fp32 it would be mostly rounding for a student near its teacher.
    """
    if student.shape[1] == teacher.shape[1]:
        both, mean, rstd = z_scores(torch.cat([student, teacher]))
        mean, rstd = mean[: len(student)], rstd[: len(student)]
    else:
        s, mean, rstd = z_scores(student)
        t, _, _ = z_scores(teacher)
        # Zero columns change no inner product. The caller divides by D_s, the teacher's are over D_t.
        t *= (s.shape[1] / t.shape[1]) ** 0.5
        width = max(s.shape[1], t.shape[1])
        both = torch.cat([F.pad(s, (0, width - s.shape[1])), F.pad(t, (0, width - t.shape[1]))])
    own = student.dtype
    s, t = both.to(own, copy=True).chunk(2)  # copy: `both` may be fp64 as well, and is used up next
    exact_s, exact_t = both.chunk(2)
    return Aligned(s, t, exact_s.sub_(exact_t).to(own), student, mean.to(own), rstd.to(own))


def cheaper(batch: int, width: int, world: int) -> Literal["rows", "gram"]:
    """The form that takes fewer operations, with numbers moved between ranks counted in.

    Both have 5 matrix products, of 2 B^2 D / W operations each in `rows`, of 2 B D^2 / W in `gram`.
    Between ranks `rows` gathers 2 B D numbers, and `gram` reduces 3 D^2, each of which moves twice.
    """
    move = _OPERATIONS_PER_FLOAT * (world - 1) / world
    rows = 10 * batch * batch * width / world + move * 2 * batch * width
    gram = 10 * batch * width * width / world + move * 6 * width * width
    return "rows" if rows <= gram else "gram"


def rows_form(
    student: Tensor, teacher: Tensor, sizes: Sequence[int], weights: Weights, target: NodeTarget, need: bool
) -> Graph:
    """This rank's rows of the matrices: O(b B D) work, and blocks of them in memory.

    One all-gather of S and Delta, one reduction of two numbers.

    Args:
        student, teacher: features (b, D) and (b, D').
        sizes: b of every rank.
        need: whether the gradient is wanted; it is made in the same pass over the matrices.
    """
    own = align(student, teacher)
    s, t, delta = own.s, own.t, own.delta
    batch, start, width = sum(sizes), sum(sizes[: parallel.rank()]), s.shape[1]
    all_s, all_t, all_delta = s, t, delta
    if parallel.world_size() > 1:
        gathered = parallel.all_gather_rows(torch.cat([s, delta], dim=1), sizes)
        all_s, all_delta = gathered[:, :width], gathered[:, width:]
        all_t = all_s - all_delta
    identity = target == "identity"
    root, scale = (weights.diag / weights.off) ** 0.5, weights.off / student.shape[1] ** 2
    squares = s.new_zeros(2, dtype=torch.float64)
    by_node, by_edge = weights.node * scale, 2 * weights.edge * scale  # d sqrt(x) = dx / (2 sqrt(x))
    step = max(64, block_numel(s.device) // max(batch, 1))
    one_block = 0 < len(s) <= step
    parts = s.new_empty(2, *s.shape) if need and not one_block else None
    for block in (slice(first, min(first + step, len(s))) for first in range(0, len(s), step)):
        matrices = s.new_empty(2, block.stop - block.start, batch)
        node, edge = matrices.unbind()
        torch.mm(s[block] if identity else delta[block], all_t.T, out=node)
        if len(node) == batch:  # the middle U = S - Delta / 2 halves the work: Delta U^T + U Delta^T
            half = torch.mm(delta, torch.sub(s, delta, alpha=0.5).T)
            torch.add(half, half.T, out=edge)
        else:
            torch.mm(delta[block], all_s.T, out=edge).addmm_(t[block], all_delta.T)
        diagonal = torch.diagonal(matrices, start + block.start, 1, 2)  # a view
        if identity:
            diagonal[0].sub_(student.shape[1])
        if root != 1:  # w_ij / w_off: its root for the square, and once more for the gradient
            diagonal.mul_(root)
        # fp64 over rows, so that rounding does not grow with the batch
        row_norms = torch.linalg.vector_norm(matrices, dim=2)
        squares += torch.linalg.vector_norm(row_norms, dim=1, dtype=torch.float64).square_()
        if need and root != 1:
            diagonal.mul_(root)
        if parts is not None:
            parts[0, block].addmm_(node, all_t, beta=0, alpha=by_node)
            parts[1, block].addmm_(edge, all_s, beta=0, alpha=by_edge)

    def gradient(inverse: Tensor) -> Tensor:
        b, a = inverse.to(s.dtype).unbind()
        if parts is None:  # the one block is still at hand
            grad = torch.mm(node.mul_(b * by_node), all_t).addmm_(edge.mul_(a * by_edge), all_s)
        else:
            grad = parts[0].mul_(b).add_(parts[1].mul_(a))
        return own.feature_gradient(grad)

    return Graph(parallel.all_reduce_sum(squares).mul_(scale), gradient, later=False)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of entries, in fp64."""
    return torch.sum(a * b, dtype=torch.float64)


def gram_form(
    student: Tensor,
    teacher: Tensor,
    sizes: Sequence[int],
    weights: Weights,
    target: NodeTarget,
    need: bool,  # noqa: ARG001 - the gradient costs nothing until it is called for
) -> Graph:
    """D x D sums over ranks: O(b D^2) work, O(D^2) memory, whatever the batch. Arguments as of `rows_form`.

    With G = S^T S, X = S^T Delta, Q = Delta^T Delta, and T^T T = G - X - X^T + Q, over all samples:

        ||E_s - E_t||^2 = <G + T^T T, Q> + 2 <X^T - Q, X>
        ||S T^T||^2 = <G, T^T T>          ||Delta T^T||^2 = <Q, T^T T>

    and the diagonals are sums over samples. One reduction of 3 D^2 numbers, one of four.
    """
    width, identity = max(student.shape[1], teacher.shape[1]), target == "identity"
    target_diag = float(student.shape[1]) if identity else 0.0
    step = max(64, block_numel(student.device) // 16 // width)  # a dozen temporaries, some of them in fp64
    blocks = list(zip(torch.split(student, step), torch.split(teacher, step), strict=True))

    def prepared(student: Tensor, teacher: Tensor) -> tuple[Aligned, Tensor, Tensor]:
        own = align(student, teacher)
        node_diag = torch.linalg.vecdot(own.s if identity else own.delta, own.t)
        return own, node_diag, torch.linalg.vecdot(own.delta, own.s + own.t)

    sums, squares = student.new_zeros(3, width, width), student.new_zeros(4, dtype=torch.float64)
    for block in blocks:
        own, node_diag, edge_diag = prepared(*block)
        sums[0].addmm_(own.s.T, own.s)
        sums[1].addmm_(own.s.T, own.delta)
        sums[2].addmm_(own.delta.T, own.delta)
        diagonals = torch.stack([node_diag, edge_diag, node_diag - target_diag, edge_diag])
        squares += diagonals.double().square().sum(1)
    g, x, q = parallel.all_reduce_sum(sums) if parallel.world_size() > 1 else sums
    diag_in_sums, diag = parallel.all_reduce_sum(squares).view(2, 2)
    xt = x.T.contiguous()
    tt = (g - x).sub_(xt).add_(q)
    # Both sums of squares, of S T^T or Delta T^T, and of Delta S^T and T Delta^T:
    gross = torch.stack([_inner((g if identity else q), tt), _inner(g + tt, q)])
    off = gross - diag_in_sums
    off[1] += 2 * _inner(xt - q, x)
    # a difference that is all rounding is 0: its root would not be small, nor a gradient over that root
    eps = torch.finfo(student.dtype).eps
    off = off.masked_fill(off < 8 * eps * gross, 0.0)
    diag = diag.masked_fill(diag < sum(sizes) * (64 * eps * student.shape[1]) ** 2, 0.0)
    scale = 1 / student.shape[1] ** 2

    def gradient(inverse: Tensor) -> Tensor:
        # edge: Delta G + T X^T; node: S T^T T, or Delta T^T T. Gathered by what stands on the left:
        b, a = inverse.to(student.dtype).unbind()
        b, a = b * (weights.node * scale), a * (2 * weights.edge * scale)
        of_s, of_delta = xt * (a * weights.off), (g - xt).mul_(a * weights.off)
        (of_s if identity else of_delta).addcmul_(tt, b * weights.off)
        out = torch.empty_like(student)
        for block, out_block in zip(blocks, torch.split(out, step), strict=True):
            own, node_diag, _ = prepared(*block)
            grad = torch.mm(own.s, of_s).addmm_(own.delta, of_delta)
            node_change = weights.diag * (node_diag - target_diag) - weights.off * node_diag
            # the edges' diagonal pulls along s_i itself, which z-scores cannot follow: no change needed
            grad.addcmul_(b * node_change[:, None], own.t)
            out_block.copy_(own.feature_gradient(grad))
        return out

    return Graph((weights.off * off + weights.diag * diag) * scale, gradient, later=True)


FORMS = {"rows": rows_form, "gram": gram_form}
