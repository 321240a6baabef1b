"""The noise matrix T[c, j] = p(labelled j | truly c), and the temperature that goes with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.relations.numerics import minimise, row_blocks

PRIOR = 0.05
"""Pseudo-counts of symmetric noise that every row of T starts with, as a share of the mean rows of a class,
but from 10 to 100. A fixed 100 hold T near symmetric noise where a class has 400 rows: on 4 000 images of
CIFAR-10 pairwise flips are then not found."""

_TINY = 1e-12
_SHARPEST = 15.0  # log: of a few rows that are told apart the likelihood would have it grow for ever


class Calibration(NamedTuple):
    """What turns logits of true classes into probabilities of given labels."""

    noise_matrix: Tensor
    """(C, C), float64, rows sum to 1."""
    temperature: Tensor
    """Scalar, float64: logits are divided by it."""
    log_likelihood: float
    """Mean log p(given | x) over the samples."""

    def clean(self, logits: Tensor) -> Tensor:
        """p(true class | x) (n, C), float64, of logits (n, C)."""
        return (logits.double() / self.temperature).softmax(1)

    def posterior(self, logits: Tensor, labels: Tensor) -> Tensor:
        """p(true class | x, given label) (n, C), float64."""
        joint = self.clean(logits) * self.noise_matrix[:, labels].T
        return joint / joint.sum(1, keepdim=True).clamp_min(_TINY)


def symmetric(kept: float, like: Tensor) -> Tensor:
    """The matrix of symmetric noise with this diagonal."""
    classes = len(like)
    off = (1 - kept) / max(classes - 1, 1)
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    return off + (kept - off) * eye


def pseudo_counts(rows: float) -> float:
    """Of the prior of a row of T, where a class has `rows` rows on average."""
    return min(max(PRIOR * rows, 10.0), 100.0)


def calibrate(logits: Tensor, labels: Tensor, start: Tensor, iterations: int = 60) -> Calibration:
    """Temperature t and T that make the given labels likeliest: sum_c softmax(z / t)_c T[c, y]. Collective.

    Regularised regressions are less sure than they are right; without t that doubt would pass for noise, or
    noise for doubt. `logits` (n, C) out of fold; `start`: T to begin with, whose diagonal the prior takes.
    """
    classes = len(start)
    parameters = torch.cat([torch.zeros(1).to(start), start.clamp_min(1e-6).log().flatten()])
    count = float(parallel.all_reduce_sum(torch.tensor([float(len(labels))]).to(start)))
    prior = pseudo_counts(count / classes) * symmetric(float(start.diagonal().mean()), start)

    def closure() -> Tensor:
        sharpness = parameters[0].clamp(-_SHARPEST, _SHARPEST).exp()
        T = parameters[1:].view(classes, classes).softmax(1)
        likelihood, slope, joint = _sums(logits, labels, sharpness, T)
        gradient = joint - joint.sum(1, keepdim=True) * T + prior - prior.sum(1, keepdim=True) * T
        parameters.grad = -torch.cat([slope[None], gradient.flatten()]) / count
        return -(likelihood + (prior * T.clamp_min(1e-300).log()).sum()) / count

    minimise(parameters, closure, iterations, tolerance_grad=1e-8, tolerance_change=1e-10)
    sharpness = parameters[0].clamp(-_SHARPEST, _SHARPEST).exp()
    T = parameters[1:].view(classes, classes).softmax(1)
    likelihood, _, _ = _sums(logits, labels, sharpness, T)
    return Calibration(T, 1 / sharpness, float(likelihood) / count)


def _sums(logits: Tensor, labels: Tensor, sharpness: Tensor, T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over all ranks: (log-likelihood, its slope in log sharpness, expected (true, given) counts (C, C))."""
    classes = len(T)
    total = torch.zeros(2 + classes**2, dtype=torch.float64, device=T.device)
    for block in row_blocks(len(labels), classes):
        z, y = logits[block].double() * sharpness, labels[block]
        p = z.softmax(1)
        joint = p * T[:, y].T
        evidence = joint.sum(1, keepdim=True).clamp_min(_TINY)
        posterior = joint / evidence
        total[0] += evidence.log().sum()
        total[1] += ((posterior - p) * z).sum()
        total[2:].view(classes, classes).T.index_add_(0, y, posterior)
    total = parallel.all_reduce_sum(total)
    return total[0], total[1], total[2:].view(classes, classes)
