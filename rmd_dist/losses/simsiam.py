"""SimSiam's loss (Chen & He 2021), and how to see whether it has collapsed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def simsiam_loss(p: Sequence[Tensor], z: Sequence[Tensor]) -> Tensor:
    """Per-sample mean over the views i of D(p_i, sg(t_i)): two or more p_i and z_i, each (B, d) -> (B,).

    D(p, t) = -cos(p, t), t_i the mean of the other views' z_j: with two views SimSiam's loss, with more
    FastSiam's (Pototzky et al. 2022, equation 4). In [-1, 1], in fp32 under any autocast. z gets no gradient
    (sg: stop gradient).
    """
    with torch.autocast(p[0].device.type, enabled=False):
        p, z = ([v if v.dtype == torch.float64 else v.float() for v in views] for views in (p, z))
        z = [each.detach() for each in z]
        cosines = [F.cosine_similarity(p[i], _mean(z[:i] + z[i + 1 :])) for i in range(len(p))]
        return -sum(cosines[1:], cosines[0]) / len(p)


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(0)


def feature_spread(z: Tensor) -> Tensor:
    """Standard deviation over the batch of L2-normalised rows z (B, d), times sqrt(d), mean over d: scalar.

    About 1 for features that point everywhere, near 0 when they have collapsed to one direction. No gradient.
    """
    z = F.normalize(z.detach().float(), dim=1)
    return z.std(dim=0, correction=min(1, len(z) - 1)).mean().mul(z.shape[1] ** 0.5)
