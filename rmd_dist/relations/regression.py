"""Logistic regression through a noise matrix, cross-fitted: all folds in one pass over the features.

    p(given = j | x) = sum_c softmax(W x + b)_c T[c, j]          T[c, j] = p(labelled j | truly c)

The gradient of -log p at the logits is softmax - posterior, where posterior_c ~ softmax_c T[c, j] (forward
correction, Patrini et al. 2017); without noise, T the identity, that is the softmax minus the one-hot label.

All of it is computed in float64, a block of rows at a time. L-BFGS is stopped long before it has converged,
and by then has made 10^4 times and more of the differences in rounding between one order of additions and
another: in fp32, posteriors of one and of three ranks differ by 10^-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.relations.numerics import minimise, row_blocks

_CONSTANT = 1e-6  # a column whose deviation is below this share of its size says nothing
_TINY = 1e-300


@dataclass(frozen=True)
class Samples:
    """This rank's rows; all sums are over the rows of all ranks."""

    features: Tensor
    """(n, D), of any floating type, on any device; never copied as a whole."""
    labels: Tensor
    """(n,), the given ones, in 0 to C - 1."""
    fold: Tensor
    """(n,), in 0 to K - 1: of the K regressions the one that does not see the row."""
    num_classes: int
    folds: int

    def blocks(self) -> Iterator[slice]:
        """Slices of rows whose features and logits are a bounded number of numbers."""
        return row_blocks(len(self.labels), self.features.shape[1] + 2 * self.folds * self.num_classes)

    def sum(self, of: Callable[[slice], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Sum of `of(block)`, of this shape, over the blocks of all ranks, in float64. Collective."""
        total = torch.zeros(shape, dtype=torch.float64, device=self.features.device)
        for block in self.blocks():
            total += of(block)
        return parallel.all_reduce_sum(total)

    @property
    def count(self) -> int:
        """Rows over all ranks. Collective."""
        here = torch.tensor([len(self.labels)], dtype=torch.float64, device=self.features.device)
        return int(parallel.all_reduce_sum(here).item())


@dataclass(frozen=True)
class Scale:
    """What standardises features: (x - mean) / std; constant columns become 0."""

    mean: Tensor
    """(D,), float64."""
    inverse_std: Tensor
    """(D,), float64; 0 for constant columns."""

    @classmethod
    def of(cls, samples: Samples) -> Scale:
        """By the rows of all ranks, in two passes. Collective."""
        x, count, width = samples.features, samples.count, samples.features.shape[1:]
        mean = samples.sum(lambda block: x[block].double().sum(0), width) / count
        variance = samples.sum(lambda block: (x[block].double() - mean).square().sum(0), width) / count
        std = variance.sqrt()
        constant = std <= _CONSTANT * mean.abs() + torch.finfo(torch.float32).tiny
        return cls(mean, torch.where(constant, 0.0, 1.0 / std.clamp_min(1e-300)))

    def standardised(self, rows: Tensor) -> Tensor:
        """Raw rows (b, D) as standardised ones, in float64."""
        return (rows.double() - self.mean) * self.inverse_std

    def folded(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (D + 1, M) for standardised rows as (V (D, M), c (M,)) for raw ones."""
        inner = weights[:-1] * self.inverse_std[:, None]
        return inner, weights[-1] - self.mean @ inner

    def unfolded(self, gradient: Tensor, sums: Tensor) -> Tensor:
        """From x'G (D, M) and 1'G (M,) of raw rows to the gradient (D + 1, M) for standardised ones."""
        inner = (gradient - self.mean[:, None] * sums) * self.inverse_std[:, None]
        return torch.cat([inner, sums[None]])


def logits(samples: Samples, scale: Scale, weights: Tensor, block: slice) -> Tensor:
    """Logits (b, K, C) of a block of rows by the weights (D + 1, K, C) of every fold."""
    inner, bias = scale.folded(weights.flatten(1))
    z = torch.addmm(bias, samples.features[block].double(), inner)
    return z.view(-1, samples.folds, samples.num_classes)


def own_logits(samples: Samples, scale: Scale, weights: Tensor) -> Tensor:
    """Logits (n, C), fp32, of this rank's rows by the weights that have not seen them."""
    found = samples.features.new_empty((len(samples.labels), samples.num_classes), dtype=torch.float32)
    for block in samples.blocks():
        z, fold = logits(samples, scale, weights, block), samples.fold[block]
        found[block] = z[torch.arange(len(z), device=z.device), fold]
    return found


def fit(
    samples: Samples,
    scale: Scale,
    l2: float,
    noise_matrix: Tensor | None = None,
    start: Tensor | None = None,
    iterations: int = 40,
) -> Tensor:
    """Weights (D + 1, K, C), float64, that make the labels outside each fold likeliest. Collective.

    Minimises, for every fold k, mean of -log p(given | x) over the rows outside k + l2/2 ||W_k||^2 on
    standardised features. The K problems are one for L-BFGS: they differ in 1/K of their rows, so that its
    steps suit them all. `noise_matrix`: T (C, C), all above 0; None: without noise. Ranks make the same
    steps, to the bit.
    """
    x, folds, classes = samples.features, samples.folds, samples.num_classes
    weights = x.new_zeros((x.shape[1] + 1, folds, classes), dtype=torch.float64)
    weights = weights if start is None else start.clone()
    counts = _counts(samples)

    def closure() -> Tensor:
        loss, weights.grad = objective(samples, scale, weights, counts, l2, noise_matrix)
        return loss

    minimise(weights, closure, iterations, tolerance_grad=1e-6, tolerance_change=1e-9)
    return weights


def objective(
    samples: Samples, scale: Scale, weights: Tensor, counts: Tensor, l2: float, noise_matrix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `fit` minimises, summed over the folds, and its gradient, like `weights`. Collective.

    `counts` (K,): rows that each fold's regression sees.
    """
    total = torch.zeros_like(weights).flatten(1)
    losses = torch.zeros_like(counts)
    for block in samples.blocks():
        given = samples.labels[block]
        used = _used(samples, block)
        p = logits(samples, scale, weights, block).log_softmax(2)
        if noise_matrix is None:
            index = given[:, None, None].expand(-1, samples.folds, 1)
            likelihood = p.gather(2, index)[:, :, 0]
            gradient = p.exp_().scatter_add_(2, index, torch.full_like(index, -1, dtype=p.dtype))
        else:
            joint = p.exp_() * noise_matrix.T[given][:, None]
            evidence = joint.sum(2, keepdim=True).clamp_min(_TINY)
            likelihood = evidence[:, :, 0].log()
            gradient = p - joint / evidence
        gradient = (gradient * used[:, :, None]).flatten(1)
        total[:-1] += samples.features[block].double().T @ gradient
        total[-1] += gradient.sum(0)
        losses -= (likelihood * used).sum(0)
    sums = parallel.all_reduce_sum(torch.cat([total.flatten(), losses]))
    total, losses = sums[: total.numel()].view_as(total), sums[total.numel() :]
    by_fold = scale.unfolded(total[:-1], total[-1]).view_as(weights) / counts[:, None]
    by_fold[:-1] += l2 * weights[:-1]
    return (losses / counts).sum() + l2 / 2 * weights[:-1].square().sum(), by_fold


def _counts(samples: Samples) -> Tensor:
    """(K,), float64: rows over all ranks that each fold's regression sees, at least 1. Collective."""
    sizes = parallel.all_reduce_sum(torch.bincount(samples.fold, minlength=samples.folds).double())
    return (sizes.sum() - sizes if samples.folds > 1 else sizes).clamp_min(1)


def _used(samples: Samples, block: slice) -> Tensor:
    """(b, K): 1 where a fold's regression sees a row, else 0."""
    if samples.folds == 1:
        return torch.ones(block.stop - block.start, 1, dtype=torch.float64, device=samples.features.device)
    numbers = torch.arange(samples.folds, device=samples.features.device)
    return (samples.fold[block, None] != numbers).double()
