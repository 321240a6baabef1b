"""Subsets and hold-outs: fixed, nested, disjoint, and blind to labels."""

from __future__ import annotations

import numpy as np
import pytest

from rmd_dist.data.splits import choose, hold_out, probe, subset
from rmd_dist.errors import ConfigError


def strictly_rising(indices: np.ndarray) -> bool:
    return bool((np.diff(indices) > 0).all())


def test_subsets_are_nested_rising_and_always_the_same():
    smaller, larger = subset(1000, 100), subset(1000, 400)
    assert (len(smaller), len(larger)) == (100, 400)
    assert set(smaller) <= set(larger) <= set(range(1000))
    assert strictly_rising(smaller) and strictly_rising(larger)
    np.testing.assert_array_equal(subset(1000, 100), smaller)
    # spread over all samples, not a head or a stripe
    assert 350 < smaller.mean() < 650 and len(set(np.diff(smaller))) > 10


def test_all_samples_unless_fewer_are_asked_for():
    for size in (None, 50):
        np.testing.assert_array_equal(subset(50, size), np.arange(50))
    with pytest.raises(ConfigError, match=r"data\.train_samples = 51, but there are 50"):
        subset(50, 51)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_a_hold_out_parts_the_samples(share):
    indices = subset(2000, 999)
    training, validation = hold_out(indices, share)
    assert len(validation) == round(share * 999)
    assert not set(training) & set(validation)
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), indices)
    assert strictly_rising(training) and strictly_rising(validation)
    for again, first in zip(hold_out(indices, share), (training, validation), strict=True):
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize(("samples", "share", "held"), [(9, 0.05, 0), (1, 0.9, 1), (10, 0.04, 0)])
def test_a_hold_out_of_nothing_or_of_all_is_refused(samples, share, held):
    with pytest.raises(ConfigError, match=f"of {samples} samples holds out {held}; choose"):
        hold_out(np.arange(samples), share)
    assert len(hold_out(np.arange(samples), 0.0)[1]) == 0


def test_a_hold_out_is_spread_over_the_samples():
    _, validation = hold_out(np.arange(1000), 0.2)
    assert 400 < validation.mean() < 600 and validation.min() < 50 and validation.max() > 950


def test_a_probe_is_some_of_the_given_samples():
    indices = 3 * np.arange(100)
    chosen = probe(indices, 30)
    assert len(chosen) == 30 and set(chosen) <= set(indices) and strictly_rising(chosen)
    np.testing.assert_array_equal(probe(indices, 30), chosen)
    for size in (0, 100, 1000):
        np.testing.assert_array_equal(probe(indices, size), indices)


def test_the_three_choices_are_independent():
    """The same positions must not be picked thrice: a probe of a subset would be its hold-out."""
    everything = np.arange(1000)
    chosen = [set(subset(1000, 200)), set(hold_out(everything, 0.2)[1]), set(probe(everything, 200))]
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            assert len(a & b) < 80  # 40 are expected of independent draws


def test_what_is_left_out_is_in_no_part_of_the_training_split():
    splits = choose(100, 20, train_samples=80, validation=0.25, probe_samples=30)
    left_out = np.zeros(100, dtype=bool)
    for part, same in zip(vars(splits).values(), vars(splits.without(left_out)).values(), strict=True):
        np.testing.assert_array_equal(part, same)
    left_out[::3] = True
    found = splits.without(left_out)
    np.testing.assert_array_equal(found.train, [i for i in splits.train if i % 3])
    np.testing.assert_array_equal(found.validation, [i for i in splits.validation if i % 3])
    np.testing.assert_array_equal(found.test, splits.test)
    assert len(found.probe) == 30 and set(found.probe) <= set(found.train) and strictly_rising(found.probe)
    left_out[splits.probe] = True
    assert len(splits.without(left_out).probe) == len(splits.without(left_out).train) > 0


@pytest.mark.parametrize(
    ("part", "message"), [("train", "60 images to train on"), ("validation", "20 images to hold out")]
)
def test_a_part_of_which_nothing_is_left_is_refused(part, message):
    splits = choose(100, 20, train_samples=80, validation=0.25)
    left_out = np.zeros(100, dtype=bool)
    left_out[getattr(splits, part)] = True
    with pytest.raises(ConfigError, match=f"the labels leave out all {message}; give some of them a label"):
        splits.without(left_out)
