"""Relations of blobs whose noise is known, and of features and labels that have something odd about them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from rmd_dist import parallel
from rmd_dist.relations import Relations, Samples, classifier, estimate, estimate_plainly, estimate_quickly
from rmd_dist.relations.noise_matrix import symmetric
from tests.relations.blobs import blobs, pairflip, samples_of

MODULE = importlib.import_module("rmd_dist.relations.estimate")  # the package has a function of this name
ASYMMETRIC = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0], [0.0, 0.0, 0.6, 0.4], [0.0, 0.0, 0.4, 0.6]]
).double()


def _auroc(relations: Relations, given: torch.Tensor, true: torch.Tensor) -> float:
    posterior = relations.posterior(given)
    return float(roc_auc_score(given != true, 1 - posterior[torch.arange(len(given)), given]))


def test_noise_of_blobs_is_found():
    """One class into another, and two into each other: both T and the wrong labels."""
    found = blobs(4000, 16, ASYMMETRIC, apart=0.8)
    relations = estimate(samples_of(found.features, found.given, 4))
    assert (relations.calibration.noise_matrix - ASYMMETRIC).abs().max() < 0.05
    assert _auroc(relations, found.given, found.true) > 0.97
    posterior = relations.posterior(found.given)
    assert (posterior.argmax(1) == found.true).double().mean() > 0.93
    assert relations.clean().argmax(1).eq(found.true).double().mean() > 0.93


def test_noise_of_blobs_is_found_quickly():
    noise = 0.7 * torch.eye(4).double() + 0.3 / 4
    found = blobs(4000, 16, noise, apart=0.8)
    relations = estimate_quickly(samples_of(found.features, found.given, 4))
    assert (relations.calibration.noise_matrix - noise).abs().max() < 0.05
    assert _auroc(relations, found.given, found.true) > 0.97


@pytest.mark.parametrize("estimated", [estimate, estimate_quickly])
def test_order_of_rows_does_not_matter(estimated):
    found = blobs(500, 8, ASYMMETRIC)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    plain = estimated(samples_of(found.features, found.given, 4))
    turned = estimated(samples_of(found.features[order], found.given[order], 4))
    torch.testing.assert_close(
        turned.posterior(found.given[order]), plain.posterior(found.given)[order], atol=1e-6, rtol=0
    )


def _odd() -> dict[str, Samples]:
    noise = symmetric(0.8, torch.eye(4)).double()
    features, _, given = blobs(300, 10, noise)
    wide, _, few = blobs(40, 100, noise)
    two = blobs(100, 3, pairflip(2, 0.2))
    many = blobs(500, 10, symmetric(0.8, torch.eye(50)).double())
    scales = torch.logspace(-6, 6, 10)
    return {
        "constant columns": samples_of(torch.cat([features, torch.full((300, 2), 3.7)], 1), given, 4),
        "scales of 1e-6 to 1e6": samples_of(features * scales + 10 * scales, given, 4),
        "half": samples_of(features.half(), given, 4),
        "bfloat16": samples_of(features.bfloat16(), given, 4),
        "a class without rows": samples_of(features, given, 6),
        "two classes": samples_of(two.features, two.given, 2),
        "50 classes of 10 rows": samples_of(many.features, many.given, 50, folds=2),
        "fewer rows than features": samples_of(wide, few, 4),
        "rows all equal": samples_of(torch.ones(300, 10), given, 4),
        "fewer rows than folds": samples_of(features[:3], given[:3], 4),
        "one label": samples_of(features, torch.zeros_like(given), 4),
        "separable without noise": samples_of(100 * two.features, two.true, 2),
        "one far row": samples_of(
            torch.cat([features, 1e8 * features[:1]]), torch.cat([given, given[:1]]), 4
        ),
    }


@pytest.mark.parametrize("name", _odd())
def test_nothing_is_ever_nan(name):
    samples = _odd()[name]
    for relations in (estimate(samples), estimate_quickly(samples)):
        posterior = relations.posterior(samples.labels)
        torch.testing.assert_close(posterior.sum(1), torch.ones(len(posterior)).double())
        T = relations.calibration.noise_matrix
        torch.testing.assert_close(T.sum(1), torch.ones(len(T)).double())
        assert relations.logits.isfinite().all()
        assert relations.weights.isfinite().all()


def test_scale_of_columns_does_not_matter():
    found = blobs(300, 10, ASYMMETRIC)
    plain = estimate(samples_of(found.features.double(), found.given, 4))
    fold = samples_of(found.features.double(), found.given, 4).fold
    scales = torch.logspace(-6, 6, 10)
    scaled = samples_of(found.features.double() * scales + 100 * scales, found.given, 4)
    torch.testing.assert_close(
        estimate(replace(scaled, fold=fold)).posterior(found.given),
        plain.posterior(found.given),
        atol=1e-6,
        rtol=0,
    )


def _posteriors(rows: list[int], width: int, wide: int) -> list[torch.Tensor]:
    """Of all rows, by rank's shares of these lengths, by both estimates."""
    found = blobs(sum(rows), width, ASYMMETRIC, apart=0.5)
    start = sum(rows[: parallel.rank()])
    own = slice(start, start + rows[parallel.rank()])
    samples = samples_of(found.features[own].half(), found.given[own], 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "MANY", 0)
        patch.setattr(MODULE, "WIDE", wide)
        both = estimate(samples), estimate_quickly(samples)
    return [parallel.all_gather_rows(relations.posterior(found.given[own])) for relations in both]


@pytest.mark.parametrize("rows", [[200, 200, 200], [0, 599, 1]])
@pytest.mark.parametrize("width, wide", [(12, 512), (300, 299)], ids=["plain", "projected"])
def test_ranks_do_not_matter(ranks, rows, width, wide):
    (expected,) = ranks(1).run(_posteriors, [600], width, wide)
    for found in ranks(3).run(_posteriors, rows, width, wide):
        for here, there in zip(found, expected, strict=True):
            torch.testing.assert_close(here, there, atol=1e-6, rtol=0)


def test_plain_regressions_are_the_folds_own_of_the_likeliest_penalty():
    """As scikit-learn fits each fold; `classifier` is their mean on raw features."""
    found = blobs(300, 6, pairflip(3, 0.3))
    samples = samples_of(3 * found.features + 5, found.given, 3)
    x, y, fold = (
        StandardScaler().fit_transform(samples.features),
        samples.labels.numpy(),
        samples.fold.numpy(),
    )
    by_penalty = {}
    for l2 in (1.0, 0.1, 0.01, 1e-3):
        p, weights = np.zeros((300, 3)), []
        for k in range(5):
            seen = fold != k
            model = LogisticRegression(C=1 / (l2 * seen.sum()), tol=1e-8).fit(x[seen], y[seen])
            p[~seen] = model.predict_proba(x[~seen])
            weights.append(np.column_stack([model.coef_, model.intercept_]))
        by_penalty[l2] = np.log(p[np.arange(300), y]).mean(), p, np.mean(weights, 0)
    l2 = max(by_penalty, key=lambda l2: by_penalty[l2][0])
    relations = estimate_plainly(samples, tuple(by_penalty))
    likelihood, p, weights = by_penalty[l2]
    assert relations.l2 == l2 and 1e-3 < l2 < 1
    assert relations.calibration.log_likelihood == pytest.approx(likelihood, abs=1e-5)
    assert relations.clean().numpy() == pytest.approx(p, abs=1e-3)
    inner, bias = classifier(samples, relations)
    logits = samples.features.double() @ inner + bias
    assert logits.softmax(1).numpy() == pytest.approx(
        softmax(x @ weights[:, :-1].T + weights[:, -1], axis=1), abs=1e-3
    )
