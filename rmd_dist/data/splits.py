"""Which samples a run trains on: a fixed random subset, and a held-out share of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rmd_dist.data.render.rng import permutation
from rmd_dist.errors import ConfigError

Indices = npt.NDArray[np.int64]

# Streams of their own, in epochs that no training reaches: all runs agree on the subset and the hold-out.
_SUBSET, _HOLD_OUT, _PROBE = 2**62, 2**62 + 1, 2**62 + 2


@dataclass(frozen=True)
class Splits:
    """Sample indices, each in rising order."""

    train: Indices
    """Of the training split: what is trained on."""

    validation: Indices
    """Of the training split: what is held out, to select a checkpoint by its noisy labels."""

    probe: Indices
    """Of `train`: what is measured while training."""

    test: Indices
    """Of the test split."""

    def without(self, left_out: npt.NDArray[np.bool_]) -> Splits:
        """Without those of the training split that are `left_out` (N,); as many others are measured.

        Raises ConfigError where none remain to train on, or of those held out.
        """
        train, validation = (part[~left_out[part]] for part in (self.train, self.validation))
        for name, before, after in (
            ("train on", self.train, train),
            ("hold out", self.validation, validation),
        ):
            if len(before) and not len(after):
                raise ConfigError(
                    f"the labels leave out all {len(before)} images to {name}; give some of them a label"
                )
        return replace(self, train=train, validation=validation, probe=probe(train, len(self.probe)))


def choose(
    train_count: int,
    test_count: int,
    *,
    train_samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.0,
    probe_samples: int = 0,
    groups: Callable[[], Indices] | None = None,
) -> Splits:
    """The splits of a run over `train_count` and `test_count` images; the same for every seed.

    `train_samples` of the training images are used, a share of `validation` of them held out, and at most
    `probe_samples` of the others measured (0: all); the first `test_samples` test images are measured,
    or with `groups` so many of them, always the same.
    `groups` gives (train_count,) numbers: samples of equal ones are not parted by the hold-out.
    Raises ConfigError if `train_samples` exceeds the count.
    """
    chosen = subset(train_count, train_samples)
    train, held_out = hold_out(chosen, validation, groups()[chosen] if groups and validation else None)
    in_order: Indices = np.arange(test_count)[:test_samples]
    # Own images come class by class.
    test = subset(test_count, min(test_samples or test_count, test_count)) if groups else in_order
    return Splits(train, held_out, probe(train, probe_samples), test)


def subset(count: int, size: int | None) -> Indices:
    """`size` of `count` sample indices, drawn uniformly and always the same way, in rising order.

    Labels play no part, so nothing about them leaks into the choice. Smaller subsets lie within larger ones.
    Raises ConfigError if `size` exceeds `count`.
    """
    if size is not None and size > count:
        raise ConfigError(f"data.train_samples = {size}, but there are {count} samples; ask for fewer")
    return np.sort(permutation(count, 0, _SUBSET)[: size or count])


def hold_out(indices: Indices, share: float, groups: Indices | None = None) -> tuple[Indices, Indices]:
    """Split `indices` into (training, validation), the latter round(share * n) of them.

    `groups` (n,): whole groups of equal numbers are held out, as many as come to that count. Raises
    ConfigError where a share is asked for that leaves one of the two empty.
    """
    size, order = round(share * len(indices)), permutation(len(indices), 0, _HOLD_OUT)
    if groups is not None:  # whoever is met first brings the rest of its group
        _, first, group = np.unique(groups[order], return_index=True, return_inverse=True)
        order = order[np.argsort(first[group], kind="stable")]
        turns = np.flatnonzero(np.diff(np.sort(first[group]), prepend=-1))
        turns = turns[turns > 0]
        size = int(turns[np.argmin(np.abs(turns - size))]) if len(turns) else len(indices)
    if share and not 0 < size < len(indices):
        raise ConfigError(
            f"validation = {share:g} of {len(indices)} samples holds out {size}; choose a share that leaves "
            "some on both sides"
        )
    shuffled = indices[order]
    return np.sort(shuffled[size:]), np.sort(shuffled[:size])


def probe(indices: Indices, size: int) -> Indices:
    """At most `size` of `indices` (0: all), a fixed random choice: what is measured on training samples."""
    if size == 0 or size >= len(indices):
        return indices
    return np.sort(indices[permutation(len(indices), 0, _PROBE)[:size]])
