"""Principal components of the standardised features."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA

from rmd_dist.relations import estimate
from rmd_dist.relations.project import project
from rmd_dist.relations.regression import Scale, own_logits
from tests.relations.blobs import blobs, pairflip, random_weights, samples_of


@pytest.fixture
def samples():
    found = blobs(600, 20, pairflip(4, 0.3), apart=2.0)
    mixing = torch.randn(20, 20, generator=torch.Generator().manual_seed(5))
    return samples_of(found.features @ mixing * torch.logspace(-3, 3, 20) + 7, found.given, 4)


def _standardised(samples):
    scale = Scale.of(samples)
    return (samples.features.double() - scale.mean) * scale.inverse_std


def test_against_scikit_learn(samples):
    expected = torch.from_numpy(PCA(6, svd_solver="full").fit_transform(_standardised(samples).numpy()))
    projected, projection = project(samples, 6)
    assert projected.features.dtype == torch.float32
    same = (projected.features * expected).sum(0).sign()
    torch.testing.assert_close(projected.features.double(), expected * same, atol=1e-4, rtol=1e-4)
    axes = projection.axes
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    assert (projected.labels, projected.fold) == (samples.labels, samples.fold)


def test_half_precision_stays(samples):
    projected, _ = project(replace(samples, features=_standardised(samples).half()), 6)
    assert projected.features.dtype == torch.float16


def test_components_that_do_not_vary_are_left_out(samples):
    """Else rounding, standardised, would look like features."""
    x = samples.features[:, :5]
    projected, _ = project(replace(samples, features=torch.cat([x, 2 * x, torch.ones(600, 3)], 1)), 256)
    assert projected.features.shape == (600, 5)
    nothing, _ = project(replace(samples, features=torch.ones(600, 7)), 256)
    assert (nothing.features == 0).all()


def test_raised_weights_give_the_logits_of_the_components(samples):
    samples = replace(samples, features=samples.features.double())
    projected, projection = project(samples, 6)
    numbers = torch.arange(6, dtype=torch.float64)
    scale, weights = Scale(numbers - 2, 1 / (1 + numbers)), random_weights(projected)
    raised = projection.raised(scale, weights)
    torch.testing.assert_close(
        own_logits(samples, projection.scale, raised), own_logits(projected, scale, weights)
    )


def test_wide_features_of_many_rows_are_projected(samples, monkeypatch):
    """With as many components as features the estimate is the one without."""
    plain = estimate(samples)
    asked = []

    def told(samples):
        asked.append(samples.features.shape)
        return project(replace(samples, features=samples.features.double()), 20)

    module = importlib.import_module("rmd_dist.relations.estimate")
    monkeypatch.setattr(module, "project", told)
    for many, wide, times in [(600, 19, 0), (599, 20, 0), (599, 19, 1)]:
        monkeypatch.setattr(module, "MANY", many)
        monkeypatch.setattr(module, "WIDE", wide)
        found = estimate(samples)
        assert len(asked) == times
    assert found.weights.shape == plain.weights.shape
    torch.testing.assert_close(own_logits(samples, found.scale, found.weights), found.logits)
