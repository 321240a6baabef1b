"""The first principal components of standardised features, in their stead."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.relations.regression import Samples, Scale

_NOTHING = 1e-10  # share of the first component's variance below which one is rounding


@dataclass(frozen=True)
class Projection:
    """Standardise, then project."""

    scale: Scale
    axes: Tensor
    """(D, width), float64, orthonormal columns by falling variance."""

    def raised(self, scale: Scale, weights: Tensor) -> Tensor:
        """Weights (width + 1, K, C) on standardised components as those (D + 1, K, C) on `self.scale`."""
        inner = (weights[:-1].flatten(1) * scale.inverse_std[:, None]).view_as(weights[:-1])
        bias = weights[-1] - torch.tensordot(scale.mean, inner, 1)
        return torch.cat([torch.tensordot(self.axes, inner, 1), bias[None]])


def project(samples: Samples, width: int = 256) -> tuple[Samples, Projection]:
    """Samples of the first `width` principal components (or as many as vary), and how they came about.

    Components are of the features' type. The covariance (D, D) is summed in float64 over the rows of all
    ranks; axes are the same bits on all of them, the greatest entry of each positive. Collective.
    """
    x, scale = samples.features, Scale.of(samples)

    def squares(block: slice) -> Tensor:
        rows = scale.standardised(x[block])
        return rows.T @ rows

    covariance = samples.sum(squares, (x.shape[1], x.shape[1])) / samples.count
    values, vectors = torch.linalg.eigh(covariance)
    varies = int((values > _NOTHING * values[-1]).sum())
    axes = vectors.flip(1)[:, : max(1, min(width, varies))]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    axes = parallel.all_reduce_sum(axes if parallel.is_main() else torch.zeros_like(axes))
    found = x.new_empty((len(x), axes.shape[1]))
    most = torch.finfo(x.dtype).max
    for block in samples.blocks():
        found[block] = (scale.standardised(x[block]) @ axes).clamp(-most, most)
    return replace(samples, features=found), Projection(scale, axes)
