"""What features and margins say together."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmd_dist import audit
from rmd_dist.audit.dataset import with_margins
from rmd_dist.audit.join import joined


def two_witnesses(apart: float, count: int = 4000) -> tuple[Any, Any, Any]:
    """(p_given by features, margins, what is wrong): both know something, independently of each other."""
    rng = np.random.default_rng(3)
    wrong = rng.random(count) < 0.3
    evidence = rng.normal(size=count) + np.where(wrong, 2.0, 0.0)  # of unit variance, 2 apart
    odds = np.log(0.7 / 0.3) - (2.0 * evidence - 2.0)
    margin = rng.normal(size=count) * 1.5 - np.where(wrong, apart, 0.0)
    return 1 / (1 + np.exp(-odds)), margin.astype(np.float32), wrong


def errors(p_given: Any, wrong: Any) -> float:
    return float(((p_given < 0.5) != wrong).mean())


def test_two_witnesses_know_more_than_one() -> None:
    p, margin, wrong = two_witnesses(apart=3.0)
    together = joined(p, margin)
    assert errors(together, wrong) < 0.75 * errors(p, wrong)
    # It is the exact product of the odds of two normals 3 apart, up to what was estimated.
    exact = np.log(p / (1 - p)) + (3.0 * margin.astype(float) + 4.5) / 1.5**2
    assert np.corrcoef(np.clip(exact, -8, 8), np.clip(np.log(together / (1 - together)), -8, 8))[0, 1] > 0.99
    assert abs((1 - together).mean() - wrong.mean()) < 0.02


def test_margins_that_tell_nothing_change_nothing() -> None:
    p, margin, wrong = two_witnesses(apart=0.0)
    together = joined(p, margin)
    assert np.abs(together - p).mean() < 0.02 and abs(errors(together, wrong) - errors(p, wrong)) < 0.005


def test_images_without_a_margin_stay_as_they_were() -> None:
    p, margin, _ = two_witnesses(apart=3.0)
    margin[::2] = np.nan
    together = joined(p, margin)
    np.testing.assert_array_equal(together[::2], p[::2])
    assert (together[1::2] != p[1::2]).all()
    np.testing.assert_array_equal(joined(p, np.full_like(margin, np.nan)), p)


def test_a_greater_margin_never_speaks_against_a_label() -> None:
    p, margin, _ = two_witnesses(apart=3.0)
    margin[:40] *= 10  # heavy tails on one side
    even = joined(np.full_like(p, 0.7), margin)
    assert (np.diff(even[np.argsort(margin)]) >= 0).all()
    sharper = joined(p, margin)
    assert np.isfinite(sharper).all() and ((sharper >= 0) & (sharper <= 1)).all()


def test_the_posterior_stays_one_where_features_and_margins_disagree() -> None:
    rng = np.random.default_rng(0)
    clean = np.arange(400) % 4
    x = np.eye(4)[clean] * 30 + rng.normal(size=(400, 4))  # the features are as sure as can be
    given = np.where(rng.random(400) < 0.2, (clean + 1) % 4, clean)
    margin = rng.normal(size=400) + np.where(given == clean, 6.0, -3.0)
    margin[:20] = -margin[:20]
    found = with_margins(audit.features(x, given), margin.astype(np.float32))
    np.testing.assert_allclose(found.posterior.sum(1), 1, atol=1e-5)
    p = found.posterior[np.arange(400), found.suggested]
    assert (p <= 1 + 1e-6).all() and (p[found.flagged] > 0).all()
