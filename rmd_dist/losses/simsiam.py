"""SimSiam's loss (Chen & He 2021), and how to see whether it has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Per-sample D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2 with D(p, z) = -cos(p, z): four (B, d) -> (B,).

    In [-1, 1], in fp32 under any autocast. z1 and z2 get no gradient (sg: stop gradient).
    """
    with torch.autocast(p1.device.type, enabled=False):
        p1, p2, z1, z2 = (v if v.dtype == torch.float64 else v.float() for v in (p1, p2, z1, z2))
        return -(F.cosine_similarity(p1, z2.detach()) + F.cosine_similarity(p2, z1.detach())) / 2


def feature_spread(z: Tensor) -> Tensor:
    """Standard deviation over the batch of L2-normalised rows z (B, d), times sqrt(d), mean over d: scalar.

    About 1 for features that point everywhere, near 0 when they have collapsed to one direction. No gradient.
    """
    z = F.normalize(z.detach().float(), dim=1)
    return z.std(dim=0, correction=min(1, len(z) - 1)).mean().mul(z.shape[1] ** 0.5)
