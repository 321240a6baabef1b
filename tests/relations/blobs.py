"""Gaussian blobs with labels flipped by a known matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rmd_dist.relations import Samples, fold_of


class Blobs(NamedTuple):
    features: Tensor
    """(n, D), fp32."""
    true: Tensor
    given: Tensor


def blobs(n: int, width: int, noise: Tensor, apart: float = 1.0, seed: int = 0) -> Blobs:
    """Classes of unit covariance, whose means have entries of deviation `apart`; noise (C, C): T."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.randint(len(noise), (n,), generator=draw)
    means = apart * torch.randn(len(noise), width, generator=draw)
    features = means[true] + torch.randn(n, width, generator=draw)
    given = torch.multinomial(noise[true].float(), 1, generator=draw)[:, 0]
    return Blobs(features, true, given)


def pairflip(classes: int, rate: float) -> Tensor:
    """T whose classes are taken for the next one, float64."""
    eye = torch.eye(classes, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(1, 1)


def samples_of(features: Tensor, labels: Tensor, classes: int, folds: int = 5) -> Samples:
    return Samples(features, labels, fold_of(features, folds), classes, folds)


def random_weights(samples: Samples, seed: int = 0) -> Tensor:
    shape = (samples.features.shape[1] + 1, samples.folds, samples.num_classes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
