"""What features say of labels: how they were confused, and what each one probably is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.relations.noise_matrix import Calibration, calibrate, symmetric
from rmd_dist.relations.project import project
from rmd_dist.relations.regression import Samples, Scale, fit, own_logits
from rmd_dist.relations.ridge import ridge

L2S = (1e-1, 1e-2, 1e-3, 1e-4)
PLAIN_L2S = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
"""Without a noise matrix the penalty alone keeps wrong labels out: it is worth a finer choice."""
PENALTIES = (1.0, 0.1, 0.01)
ROUNDS = 8
ENOUGH = 1e-4  # of mean log-likelihood, that a round must gain
PATIENCE = 2  # rounds in vain after which there is no other
ANCHORS = 0.2  # of the rows of a class: its purest, by which T may start
MANY, WIDE = 20_000, 512
"""With more rows over all ranks and wider features than these, `estimate` works on their first 256 principal
components: on CIFAR-10 with 1 280 features that loses nothing and takes a fifth of the time."""

_FIRST_KEPT = 0.95
"""Diagonal of the first T, which the pseudo-counts have. With 0.8, twice as many of the right labels of a few
hundred images are flagged; with 0.99, ridge regression finds half of symmetric noise 0.2."""

LEAST_DEVIATION = 0.1
"""Of columns in `classifier`, as a share of their root mean square. In an encoder that has been trained for
long none is below it; of one that has nearly collapsed most are."""

_SMOOTHING = 0.02  # of a row of the T of anchors: no label is impossible

_RIDGE_SCALE = 10.0  # its outputs are shares; as logits they are flat


@dataclass(frozen=True)
class Relations:
    """Noise matrix and what a cross-fitted classifier of true classes says of each row of this rank."""

    logits: Tensor
    """(n, C), fp32, of true classes, out of fold."""
    calibration: Calibration
    """Noise matrix, temperature, held-out likelihood of the given labels."""
    l2: float
    """Penalty of the regression that the likelihood chose."""
    scale: Scale
    """Of the features that were given, projected or not."""
    weights: Tensor
    """(D + 1, K, C), float64, of each fold, on features standardised by `scale`; the last: biases."""

    def clean(self) -> Tensor:
        """p(true class | x) (n, C), float64, without a look at the row's own label."""
        return self.calibration.clean(self.logits)

    def posterior(self, labels: Tensor) -> Tensor:
        """p(true class | x, given label) (n, C), float64."""
        return self.calibration.posterior(self.logits, labels)


def estimate(samples: Samples, l2s: Sequence[float] = L2S, rounds: int = ROUNDS) -> Relations:
    """Relations by logistic regression through a noise matrix, re-estimated until it settles. Collective.

    T starts from a ridge regression and from anchors: at some hundred rows a class either may end where two
    classes are blurred. Everything is chosen by the held-out likelihood of the given labels, with T and
    temperature in it: without T it would prefer regressions that are unsure of everything.
    """
    return _on_components(samples, lambda kept: _estimate(kept, l2s, rounds))


def estimate_plainly(samples: Samples, l2s: Sequence[float] = PLAIN_L2S) -> Relations:
    """Relations by logistic regression that takes the given labels for true: T is the identity. Collective.

    What `estimate` is measured by. The penalty is chosen as there, by the held-out likelihood of the labels.
    """
    return _on_components(samples, lambda kept: _estimate_plainly(kept, l2s))


def _on_components(samples: Samples, estimated: Callable[[Samples], Relations]) -> Relations:
    """`estimated` of the samples, or of their principal components where rows are many and wide."""
    if samples.features.shape[1] <= WIDE or samples.count <= MANY:
        return estimated(samples)
    samples, projection = project(samples)
    found = estimated(samples)
    weights = projection.raised(found.scale, found.weights)
    return replace(found, scale=projection.scale, weights=weights)


def _estimate_plainly(samples: Samples, l2s: Sequence[float]) -> Relations:
    scale = Scale.of(samples)
    one = torch.ones((), dtype=torch.float64, device=samples.features.device)
    identity = torch.eye(samples.num_classes, dtype=torch.float64, device=samples.features.device)

    def fitted(l2: float, before: Relations | None) -> Relations:
        weights = fit(samples, scale, l2, start=before.weights if before else None)
        logits = own_logits(samples, scale, weights)
        calibration = Calibration(identity, one, _log_likelihood(samples, logits))
        return Relations(logits, calibration, l2, scale, weights)

    return _by_penalty(l2s, fitted)


def _log_likelihood(samples: Samples, logits: Tensor) -> float:
    """Mean log p(given | x) by logits (n, C) of given labels. Collective."""

    def here(block: slice) -> Tensor:
        return logits[block].double().log_softmax(1).gather(1, samples.labels[block, None]).sum()

    return float(samples.sum(here, ())) / samples.count


def _estimate(samples: Samples, l2s: Sequence[float], rounds: int) -> Relations:
    quick = estimate_quickly(samples)
    T = quick.calibration.noise_matrix
    # Each from zero: two classes that a strong penalty has blurred into each other would stay so.
    by_ridge = _by_penalty(l2s, lambda l2, _: _fitted(samples, quick.scale, l2, T))
    by_anchors = _fitted(samples, quick.scale, by_ridge.l2, anchored(samples, quick.logits))
    settled = [_settled(samples, begun, rounds) for begun in (by_ridge, by_anchors)]
    return _likeliest(settled if any(map(_names_kept, settled)) else [quick])


def _by_penalty(l2s: Sequence[float], fitted: Callable[[float, Relations | None], Relations]) -> Relations:
    """With the penalty that makes the labels likeliest, from the greatest down to the first that is worse.

    `fitted` (penalty, relations by the one before) gives the relations by a penalty.
    """
    found: Relations | None = None
    for l2 in sorted(l2s, reverse=True):
        tried = fitted(l2, found)
        if found is not None and _gain(found, tried) < 0:
            break
        found = tried
    assert found is not None
    return found


def _settled(samples: Samples, begun: Relations, rounds: int) -> Relations:
    """The likeliest of `rounds` in which the regression and T take turns; fewer where nothing is gained."""
    found, now, in_vain = begun, begun, 0
    for _ in range(rounds):
        now = _fitted(samples, now.scale, now.l2, now.calibration.noise_matrix, now.weights)
        in_vain = 0 if _gain(found, now) >= ENOUGH else in_vain + 1
        found = _likeliest([found, now])
        if in_vain == PATIENCE:
            break
    return found


def anchored(samples: Samples, logits: Tensor) -> Tensor:
    """T (C, C) by the labels of the rows that have the highest `logits` (n, C) of each class. Collective.

    So far as those are of the class, and their labels as wrong as others' (Patrini et al. 2017, who take one
    row; Yao et al. 2020).
    """
    few = max(1, round(ANCHORS * samples.count / samples.num_classes))
    here = logits.double().topk(min(few, len(logits)), dim=0)
    scores = parallel.all_gather_rows(here.values)
    labels = parallel.all_gather_rows(samples.labels[here.indices])
    chosen = labels.gather(0, scores.topk(min(few, len(scores)), dim=0).indices)
    counts = torch.nn.functional.one_hot(chosen, samples.num_classes).sum(0).double()
    counts += _SMOOTHING * len(chosen) / samples.num_classes
    return counts / counts.sum(1, keepdim=True)


def classifier(samples: Samples, relations: Relations) -> tuple[Tensor, Tensor]:
    """Weights (D, C) and biases (C,), float64, of true classes on raw features: the folds' mean. Collective.

    It is for features that will change, those of a network in training. Columns that hardly vary have large
    weights in `relations`, which would enlarge every change; here they count for less.
    """
    scale, weights = relations.scale, relations.weights
    varies = scale.inverse_std > 0
    size = scale.inverse_std[varies].square().reciprocal().mean().sqrt()  # of a column's deviation
    most = 1 / (LEAST_DEVIATION * size)
    if bool((scale.inverse_std > most).any()):
        scale = replace(scale, inverse_std=scale.inverse_std.clamp_max(most))
        weights = fit(samples, scale, relations.l2, relations.calibration.noise_matrix)
    return scale.folded(weights.mean(1) / relations.calibration.temperature)


def estimate_quickly(samples: Samples, penalties: Sequence[float] = PENALTIES) -> Relations:
    """Relations by ridge regression: one pass over the features. Collective."""
    scale = Scale.of(samples)
    start = symmetric(
        _FIRST_KEPT, torch.eye(samples.num_classes, dtype=torch.float64, device=samples.features.device)
    )
    tried = [
        _calibrated(samples, scale, _RIDGE_SCALE * weights, penalty, start)
        for penalty, weights in zip(penalties, ridge(samples, scale, penalties), strict=True)
    ]
    return max(tried, key=lambda relations: relations.calibration.log_likelihood)


def _fitted(samples: Samples, scale: Scale, l2: float, T: Tensor, start: Tensor | None = None) -> Relations:
    weights = fit(samples, scale, l2, T, start, iterations=30 if start is None else 20)
    return _calibrated(samples, scale, weights, l2, T)


def _calibrated(samples: Samples, scale: Scale, weights: Tensor, l2: float, T: Tensor) -> Relations:
    logits = own_logits(samples, scale, weights)
    return Relations(logits, calibrate(logits, samples.labels, T), l2, scale, weights)


def _likeliest(found: Sequence[Relations]) -> Relations:
    """Of those whose classes are what the labels call so; if there are none, the first."""
    named = [relations for relations in found if _names_kept(relations)]
    return max(named or found[:1], key=lambda relations: relations.calibration.log_likelihood)


def _names_kept(relations: Relations) -> bool:
    """Whether no other order of the true classes puts more of T on its diagonal.

    The likelihood is the same for every order: where there is little to go by, it may call cats dogs.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    T = relations.calibration.noise_matrix.cpu().numpy()
    if not math.isfinite(T.sum()):
        return False
    _, order = linear_sum_assignment(-T)
    return bool(T[range(len(T)), order].sum() <= T.trace() + 1e-9)


def _gain(before: Relations, after: Relations) -> float:
    return after.calibration.log_likelihood - before.calibration.log_likelihood
