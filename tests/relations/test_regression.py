"""Logistic regression through a noise matrix, against autograd, a dense loop and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rmd_dist.relations import numerics, regression
from rmd_dist.relations.regression import Samples, Scale, fit, objective, own_logits
from tests.relations.blobs import blobs, pairflip, random_weights, samples_of

T = 0.9 * pairflip(4, 0.3) + 0.025


@pytest.fixture
def samples():
    found = blobs(400, 6, T, seed=1)
    return samples_of(found.features * torch.logspace(-2, 2, 6) + 3, found.given, 4, folds=3)


def _dense(samples: Samples, weights: torch.Tensor, l2: float, noise: torch.Tensor | None) -> torch.Tensor:
    """The objective, written down."""
    x = samples.features.double()
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(samples.folds):
        seen = samples.fold != k if samples.folds > 1 else samples.fold == k
        p = (x[seen] @ weights[:-1, k] + weights[-1, k]).softmax(1)
        p = p if noise is None else p @ noise
        likelihood = p.gather(1, samples.labels[seen][:, None]).log()
        total = total - likelihood.mean() + l2 / 2 * weights[:-1, k].square().sum()
    return total


@pytest.mark.parametrize("noise", [None, T], ids=["plain", "through T"])
@pytest.mark.parametrize("folds", [1, 3])
def test_objective_and_gradient(samples, noise, folds, monkeypatch):
    monkeypatch.setattr(numerics, "BLOCK_NUMBERS", 1)  # 256 rows a block
    if folds == 1:
        samples = replace(samples, fold=torch.zeros_like(samples.fold), folds=1)
    weights = random_weights(samples).requires_grad_()
    expected = _dense(samples, weights, 0.1, noise)
    expected.backward()
    with torch.no_grad():
        counts = regression._counts(samples)
        loss, gradient = objective(samples, Scale.of(samples), weights, counts, 0.1, noise)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, weights.grad)


def test_weights_against_scikit_learn(samples):
    """Without a noise matrix; its C is 1 / (rows * l2)."""
    l2, scale = 0.01, Scale.of(samples)
    weights = fit(samples, scale, l2, iterations=200)
    x = ((samples.features.double() - scale.mean) * scale.inverse_std).numpy()
    for k in range(samples.folds):
        seen = (samples.fold != k).numpy()
        sklearn = LogisticRegression(C=1 / (seen.sum() * l2), tol=1e-8, max_iter=1000)
        sklearn.fit(x[seen], samples.labels.numpy()[seen])
        expected = torch.from_numpy(sklearn.predict_log_proba(x))
        found = (torch.from_numpy(x) @ weights[:-1, k] + weights[-1, k]).log_softmax(1)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_all_folds_at_once_are_separate_fits(samples):
    scale = Scale.of(samples)
    together = fit(samples, scale, 0.01, T, iterations=300)
    for k in range(samples.folds):
        seen = samples.fold != k
        alone = Samples(
            samples.features[seen], samples.labels[seen], torch.zeros(int(seen.sum())).long(), 4, 1
        )
        found = fit(alone, scale, 0.01, T, iterations=300)
        torch.testing.assert_close(together[:, k], found[:, 0], atol=2e-3, rtol=0)


def test_logits_are_of_the_regression_that_has_not_seen_the_row(samples):
    scale, weights = Scale.of(samples), random_weights(samples)
    x = (samples.features.double() - scale.mean) * scale.inverse_std
    found = own_logits(samples, scale, weights)
    for row in range(0, 400, 37):
        expected = x[row] @ weights[:-1, samples.fold[row]] + weights[-1, samples.fold[row]]
        torch.testing.assert_close(found[row], expected.float())


def test_a_row_does_not_move_its_own_logits(samples):
    """Features and label of one row have no part in the regression of its fold."""
    scale = Scale.of(samples)
    changed = samples.labels.clone()
    changed[5] = (changed[5] + 1) % 4
    before, after = (
        own_logits(s, scale, fit(s, scale, 0.01, T, iterations=20))
        for s in (samples, replace(samples, labels=changed))
    )
    torch.testing.assert_close(after[5], before[5], atol=1e-3, rtol=0)
    other = int((samples.fold != samples.fold[5]).nonzero()[0])
    assert (after[other] - before[other]).abs().max() > 2e-3


def test_scale():
    # The mean of three 0.1 is not 0.1.
    x = torch.tensor([[1e6, 1e-6, 0.1], [3e6, 3e-6, 0.1], [2e6, 5e-6, 0.1]], dtype=torch.float64)
    scale = Scale.of(samples_of(x, torch.zeros(3).long(), 2))
    standardised = (x - scale.mean) * scale.inverse_std
    torch.testing.assert_close(standardised[:, :2].square().mean(0), torch.ones(2).double())
    assert (standardised[:, 2] == 0).all()


def test_autocast_is_not_heard(samples):
    scale, weights = Scale.of(samples), random_weights(samples)
    expected = own_logits(samples, scale, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own_logits(samples, scale, weights), expected)
