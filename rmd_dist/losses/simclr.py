"""SimCLR's loss (Chen et al. 2020): the normalised, temperature-scaled cross-entropy, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rmd_dist import parallel


def nt_xent(z: Sequence[Tensor], temperature: float = 0.2) -> Tensor:
    """Per-sample mean over the views of NT-Xent: two or more views' projections, each (b, d) -> (b,).

    Collective. Each projection is to find the other view of its image among all other projections, those of
    all ranks' images: minus the log-softmax of cosine / temperature there (equation 1; with more views the
    mean over the others, Khosla et al. 2020, equation 2). At least 0, log(V B - 1) where all are alike, in
    fp32 under any autocast. Ranks may hold different numbers of samples.
    """
    with torch.autocast(z[0].device.type, enabled=False):
        own = torch.stack([v if v.dtype == torch.float64 else v.float() for v in z], dim=1)  # (b, V, d)
        own = F.normalize(own, dim=2)
        counts = parallel.row_counts(own)
        rows = parallel.global_rows(own, counts)  # (B, V, d)
        cosines = own.flatten(0, 1) @ rows.flatten(0, 1).T
        logits = (cosines / temperature).view(*own.shape[:2], *rows.shape[:2])
        first, views = sum(counts[: parallel.rank()]), torch.eye(len(z), dtype=torch.bool, device=own.device)
        samples = torch.arange(len(rows), device=own.device)
        same_sample = (samples[first : first + len(own), None] == samples)[:, None, :, None]
        same_view = views[None, :, None, :]
        logits = logits.masked_fill(same_sample & same_view, -torch.inf)
        found = logits.flatten(2).log_softmax(2).view_as(logits)
        others = found.masked_fill(~(same_sample & ~same_view), 0.0).sum((2, 3)) / (len(z) - 1)
        return -others.mean(1)
