"""Which labels are wrong, by features of an encoder that has not seen them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.errors import ConfigError
from rmd_dist.relations import Relations, Samples, estimate, estimate_quickly, fold_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_CLASSES = 2000
"""A noise matrix has so many squared numbers, the regressions' optimizer some hundred times as many."""

_INTERVAL = 1.96  # standard deviations of a normal distribution that hold 95 %


@dataclass(frozen=True)
class Share:
    """An estimated share in [0, 1] with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Audit:
    """What is known of the labels of n images."""

    given: Ints
    """(n,), the labels as they are."""
    posterior: npt.NDArray[np.float32]
    """(n, C): p(true class | image, given label)."""
    p_given: Floats
    """(n,): probability that the given label is right, from a regression that has not seen it."""
    suggested: Ints
    """(n,): the likeliest class; of flagged images the likeliest other one."""
    flagged: npt.NDArray[np.bool_]
    """(n,): judged to be wrong."""
    noise_matrix: Floats
    """(C, C): share of the images of true class c that are labelled j, estimated."""
    clean: npt.NDArray[np.float32]
    """(n, C): p(true class | image), without a look at the label."""
    fold: Ints
    """(n,): which regression has not seen the image."""
    wrong: Share
    """Of all labels."""
    wrong_by_class: tuple[Share, ...]
    """Of the labels that name each class."""
    known: npt.NDArray[np.bool_]
    """(C, K): whether enough images of a class lie outside a fold, to know the class by in it."""
    settings: dict[str, Any]
    """What the likelihood chose: l2, temperature, log_likelihood."""

    @property
    def score(self) -> Floats:
        """(n,): probability that the label is wrong, in [0, 1]."""
        return 1.0 - self.p_given

    @functools.cached_property
    def judged(self) -> npt.NDArray[np.bool_]:
        """(n,): whether there are enough others of the label's class, in other folds, to judge it by."""
        judged: npt.NDArray[np.bool_] = self.known[self.given, self.fold]
        return judged

    @functools.cached_property
    def order(self) -> Ints:
        """(n,): the rows, the worst label first."""
        return np.argsort(self.p_given, kind="stable")

    @property
    def unjudged(self) -> Ints:
        """Classes some of whose labels are left as they are, because there are too few of them."""
        return np.unique(self.given[~self.judged])


def features(
    features: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike | Tensor,
    *,
    num_classes: int | None = None,
    folds: int = 5,
    quick: bool = False,
    precision: float | None = None,
    budget: int | None = None,
) -> Audit:
    """Audit the `labels` (n,), integers from 0, of images by their `features` (n, D). Collective.

    Logistic regression through a noise matrix (Patrini et al. 2017), cross-fitted over `folds` by the hash of
    each row, so that equal rows are judged by what has seen neither; `quick`: ridge regression. Arrays of
    NumPy or torch, on any device, of any floating type; they are read in blocks, and not copied as a whole.
    On several ranks each gives its rows, and all get the audit of all rows, in rank order.

    As many labels are flagged, the worst first, as are estimated to be wrong; or the most of which a share of
    `precision` is estimated to be wrong; or `budget` of them. Raises ConfigError for what cannot be audited.
    """
    _check_rules(folds, precision, budget)
    x, y = _checked_features(features), _checked_labels(labels)
    if len(x) != len(y):
        raise ConfigError(f"there are {len(x)} rows of features and {len(y)} labels; give one label a row")
    y = y.to(x.device)  # where collectives are
    counts = _class_counts(y, num_classes)
    fold = fold_of(x, folds)
    sizes = parallel.all_reduce_sum(torch.bincount(fold, minlength=folds))
    if int((sizes > 0).sum()) < 2:
        raise ConfigError("the features of all images are equal: nothing can be told by them; give others")
    samples = Samples(x, y, fold, len(counts), folds)
    relations = (estimate_quickly if quick else estimate)(samples)
    known = _known(samples)
    posterior, clean, p_given = _posteriors(relations, samples, known)
    calibration = relations.calibration
    chosen = {
        "l2": relations.l2,
        "temperature": float(calibration.temperature),
        "log_likelihood": calibration.log_likelihood,
    }

    def everyone(rows: Tensor) -> npt.NDArray[Any]:
        return parallel.all_gather_rows(rows).cpu().numpy()

    return judge(
        given=everyone(samples.labels),
        posterior=everyone(posterior),
        p_given=everyone(p_given),
        noise_matrix=calibration.noise_matrix.cpu().numpy(),
        clean=everyone(clean),
        fold=everyone(fold),
        known=known.cpu().numpy(),
        settings=chosen | {"folds": folds, "quick": quick, "images": int(counts.sum())},
        precision=precision,
        budget=budget,
    )  # fmt: skip


def judge(
    *,
    given: Ints,
    posterior: npt.NDArray[np.float32],
    p_given: Floats,
    noise_matrix: Floats,
    clean: npt.NDArray[np.float32],
    fold: Ints,
    known: npt.NDArray[np.bool_],
    settings: dict[str, Any],
    precision: float | None = None,
    budget: int | None = None,
) -> Audit:
    """The audit that follows from probabilities: shares, flags, suggestions."""
    flagged = _flag(p_given, precision, budget) & known[given, fold]
    suggested = posterior.argmax(1).astype(np.int64)
    other = posterior[flagged]
    other[np.arange(len(other)), given[flagged]] = 0.0
    suggested[flagged] = other.argmax(1)
    flagged[flagged] = other.max(1, initial=0.0) > 0  # else there is nothing to suggest
    wrong, by_class = _shares(given, 1.0 - p_given, fold, posterior.shape[1], int(settings["folds"]))
    return Audit(
        given, posterior, p_given, suggested, flagged, noise_matrix, clean, fold, wrong, by_class, known,
        settings,
    )  # fmt: skip


def _check_rules(folds: int, precision: float | None, budget: int | None) -> None:
    """ConfigError for settings out of range, of those who call from Python."""
    if not 2 <= folds <= 20:
        raise ConfigError(f"folds = {folds} is out of range; allowed: 2 to 20")
    if precision is not None and not 0 <= precision <= 1:
        raise ConfigError(f"precision = {precision} is out of range; allowed: 0 to 1")
    if budget is not None and budget < 0:
        raise ConfigError(f"budget = {budget} is out of range; allowed: 0 and more")


def _checked_features(features: npt.NDArray[Any] | Tensor) -> Tensor:
    if isinstance(features, Tensor):
        x = features.detach()
    else:
        array = np.asarray(features)
        if array.dtype.kind == "f":
            native = np.float32 if array.itemsize not in (2, 4, 8) else array.dtype.newbyteorder("=")
            array = np.ascontiguousarray(array, native)
        elif array.dtype.kind not in "iu":
            raise ConfigError(f"features are {array.dtype} {array.shape}; give floating numbers (n, D)")
        x = torch.from_numpy(array)
    if x.ndim != 2 or not x.is_floating_point() or not x.shape[1]:
        raise ConfigError(f"features are {x.dtype} {tuple(x.shape)}; give floating numbers (n, D)")
    finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for start in range(0, len(x), 65536):
        finite[start : start + 65536] = x[start : start + 65536].isfinite().all(1)
    bad = parallel.all_gather_object((int((~finite).sum()), int(finite.int().argmin()) if len(x) else 0))
    for rank, (count, first) in enumerate(bad):
        if count:
            where = f" of rank {rank}" if len(bad) > 1 else ""
            raise ConfigError(
                f"{count} rows of features{where} have nan or infinite numbers (first: row {first}); leave "
                "them out, or look at the encoder and its precision"
            )
    return x


def _checked_labels(labels: npt.ArrayLike | Tensor) -> Tensor:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(
            f"labels are {array.dtype} {array.shape}; give integers (n,) from 0, as of "
            "np.unique(names, return_inverse=True)"
        )
    y = torch.from_numpy(array.astype(np.int64))
    low = min(parallel.all_gather_object(int(y.min()) if len(y) else 0))
    if low < 0:
        raise ConfigError(
            f"labels begin at {low}; give integers from 0, and leave out images without a label"
        )
    return y


def _class_counts(y: Tensor, num_classes: int | None) -> Ints:
    """(C,), over all ranks."""
    most = max(parallel.all_gather_object(int(y.max()) if len(y) else -1))
    classes = max(most + 1, num_classes or 0)
    if num_classes is not None and most >= num_classes:
        raise ConfigError(
            f"labels go up to {most}, but there are {num_classes} classes; give the right number"
        )
    if classes > MAX_CLASSES:
        raise ConfigError(
            f"there are {classes} classes, at most {MAX_CLASSES} can be audited at once; audit a group of "
            "them at a time, or number them without gaps"
        )
    counts: Ints = parallel.all_reduce_sum(torch.bincount(y, minlength=max(classes, 1))).cpu().numpy()
    if (counts > 0).sum() < 2:
        raise ConfigError("all labels are of one class: there is nothing that they could be confused with")
    return counts


def _known(samples: Samples) -> Tensor:
    """(C, K): whether enough rows of a class lie outside a fold, to know it by in the fold. Collective.

    The copies of an image are all in one fold: a class of them has been seen by no regression that judges it.
    """
    folds, classes = samples.folds, samples.num_classes
    cells = torch.bincount(samples.labels * folds + samples.fold, minlength=classes * folds)
    cells = parallel.all_reduce_sum(cells).view(classes, folds)
    return cells.sum(1, keepdim=True) - cells >= folds - 1


def _posteriors(relations: Relations, samples: Samples, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(posterior (n, C), clean (n, C), both in fp32, probability of the given label (n,)), in blocks.

    A class that is not `known` is nobody's true class: what would speak for it speaks for the given label,
    and labels that name it are taken for certain.
    """
    z, calibration = relations.logits, relations.calibration
    posterior, clean = torch.empty_like(z), torch.empty_like(z)
    p_given = torch.empty(len(z), dtype=torch.float64, device=z.device)
    for start in range(0, len(z), 16384):
        block = slice(start, start + 16384)
        y, likely = samples.labels[block, None], known[:, samples.fold[block]].T
        clean[block] = calibration.clean(z[block])
        found = calibration.posterior(z[block], y[:, 0]) * (likely & likely.gather(1, y))
        found.scatter_add_(1, y, 1.0 - found.sum(1, keepdim=True))
        posterior[block] = found
        p_given[block] = found.gather(1, y)[:, 0]
    return posterior, clean, p_given


def _flag(p_given: Floats, precision: float | None, budget: int | None) -> npt.NDArray[np.bool_]:
    """(n,): the worst, by one of three rules."""
    order = np.argsort(p_given, kind="stable")
    score = 1.0 - p_given[order]
    if budget is not None:
        count = budget
    elif precision is not None:
        count = int((np.cumsum(score) / np.arange(1, len(score) + 1) >= precision).sum())
    else:
        count = round(float(score.sum()))
    flagged = np.zeros(len(p_given), dtype=bool)
    flagged[order[:count]] = True
    return flagged


def _shares(
    given: Ints, score: Floats, fold: Ints, classes: int, folds: int
) -> tuple[Share, tuple[Share, ...]]:
    """(share of all labels that are wrong, the same of the labels of each class)."""
    cells = given * folds + fold
    counts, wrong, spread = (
        np.bincount(cells, values, classes * folds).reshape(classes, folds)
        for values in (np.ones_like(score), score, score * (1 - score))
    )
    return _share(counts.sum(0), wrong.sum(0), spread.sum()), tuple(
        _share(counts[c], wrong[c], spread[c].sum()) for c in range(classes)
    )


def _share(counts: Floats, wrong: Floats, spread: float) -> Share:
    """By sums over each fold: the spread of single labels, and that of the folds' regressions."""
    total = counts.sum()
    if not total:
        return Share(math.nan, math.nan, math.nan)
    value = float(wrong.sum() / total)
    by_fold = wrong[counts > 0] / counts[counts > 0]
    between = by_fold.var(ddof=1) / len(by_fold) if len(by_fold) > 1 else 0.0
    half = _INTERVAL * math.sqrt(spread / total**2 + between)
    return Share(value, max(0.0, value - half), min(1.0, value + half))
