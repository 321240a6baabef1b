"""SimCLR's loss (Chen et al. 2020): the normalised, temperature-scaled cross-entropy, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rmd_dist import parallel
from rmd_dist.parallel.numerics import full_precision


def nt_xent(z: Sequence[Tensor], temperature: float = 0.2) -> Tensor:
    """NT-Xent of two or more views' projections, each (b, d), over the samples of all ranks: a scalar.

    Each projection is to find the other view of its image among all other projections, those of all ranks'
    images: minus the log-softmax of cosine / temperature there (equation 1; with more views the mean over the
    others, Khosla et al. 2020, equation 2). At least 0, log(V B - 1) where all are alike. In fp32 proper
    under any autocast. Collective: the value is the same on every rank, whatever its number of samples, and
    the mean over ranks of the gradients is the global gradient.
    """
    with torch.autocast(z[0].device.type, enabled=False):
        own = torch.stack([v if v.dtype == torch.float64 else v.float() for v in z], dim=1)
        loss: Tensor = _NTXent.apply(F.normalize(own, dim=2), temperature)
        return loss


class _NTXent(torch.autograd.Function):
    """Rows (b, V, d) of length 1 to the mean over the anchors a of lse_a - mean over a's positives k of S_ak.

    S is Z Z^T / temperature without its diagonal, lse_a the logarithm of row a's sum of exponentials. S is
    symmetric, so that the gradient of a rank's own rows needs of other ranks' anchors only their lse: nothing
    is sent back.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, temperature: float) -> Tensor:
        counts = parallel.row_counts(own)
        rows = parallel.all_gather_rows(own, counts)
        (b, views, _), total = own.shape, len(rows)
        with full_precision(own.device):
            similarity = (own.flatten(0, 1) @ rows.flatten(0, 1).T / temperature).view(b, views, total, views)
        first, index = sum(counts[: parallel.rank()]), torch.arange(total, device=own.device)
        same_sample = (index[first : first + b, None] == index)[:, None, :, None]
        same_view = torch.eye(views, dtype=torch.bool, device=own.device)[:, None, :]
        similarity = similarity.masked_fill(same_sample & same_view, -torch.inf)
        lse = similarity.flatten(2).logsumexp(2)
        positive = (same_sample & ~same_view).to(own.dtype) / (views - 1)
        found = similarity.masked_fill(positive == 0, 0.0).mul_(positive).sum((2, 3))
        anchors = total * views
        of_all = parallel.all_gather_rows(lse, counts)
        weights = (similarity - lse[..., None, None]).exp() + (similarity - of_all).exp() - 2 * positive
        ctx.scale = parallel.average_gradient_scale() / (anchors * temperature)
        ctx.save_for_backward(weights.flatten(2).flatten(0, 1), rows)
        return parallel.all_reduce_sum((lse - found).sum()) / anchors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weights, rows = ctx.saved_tensors
        with full_precision(rows.device):
            gradient = weights @ rows.flatten(0, 1)
        return (grads[0] * ctx.scale * gradient).view(-1, *rows.shape[1:]), None
