"""`audit.features`: what it finds in features and labels, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rmd_dist import audit
from rmd_dist.audit.dataset import with_margins
from rmd_dist.audit.detect import judge
from rmd_dist.errors import ConfigError


def blobs(
    count: int = 1200, classes: int = 4, width: int = 12, apart: float = 1.6, seed: int = 0
) -> tuple[Any, Any]:
    """(features (N, D), true classes (N,)) of overlapping Gaussian blobs."""
    rng = np.random.default_rng(seed)
    clean = np.arange(count) % classes
    centres = apart * rng.normal(size=(classes, width))
    return (centres[clean] + rng.normal(size=(count, width))).astype(np.float32), clean


def asymmetric(clean: Any, rate: float = 0.3, seed: int = 1) -> Any:
    """Labels of which class 0 became 1 and class 2 became 3, at this rate."""
    flips = np.random.default_rng(seed).random(len(clean)) < rate
    return np.where(flips & (clean % 2 == 0), clean + 1, clean)


def test_finds_wrong_labels_and_what_they_should_be() -> None:
    x, clean = blobs(4000)
    given = asymmetric(clean)
    found = audit.features(x, given)
    wrong = given != clean
    assert found.posterior.shape == (len(x), 4) and np.allclose(found.posterior.sum(1), 1, atol=1e-5)
    assert (found.flagged & wrong).sum() > 0.85 * wrong.sum()
    assert (found.flagged & ~wrong).sum() < 0.1 * wrong.sum()
    assert (found.suggested == clean)[found.flagged & wrong].mean() > 0.95
    assert found.noise_matrix[0, 1] == pytest.approx(0.3, abs=0.06)
    assert found.noise_matrix[1, 0] == pytest.approx(0, abs=0.04)
    assert found.wrong.low <= wrong.mean() <= found.wrong.high
    assert found.wrong_by_class[1].value == pytest.approx(wrong[given == 1].mean(), abs=0.04)
    assert found.wrong_by_class[0].value == pytest.approx(0, abs=0.03)


def test_quick_finds_them_too() -> None:
    x, clean = blobs()
    given = asymmetric(clean)
    found = audit.features(x, given, quick=True)
    assert (found.flagged & (given != clean)).sum() > 0.75 * (given != clean).sum()


def test_flags_hardly_any_of_right_labels() -> None:
    x, clean = blobs()
    assert audit.features(x, clean).flagged.mean() <= 0.01


@pytest.mark.parametrize("kind", ["float64", "float16", "tensor"])
def test_takes_any_floats_of_either_library(kind: str) -> None:
    x, clean = blobs(600)
    given = asymmetric(clean)
    other: Any = torch.from_numpy(x) if kind == "tensor" else x.astype(kind)
    labels: Any = torch.from_numpy(given).int() if kind == "tensor" else given.astype(np.uint8)
    expected, found = audit.features(x, given), audit.features(other, labels)
    # Halves are hashed otherwise, so that their folds differ.
    assert (expected.flagged == found.flagged).mean() > (0.97 if kind != "tensor" else 0.999)


def test_equal_images_are_judged_alike() -> None:
    x, clean = blobs(400)
    twice, given = np.concatenate([x, x]), np.concatenate([clean, clean])
    found = audit.features(twice, given)
    assert (found.fold[:400] == found.fold[400:]).all()
    np.testing.assert_allclose(found.posterior[:400], found.posterior[400:], atol=1e-6)


def test_classes_that_are_too_small_are_left_alone() -> None:
    x, clean = blobs(300)
    given = clean.copy()
    given[:3] = 4  # a class of three images, all of them wrong by the features
    found = audit.features(x, given, folds=5)
    assert found.unjudged.tolist() == [4] and not found.judged[:3].any()
    assert not found.flagged[:3].any() and (found.suggested[:3] == 4).all()


def test_nothing_is_suggested_to_be_of_a_class_of_a_few() -> None:
    x, given = blobs(309)
    x[:9] += 8  # nine that are like none of the others, of which three are named a class of their own
    given[:3], given[3:9] = 4, 0
    found = audit.features(x, given, folds=5)
    assert found.clean[3:9, 4].mean() > 0.3  # the regression would call them so
    assert found.unjudged.tolist() == [4] and not (found.suggested[3:] == 4).any()
    assert (found.posterior[3:, 4] == 0).all() and np.allclose(found.posterior.sum(1), 1, atol=1e-5)
    assert (found.p_given[3:9] >= found.clean[3:9, 4] - 1e-6).all()  # what speaks for it doubts no label
    doubted = replace(
        found, p_given=np.where(np.arange(309) < 9, 0.5, found.p_given), posterior=np.eye(5)[given]
    )
    margins = np.where(np.arange(309) < 9, -5.0, 5.0).astype(np.float32)
    joined = with_margins(doubted, margins, budget=9)
    assert joined.flagged[3:9].all() and not (joined.suggested[3:] == 4).any()


def test_nothing_is_flagged_where_no_other_class_is_known() -> None:
    x, given = blobs(300, classes=2)
    given[:2], given[2:] = 1, 0
    assert not audit.features(x, given, budget=5).flagged.any()


def test_a_class_of_copies_is_judged_by_nobody() -> None:
    """All copies of an image are in one fold: no regression that judges them has seen the class."""
    x, clean = blobs(300)
    x[:8], given = x[0] + 3, clean.copy()
    given[:8] = 4
    found = audit.features(x, given, folds=5)
    assert not found.judged[:8].any() and not found.flagged[:8].any()
    assert found.judged[8:].all()


def test_arrays_in_any_order_are_taken() -> None:
    x, clean = blobs(200)
    expected = audit.features(x, clean).p_given
    for other in (x.astype(">f4"), np.asfortranarray(x), x[::-1][::-1], x.astype(np.longdouble)):
        np.testing.assert_array_equal(audit.features(other, clean).p_given, expected)


def test_a_budget_and_a_precision_decide_how_many_are_flagged() -> None:
    x, clean = blobs(apart=0.7)
    given = asymmetric(clean)
    usual, few = audit.features(x, given), audit.features(x, given, budget=10)
    assert few.flagged.sum() == 10 and few.score[few.flagged].min() >= few.score[~few.flagged].max()
    sure = audit.features(x, given, precision=0.99)
    assert 0 < sure.flagged.sum() < usual.flagged.sum()
    assert sure.score[sure.flagged].mean() >= 0.99
    assert usual.flagged.sum() == round(usual.score.sum())


def test_flagged_images_get_another_class() -> None:
    x, clean = blobs()
    found = audit.features(x, asymmetric(clean), budget=900)
    assert (found.suggested != found.given)[found.flagged].all()


def test_the_interval_covers_folds_that_disagree() -> None:
    given = np.zeros(100, np.int64)
    given[50:] = 1
    fold = np.arange(100) % 2
    p = np.where(fold == 0, 1.0, 0.8)
    posterior = np.stack([p, 1 - p], 1).astype(np.float32)
    arguments: Any = {"noise_matrix": np.eye(2), "clean": posterior, "known": np.ones((2, 2), bool)}
    found = judge(given=given, posterior=posterior, p_given=p, fold=fold, settings={"folds": 2}, **arguments)
    assert found.wrong.value == pytest.approx(0.1)
    # 1.96 sqrt(sum of p (1 - p) / N^2 + variance of the folds' shares 0 and 0.2 / 2)
    assert found.wrong.high - 0.1 == pytest.approx(1.96 * (50 * 0.16 / 100**2 + 0.02 / 2) ** 0.5)
    assert found.wrong.low == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(40, np.int64)}, "one class"),
        ({"labels": np.array(["cat", "dog"] * 20)}, "give integers"),
        ({"labels": np.arange(40) % 2 + 0.5}, "give integers"),
        ({"labels": np.arange(40) % 2 - 1}, "begin at -1"),
        ({"labels": np.arange(39) % 2}, "40 rows of features and 39 labels"),
        ({"labels": np.arange(40) * 300}, "11701 classes, at most 2000"),
        ({"num_classes": 1}, "there are 1 classes"),
        ({"features": np.full((40, 3), 2.0)}, "are equal"),
        ({"features": np.zeros((40, 3), np.int64)}, "floating numbers"),
        ({"features": np.zeros(40)}, "floating numbers"),
        ({"features": np.full((40, 3), None)}, "floating numbers"),
        ({"folds": 1}, "folds = 1 is out of range"),
        ({"budget": -1}, "budget = -1 is out of range"),
        ({"precision": float("nan")}, "precision = nan is out of range"),
    ],
)
def test_what_cannot_be_audited_is_one_line(change: dict[str, Any], message: str) -> None:
    x, clean = blobs(40, classes=2, width=3)
    arguments: dict[str, Any] = {"features": x, "labels": clean} | change
    with pytest.raises(ConfigError, match=message):
        audit.features(arguments.pop("features"), arguments.pop("labels"), **arguments)


def test_numbers_that_are_not_finite_are_named() -> None:
    x, clean = blobs(40, classes=2, width=3)
    x[7, 1], x[9, 0] = np.nan, np.inf
    with pytest.raises(
        ConfigError, match=r"2 rows of features have nan or infinite numbers \(first: row 7\)"
    ):
        audit.features(x, clean)


def test_constant_columns_and_empty_classes_do_no_harm() -> None:
    x, clean = blobs(400)
    wide = np.concatenate([x, np.full((400, 2), 1e6, np.float32)], 1)
    found = audit.features(wide, asymmetric(clean), num_classes=6)
    assert found.posterior.shape == (400, 6) and np.isfinite(found.posterior).all()
    assert np.isnan(found.wrong_by_class[5].value)
