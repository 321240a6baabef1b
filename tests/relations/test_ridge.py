"""Ridge regression out of fold, against scikit-learn."""

from __future__ import annotations

import torch
from sklearn.linear_model import Ridge

from rmd_dist.relations import numerics
from rmd_dist.relations.regression import Scale
from rmd_dist.relations.ridge import ridge
from tests.relations.blobs import blobs, pairflip, samples_of


def test_weights_against_scikit_learn(monkeypatch):
    monkeypatch.setattr(numerics, "BLOCK_NUMBERS", 1)  # 256 rows a block
    found = blobs(500, 8, pairflip(3, 0.2))
    samples = samples_of(found.features * torch.logspace(-3, 3, 8) - 2, found.given, 3, folds=4)
    scale = Scale.of(samples)
    x = (samples.features.double() - scale.mean) * scale.inverse_std
    onehot = torch.eye(3).double()[samples.labels]
    for penalty, weights in zip((1.0, 0.01), ridge(samples, scale, (1.0, 0.01)), strict=True):
        for k in range(4):
            seen = samples.fold != k
            sklearn = Ridge(alpha=penalty * int(seen.sum())).fit(x[seen], onehot[seen])
            torch.testing.assert_close(weights[:-1, k], torch.from_numpy(sklearn.coef_).T)
            torch.testing.assert_close(weights[-1, k], torch.from_numpy(sklearn.intercept_))
