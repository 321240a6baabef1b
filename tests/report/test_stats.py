"""Means, intervals and shares against figures worked out by hand; the paper's numbers where they stand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rmd_dist.report.embedding import separation
from rmd_dist.report.paper import paper_accuracy
from rmd_dist.report.stats import estimate, gap_share, paired


def test_estimate() -> None:
    """Of 1, 2, 6: mean 3, sd sqrt((4 + 1 + 9) / 2), and the t quantile of two degrees of freedom, 4.3027."""
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None and found.n == 3 and found.mean == 3.0
    assert found.sd == pytest.approx(math.sqrt(7))
    assert found.interval == pytest.approx((3 - 4.302653 * math.sqrt(7 / 3), 3 + 4.302653 * math.sqrt(7 / 3)))


def test_one_value_has_no_interval() -> None:
    """Nor a spread; no value has no estimate at all."""
    found = estimate([4.0])
    assert found is not None and (found.mean, found.sd, found.interval) == (4.0, None, None)
    assert estimate([]) is None


def test_paired_takes_common_seeds() -> None:
    """Differences seed by seed, whatever else either side has."""
    found = paired({0: 5.0, 1: 7.0, 2: 100.0}, {1: 4.0, 0: 4.0, 3: 0.0})
    assert found is not None and (found.n, found.mean) == (2, 2.0)
    assert found.sd == pytest.approx(math.sqrt(2))
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("accuracy", "noisy", "clean", "share"),
    [
        (70.0, 60.0, 90.0, 1 / 3),
        (50.0, 60.0, 90.0, -1 / 3),
        (95.0, 60.0, 90.0, 35 / 30),
        (70.0, 60.0, 60.5, None),
        (70.0, 60.0, 55.0, None),
    ],
)
def test_gap_share(accuracy: float, noisy: float, clean: float, share: float | None) -> None:
    """Undefined where noise did no damage."""
    found = gap_share(accuracy, noisy, clean)
    assert found is None if share is None else found == pytest.approx(share)


@pytest.mark.parametrize(
    ("where", "accuracy"),
    [
        ((1, "cifar10", "CE", "symmetric", 0.4, None), 62.12),
        ((1, "cifar100", "NCE_AEL+RMDNet", "pairflip", 0.4, 0.001), 43.77),
        ((2, "cifar10", "CE+RGRL", "symmetric", 0.1, 1.0), 85.85),
        ((2, "cifar100", "CE+RGRL", "symmetric", 0.1, 1.0), 64.56),
        ((2, "cifar10", "CE+RGRL (K=5)", "symmetric", 0.2, 5.0), 76.91),
        ((3, "cifar100", "NCE_AGCE+RMDNet", "symmetric", 0.2, 1.0), 1.0),
        ((4, "cifar10", "NCE_AGCE+RMDNet", "pairflip", 0.4, 0.0), 80.37),
        ((4, "cifar10", "NCE_AGCE+RMDNet", "pairflip", 0.4, 0.01), None),
        ((3, "cifar10", "NCE_AGCE+RMDNet", "pairflip", 0.4, 0.0), 80.37),
        ((1, "digits", "CE", "symmetric", 0.4, None), None),
        ((None, "cifar10", "CE", "symmetric", 0.4, None), None),
    ],
)
def test_paper(where: tuple[int | None, str, str, str, float, float | None], accuracy: float | None) -> None:
    """K tells the rows of Tables 3 to 5 apart, and those alone."""
    assert paper_accuracy(*where) == accuracy


def test_separation() -> None:
    """1 where wrong labels lie by themselves, about a half where they are mixed in, None without any."""
    rng = np.random.default_rng(0)
    wrong = np.arange(200) < 50
    noise = rng.normal(size=(200, 16)).astype(np.float32)
    apart = noise + 20 * np.where(wrong, 1, -1)[:, None].astype(np.float32)
    assert separation(apart, wrong) == 1.0
    mixed = separation(noise, wrong)
    assert mixed is not None and 0.35 < mixed < 0.65
    assert separation(noise, np.zeros(200, dtype=bool)) is None
