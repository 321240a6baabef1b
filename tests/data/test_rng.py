"""Counter-based randomness: its definition, its uniformity, its independence along every coordinate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rmd_dist.data.render import rng

COORDINATES = ("seed", "epoch", "sample", "view", "draw")
MASK = (1 << 64) - 1


def reference(*coordinates: int) -> float:
    """`uniform` in Python's integers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    golden, word = 0x9E3779B97F4A7C15, 0
    for coordinate in coordinates[:-1]:
        word = mix(((word ^ coordinate) + golden) & MASK)
    return (mix((word + (coordinates[-1] + 1) * golden) & MASK) >> 11) * 2.0**-53


def along(axis: int, n: int) -> np.ndarray:
    """n numbers with one coordinate running and the others fixed."""
    fixed = [7, 3, 11, 1, 5]
    return np.array([rng.uniform(*(i if a == axis else fixed[a] for a in range(5))) for i in range(n)])


def test_uniform_is_its_definition() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        coordinates = [int(x) for x in random.integers(0, [2**63 - 1, 10**6, 10**9, 2, 50])]
        assert rng.uniform(*coordinates) == reference(*coordinates)


def test_known_values() -> None:
    """A seed keeps its meaning across releases."""
    assert [rng.uniform(0, 0, 0, 0, d) for d in range(2)] == [0.47141042966848024, 0.7247520786262142]
    assert rng.permutation(8, 0, 0).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]


@pytest.mark.parametrize("axis", range(5), ids=COORDINATES)
def test_numbers_are_uniform_along(axis: int) -> None:
    numbers = along(axis, 50_000)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    counts = np.bincount((numbers * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    low_bits = np.bincount((numbers * 2.0**53).astype(np.int64) & 255, minlength=256)
    assert stats.chisquare(low_bits).pvalue > 1e-3


@pytest.mark.parametrize("axis", range(5), ids=COORDINATES)
def test_neighbours_are_independent_along(axis: int) -> None:
    numbers = along(axis, 50_001)
    pairs = (numbers[:-1] * 16).astype(int) * 16 + (numbers[1:] * 16).astype(int)
    assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-3


def test_coordinates_are_not_exchangeable() -> None:
    """(1, 2) and (2, 1) are different places, whichever two coordinates they are."""
    grid = {rng.uniform(s, e, i, v, d) for s in (0, 1, 2) for e in (0, 1, 2) for i in (0, 1, 2)
            for v in (0, 1) for d in (0, 1, 2)}  # fmt: skip
    assert len(grid) == 3 * 3 * 3 * 2 * 3


def test_every_coordinate_bit_moves_half_of_the_output() -> None:
    base = [12345, 17, 40_000, 1]
    word = rng.stream(*base) & MASK
    for axis in range(4):
        flips = []
        for bit in range(40):
            changed = [c ^ (1 << bit) if a == axis else c for a, c in enumerate(base)]
            flips.append(((rng.stream(*changed) & MASK) ^ word).bit_count())
        assert 28 < np.mean(flips) < 36 and min(flips) > 8


def test_permutation_is_a_pure_function_of_seed_and_epoch() -> None:
    order = rng.permutation(1000, 3, 5)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(1000))
    np.testing.assert_array_equal(order, rng.permutation(1000, 3, 5))
    for other in ((3, 6), (4, 5), (5, 3)):
        assert (order != rng.permutation(1000, *other)).mean() > 0.9
