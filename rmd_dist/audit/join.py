"""What features say of a label and what training says of it, joined."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SURE = 1e-12
_ROUNDS = 20  # of EM
_LEAST = 2.0  # images of each kind, in sum of probabilities, by which their margins are known


def joined(p_given: Floats, margin: npt.NDArray[np.float32]) -> Floats:
    """Probability (n,) that each given label is right, by features and margins together.

    `p_given` (n,): by features alone. `margin` (n,): mean margin of the label in training (Pleiss et al.
    2020); nan where the image was not trained on, for which nothing changes. Margins of right and of wrong
    labels are taken for normal and, given that, for independent of the features: the odds are multiplied by
    the ratio of the two densities, which are estimated by EM. So margins that tell nothing, of a training
    that was too short or has memorised all, change nothing.
    """
    known = np.isfinite(margin)
    right, m = p_given[known], margin[known].astype(np.float64)
    if min(right.sum(), (1 - right).sum()) < _LEAST:
        return p_given.copy()
    features = np.log(np.clip(right, _SURE, 1)) - np.log(np.clip(1 - right, _SURE, 1))
    order, now = np.argsort(m, kind="stable"), right
    for _ in range(_ROUNDS):
        ratio = np.empty_like(m)
        # Monotone in the margin: of normals of unlike widths the wider one wins at both ends.
        ratio[order] = _rising((_log_normal(m, now) - _log_normal(m, 1 - now))[order])
        now = np.exp(-np.logaddexp(0, -(features + ratio)))  # the odds as a probability
    found = p_given.copy()
    found[known] = now
    return found


def _log_normal(values: Floats, weights: Floats) -> Floats:
    """Log density (n,) of the normal distribution that the weighted values have."""
    mean = np.average(values, weights=weights)
    variance = np.average((values - mean) ** 2, weights=weights) + 1e-12
    density: Floats = -0.5 * ((values - mean) ** 2 / variance + np.log(variance))
    return density


def _rising(values: Floats) -> Floats:
    """The nearest sequence that never falls (isotonic regression)."""
    from sklearn.isotonic import isotonic_regression

    found: Floats = isotonic_regression(values)
    return found
