"""Statistics over seeds: mean and spread, paired differences, the share of the noise gap undone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LEVEL = 0.95
"""Of all confidence intervals."""

SMALLEST_GAP = 1.0
"""Percentage points between CE on clean and on noisy labels, below which its share says nothing."""


@dataclass(frozen=True)
class Estimate:
    """What some seeds say of a mean."""

    n: int
    mean: float
    sd: float | None
    """Sample standard deviation; None of a single value."""

    @property
    def margin(self) -> float | None:
        """Half the width of the t-based interval of LEVEL around the mean; None of a single value."""
        if self.sd is None:
            return None
        from scipy.stats import t  # slow to import

        return float(t.ppf((1 + LEVEL) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) of the mean, at LEVEL; None of a single value."""
        margin = self.margin
        return None if margin is None else (self.mean - margin, self.mean + margin)


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and spread of one value of each seed; None without any."""
    found = list(values)
    if not found:
        return None
    n, mean = len(found), math.fsum(found) / len(found)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (n - 1)) if n > 1 else None
    return Estimate(n, mean, sd)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Of `values - baseline`, seed by seed, over the seeds that both have; None without any."""
    return estimate(values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys()))


def gap_share(accuracy: float, noisy: float, clean: float) -> float | None:
    """Share of the damage of wrong labels that was undone: (acc - acc of CE) / (acc of CE on clean - of CE).

    All in per cent, of one seed. Below 0: worse than CE; above 1: better than CE on clean labels. None where
    the wrong labels cost CE less than SMALLEST_GAP: there is no damage to speak of.
    """
    gap = clean - noisy
    return (accuracy - noisy) / gap if gap >= SMALLEST_GAP else None
