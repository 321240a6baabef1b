"""Ridge regression on one-hot labels, cross-fitted: one pass over the features, a Gram matrix a fold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.relations.regression import Samples, Scale


def ridge(samples: Samples, scale: Scale, penalties: Sequence[float]) -> list[Tensor]:
    """Weights (D + 1, K, C), float64, for each penalty, as of `regression.fit`. Collective.

    Minimises, for every fold k, the mean of |x W + b - onehot|^2 over the rows outside k + penalty ||W||^2 on
    standardised features. Holds K + 1 matrices (D, D) in float64.
    """
    x, folds, classes = samples.features, samples.folds, samples.num_classes
    width = x.shape[1] + 1  # the last column is 1
    grams = torch.zeros(folds, width, width, dtype=torch.float64, device=x.device)
    moments = torch.zeros(folds, classes, width, dtype=torch.float64, device=x.device)
    for block in samples.blocks():
        rows = scale.standardised(x[block])
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        for fold in range(folds):
            own = samples.fold[block] == fold
            seen = rows[own]
            grams[fold] += seen.T @ seen
            moments[fold].index_add_(0, samples.labels[block][own], seen)
    grams, moments = parallel.all_reduce_sum(grams), parallel.all_reduce_sum(moments)
    found = [x.new_zeros((width, folds, classes), dtype=torch.float64) for _ in penalties]
    for fold in range(folds):
        others = [k for k in range(folds) if k != fold or folds == 1]
        gram, moment = grams[others].sum(0), moments[others].sum(0).T
        count = gram[-1, -1].clamp_min(1)
        middle, share = gram[-1, :-1] / count, moment[-1] / count
        values, vectors = torch.linalg.eigh(gram[:-1, :-1] / count - torch.outer(middle, middle))
        turned = vectors.T @ (moment[:-1] / count - torch.outer(middle, share))
        for weights, penalty in zip(found, penalties, strict=True):
            inner = vectors @ (turned / (values.clamp_min(0) + penalty)[:, None])
            weights[:-1, fold], weights[-1, fold] = inner, share - middle @ inner
    return found
