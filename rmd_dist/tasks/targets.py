"""Targets that relations correct: what an encoder, the noise and the student's average say of each label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.config import TargetsConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.labels import Labels
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.features import cached_features, image_ids
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.processes import from_main
from rmd_dist.relations import Relations, Samples, classifier, estimate, estimate_plainly, fold_of
from rmd_dist.tasks.base import Tell
from rmd_dist.tasks.teacher import FrozenEncoder

FOLDS = 5

LEAST_SHARE = 0.2
"""Of the information that labels have of classes (in nats, by T), what features must know. An encoder
after an hour of SimSiam on a CPU knows 48 to 71 % of CIFAR-10's under any noise; of random labels: 0."""


class RelationTargets:
    """Soft labels t (b, C) = ((1 - a) q0 + a p) T[:, given label], each row divided by its sum.

    q0: p(true class | image) by a regression on an encoder's features that has not seen the image's label.
    T[c, j]: p(labelled j | truly c), the noise matrix (`rmd_dist.relations`). p: what the moving average of
    the student says of another view of the image. a: its share, `config.average`, to which it grows linearly
    over the first `config.ramp` of training. An image without a label (-1) has t = (1 - a) q0 + a p.

    q0 and T are found once, when a run begins (`take`), and are part of its state.
    """

    def __init__(self, labels: Labels, num_classes: int, config: TargetsConfig, device: torch.device) -> None:
        self.labels, self.config = labels, config
        self.clean = torch.zeros(len(labels.given), num_classes, device=device)
        """q0 (N, C) by sample index."""
        self.likelihood = torch.ones(num_classes + 1, num_classes, device=device)
        """(C + 1, C): row j is T[:, j]; the last, which -1 means, of images without a label."""
        self.share = torch.zeros((), device=device)
        """a."""

    def take(self, clean: Tensor, noise_matrix: Tensor) -> None:
        """Be given q0 (N, C) and T (C, C)."""
        self.clean.copy_(clean)
        self.likelihood[:-1] = noise_matrix.T

    def begin_step(self, progress: float) -> None:
        """Set a for a step before which a share of `progress` of training is done."""
        ramp = self.config.ramp
        self.share.fill_(self.config.average * (min(1.0, progress / ramp) if ramp else 1.0))

    def __call__(self, index: Tensor, given: Tensor, average: Tensor | None) -> Tensor:
        """t (b, C) of images by sample index (b,), given label (b,), the average's p (b, C)."""
        q = self.clean[index]
        if average is not None:
            q = torch.lerp(q, average.to(q), self.share)
        return _normalised(q * self.likelihood[given])

    def tensors(self) -> dict[str, Tensor]:
        """What is part of a run's state."""
        return {"targets/clean": self.clean, "targets/likelihood": self.likelihood}

    @property
    def noise_matrix(self) -> npt.NDArray[np.float32]:
        """T (C, C)."""
        matrix: npt.NDArray[np.float32] = self.likelihood[:-1].T.cpu().numpy()
        return matrix

    def posterior(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """r (n, C): q0 T[:, given label], normalised, of samples by index (n,)."""
        index = torch.from_numpy(rows).to(self.clean.device)
        given = torch.from_numpy(self.labels.given[rows]).to(index.device)
        posterior: npt.NDArray[np.float32] = self(index, given, None).cpu().numpy()
        return posterior

    def figures(self, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        """Tag -> share of the labels of samples `rows` (n,): judged wrong, and where known how rightly."""
        rows = rows[~self.labels.left_out[rows]]
        given, judged = self.labels.given[rows], self.posterior(rows).argmax(1)
        changed = judged != given
        found = {"relations/judged_wrong": float(changed.mean())}
        if self.labels.clean is not None:
            clean = self.labels.clean[rows]
            found["relations/right"] = float((judged == clean).mean())
            found["relations/given_right"] = float((given == clean).mean())
            if changed.any():
                found["relations/judged_rightly"] = float((given != clean)[changed].mean())
        return found

    def matrices(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float32]]:
        """T, and the mean posterior of each given label (C, C): rows given, columns true."""
        rows = rows[~self.labels.left_out[rows]]
        given, posterior = self.labels.given[rows], self.posterior(rows)
        mean = np.zeros_like(self.noise_matrix)
        np.add.at(mean, given, posterior)
        counts = np.bincount(given, minlength=len(mean))[:, None]
        return {"relations/noise_matrix": self.noise_matrix, "relations/posterior": mean / counts.clip(1)}


@dataclass(frozen=True)
class Found:
    """What a `Search` found, of what was asked for."""

    clean: Tensor | None = None
    """q0 (N, C), fp32; uniform where an image is neither labelled nor trained on."""
    noise_matrix: Tensor | None = None
    """T (C, C)."""
    head: tuple[Tensor, Tensor] | None = None
    """Weights (D, C) and biases (C,) of a classifier on the features that the student starts with."""


@dataclass(frozen=True)
class Search:
    """What features say of a training split's labels, to be sought before the first step."""

    train: Dataset
    given: npt.NDArray[np.int64]
    """(N,), -1: no label."""
    rows: npt.NDArray[np.int64]
    """(n,), the samples that are trained on."""
    root: Path
    """Features of all images are cached below it."""
    compute: Compute
    teacher: FrozenEncoder | None
    """By whose features targets are corrected; None: they are not."""
    start: FrozenEncoder | None
    """By whose features the student's classifier starts; None: at random."""
    head: Literal["random", "given", "relations"]
    """What that classifier is a regression of: the given labels, or through T the true classes."""

    def __call__(self, tell: Tell, warn: Tell) -> Found:
        """Seek, and `tell` what people should know, `warn` of what they should act on. Collective.

        All ranks encode, one relates: with little to go by, a rounding may decide between two explanations of
        the labels, and it should not depend on the number of ranks.
        """
        taught = self._features(self.teacher, tell) if self.teacher else None
        begun = taught if self._alike else self._features(self.start, tell) if self.start else None
        return from_main(lambda: self._relate(taught, begun, tell, warn), patient=True)  # type: ignore[no-any-return]

    def _features(self, encoder: FrozenEncoder, tell: Tell) -> Tensor:
        tell(f"features of {len(self.train)} images by {encoder.name}, kept below {self.root}/features")
        return features_of(encoder, self.train, self.root, self.compute)

    def _samples(self, features: Tensor) -> Samples:
        return samples_of(features, self.train, self.given, self.labelled, self.compute.device)

    def _relate(self, taught: Tensor | None, begun: Tensor | None, tell: Tell, warn: Tell) -> Found:
        with parallel.alone():
            found, samples, relations = Found(), None, None
            if taught is not None and self.teacher is not None:
                samples = self._samples(taught)
                relations = estimate(samples)
                _tell(relations, self.given[self.labelled], self.teacher.name, tell, warn)
                clean = self._clean(taught, samples, relations)
                found = Found(clean.cpu(), relations.calibration.noise_matrix.float().cpu())
            if begun is None:
                return found
            if samples is None or begun is not taught:
                samples, relations = self._samples(begun), None
            if self.head == "given":
                relations = estimate_plainly(samples)
            weights, bias = classifier(samples, relations or estimate(samples))
            return replace(found, head=(weights.cpu(), bias.cpu()))

    @property
    def _alike(self) -> bool:
        """Whether both encoders have the same features."""
        if self.start is None or self.teacher is None or self.start.sha256 != self.teacher.sha256:
            return False
        return Preprocess.of(self.start.module) == Preprocess.of(self.teacher.module)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """Those of the samples that have a label."""
        return self.rows[self.given[self.rows] >= 0]

    def _clean(self, features: Tensor, samples: Samples, relations: Relations) -> Tensor:
        """q0: of images without a label by all folds' regressions, none of which has seen them."""
        count, classes, labelled = len(self.train), self.train.info.num_classes, self.labelled
        clean = torch.full((count, classes), 1 / classes, device=self.compute.device)
        clean[torch.from_numpy(labelled)] = relations.clean().float()
        others = np.setdiff1d(self.rows, labelled)
        if not len(others):
            return clean
        weights, bias = classifier(samples, relations)
        for some in np.array_split(others, len(others) // 4096 + 1):
            index = torch.from_numpy(some)
            block = features[index].to(self.compute.device).double()
            clean[index] = (block @ weights + bias).softmax(1).float()
        return clean


def features_of(encoder: FrozenEncoder, dataset: Dataset, root: Path, compute: Compute) -> Tensor:
    """Features (N, D) of all images, on the CPU, in full precision, cached below `root`. Collective."""
    compute = Compute(compute.device, workers=compute.workers)
    encoder.module.eval().requires_grad_(False)
    return cached_features(encoder.module, encoder.sha256, [dataset], root, compute)


def samples_of(
    features: Tensor,
    train: Dataset,
    given: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    device: torch.device,
) -> Samples:
    """Those of `rows`, in folds by the images' content, whatever a device makes of their features."""
    content = image_ids(train)[rows].view(np.int64).reshape(len(rows), -1)
    fold = fold_of(torch.from_numpy(content.copy()), FOLDS)
    index, labels = torch.from_numpy(rows), torch.from_numpy(given[rows])
    return Samples(
        features[index].to(device), labels.to(device), fold.to(device), train.info.num_classes, FOLDS
    )


def _tell(relations: Relations, given: npt.NDArray[np.int64], name: str, tell: Tell, warn: Tell) -> None:
    """Say what was found, and whether it is worth anything: how much features know of what labels say."""
    sizes, T = np.bincount(given) / len(given), relations.calibration.noise_matrix.cpu().numpy()
    entropy = _entropy(sizes)
    gained = relations.calibration.log_likelihood + entropy
    all_of_it = entropy - float(np.mean([_entropy(row) for row in T]))
    share = gained / all_of_it if all_of_it > 0 else 0.0
    tell(
        f"relations: by features of {name}, {T.diagonal().mean():.0%} of the labels of a class are right on "
        f"average; of what they say of classes, features know {max(share, 0.0):.0%}"
    )
    if share < LEAST_SHARE:
        warn(
            f"the features of {name} say next to nothing of these labels, and relation targets will "
            "mislead; give another --teacher, or --targets given"
        )


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    """Of a distribution (C,), in nats."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def check_labels(given: npt.NDArray[np.int64], why: str) -> None:
    """ConfigError, saying `why` it matters, where the labels (n,) of a run have nothing to be related."""
    given = given[given >= 0]
    if len(np.unique(given)) < 2:
        raise ConfigError(
            f"{why}: all labels are of one class, there is nothing that they could be confused with; leave "
            "it out, or give other labels"
        )
    if len(given) < 2 * FOLDS:
        raise ConfigError(
            f"{why} needs at least {2 * FOLDS} labelled images, there are {len(given)}; leave it out"
        )


def _normalised(joint: Tensor) -> Tensor:
    return joint / joint.sum(1, keepdim=True).clamp_min(1e-30)
