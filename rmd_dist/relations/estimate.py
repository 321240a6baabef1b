"""What features say of labels: how they were confused, and what each one probably is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmd_dist.relations.noise_matrix import Calibration, calibrate, symmetric
from rmd_dist.relations.project import project
from rmd_dist.relations.regression import Samples, Scale, fit, own_logits
from rmd_dist.relations.ridge import ridge

L2S = (1e-1, 1e-2, 1e-3, 1e-4)
PENALTIES = (1.0, 0.1, 0.01)
ROUNDS = 4
ENOUGH = 1e-4  # of mean log-likelihood, that a round must gain for another one
MANY, WIDE = 20_000, 512
"""With more rows over all ranks and wider features than these, `estimate` works on their first 256 principal
components: on CIFAR-10 with 1 280 features that loses nothing and takes a fifth of the time."""

_FIRST_KEPT = 0.95
"""Diagonal of the first T, which the pseudo-counts have. With 0.8, twice as many of the right labels of a few
hundred images are flagged; with 0.99, ridge regression finds half of symmetric noise 0.2."""

_RIDGE_SCALE = 10.0  # its outputs are shares; as logits they are flat


@dataclass(frozen=True)
class Relations:
    """Noise matrix and what a cross-fitted classifier of true classes says of each row of this rank."""

    logits: Tensor
    """(n, C), fp32, of true classes, out of fold."""
    calibration: Calibration
    """Noise matrix, temperature, held-out likelihood of the given labels."""
    l2: float
    """Penalty of the regression that the likelihood chose."""
    scale: Scale
    """Of the features that were given, projected or not."""
    weights: Tensor
    """(D + 1, K, C), float64, of each fold, on features standardised by `scale`; the last: biases."""

    def clean(self) -> Tensor:
        """p(true class | x) (n, C), float64, without a look at the row's own label."""
        return self.calibration.clean(self.logits)

    def posterior(self, labels: Tensor) -> Tensor:
        """p(true class | x, given label) (n, C), float64."""
        return self.calibration.posterior(self.logits, labels)


def estimate(samples: Samples, l2s: Sequence[float] = L2S, rounds: int = ROUNDS) -> Relations:
    """Relations by logistic regression through a noise matrix, re-estimated until it settles. Collective.

    T starts from a ridge regression. Everything is chosen by the held-out likelihood of the given labels,
    with T and temperature in it: without T it would prefer regressions that are unsure of everything.
    """
    if samples.features.shape[1] > WIDE and samples.count > MANY:
        samples, projection = project(samples)
        found = _estimate(samples, l2s, rounds)
        weights = projection.raised(found.scale, found.weights)
        return replace(found, scale=projection.scale, weights=weights)
    return _estimate(samples, l2s, rounds)


def _estimate(samples: Samples, l2s: Sequence[float], rounds: int) -> Relations:
    quick = estimate_quickly(samples)
    scale, T = quick.scale, quick.calibration.noise_matrix
    found: Relations | None = None
    for l2 in sorted(l2s, reverse=True):
        # Each from zero: two classes that a strong penalty has blurred into each other would stay so.
        weights = fit(samples, scale, l2, T, iterations=30)
        tried = _calibrated(samples, scale, weights, l2, T)
        if found is not None and _gain(found, tried) < 0:
            break
        found = tried
    assert found is not None
    for _ in range(rounds):
        T = found.calibration.noise_matrix
        weights = fit(samples, scale, found.l2, T, start=found.weights, iterations=20)
        tried = _calibrated(samples, scale, weights, found.l2, T)
        gain = _gain(found, tried)
        found = tried if gain > 0 else found
        if gain < ENOUGH:
            break
    return found


def estimate_quickly(samples: Samples, penalties: Sequence[float] = PENALTIES) -> Relations:
    """Relations by ridge regression: one pass over the features. Collective."""
    scale = Scale.of(samples)
    start = symmetric(
        _FIRST_KEPT, torch.eye(samples.num_classes, dtype=torch.float64, device=samples.features.device)
    )
    tried = [
        _calibrated(samples, scale, _RIDGE_SCALE * weights, penalty, start)
        for penalty, weights in zip(penalties, ridge(samples, scale, penalties), strict=True)
    ]
    return max(tried, key=lambda relations: relations.calibration.log_likelihood)


def _calibrated(samples: Samples, scale: Scale, weights: Tensor, l2: float, T: Tensor) -> Relations:
    logits = own_logits(samples, scale, weights)
    return Relations(logits, calibrate(logits, samples.labels, T), l2, scale, weights)


def _gain(before: Relations, after: Relations) -> float:
    return after.calibration.log_likelihood - before.calibration.log_likelihood
