"""Label noise: protocols, each with a name, that put a rate of wrong labels on clean ones by a seed.

Public codebases mean different things by the same word, so every meaning has a name here. All draws
come from numpy's raw Philox stream, whose values numpy keeps fixed over versions and platforms (NEP 19),
one pair for each sample: a lower rate flips a subset of the samples that a higher one flips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.data.sources.base import DatasetInfo
from rmd_dist.data.sources.human import load_human_labels
from rmd_dist.errors import ConfigError

Ints = npt.NDArray[np.int64]

_STREAM = 0x6E6F697365  # "noise": the second word of the key, apart from the epochs of the sample order


@dataclass(frozen=True)
class Request:
    """What a protocol is asked for."""

    protocol: str
    """Its full name."""
    clean: Ints
    """(N,)"""
    rate: float
    seed: int
    info: DatasetInfo
    root: Path
    """Folder (or file) of human labels."""


@dataclass(frozen=True)
class Protocol:
    """What a name means, and the function that does it: the noisy labels (N,), a new array."""

    meaning: str
    make: Callable[[Request], Ints]


def make_noise(
    labels: npt.ArrayLike,
    protocol: str,
    rate: float,
    seed: int,
    info: DatasetInfo,
    root: str | Path = "data",
) -> Ints:
    """The clean `labels` (N,), all training samples of a data set in their order, with noise on them.

    `seed` is the noise's own, never the training seed. `root`: folder (or file) of human labels; these bring
    their own rate, so `rate` and `seed` are ignored, as they are for `none`. Raises ConfigError for values
    out of range, an unknown protocol, or one that does not fit the data set.
    """
    clean = _checked(labels, info)
    if not 0 <= rate <= 1:  # false for nan, too
        raise ConfigError(f"noise rate {rate} is not in [0, 1]; give a share such as 0.4")
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"noise seed {seed} is not in [0, 2^64); give a number such as 0")
    if protocol == "file":
        raise ConfigError("noise protocol file needs a file of labels")
    known = PROTOCOLS.get("human:NAME" if protocol.startswith("human:") else protocol)
    if known is None:
        raise ConfigError(f"noise protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return known.make(Request(protocol, clean, rate, seed, info, Path(root)))


def _checked(labels: npt.ArrayLike, info: DatasetInfo) -> Ints:
    clean = np.asarray(labels)
    if clean.ndim != 1 or not clean.size or clean.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape (N,), N > 0, got {clean.dtype} {clean.shape}")
    if info.num_classes < 2 or clean.min() < 0 or clean.max() >= info.num_classes:
        raise ValueError(f"labels from {clean.min()} to {clean.max()} do not fit {info.num_classes} classes")
    return clean.astype(np.int64)


def _symmetric(request: Request) -> Ints:
    classes = request.info.num_classes
    chosen, draw = _draws(request, np.arange(classes))
    return np.where(chosen, (request.clean + 1 + _below(draw, classes - 1)) % classes, request.clean)


def _symmetric_inclusive(request: Request) -> Ints:
    classes = request.info.num_classes
    chosen, draw = _draws(request, np.arange(classes))
    return np.where(chosen, (request.clean + _below(draw, classes)) % classes, request.clean)


def _pairflip(request: Request) -> Ints:
    classes = request.info.num_classes
    return _mapped(request, {c: (c + 1) % classes for c in range(classes)})


def _confused(request: Request) -> Ints:
    """By what the classes mean, which the data set knows."""
    confusions = request.info.confusions
    if request.protocol not in confusions:
        general = [name for name, p in PROTOCOLS.items() if p.make is not _confused and p.make is not _human]
        raise ConfigError(
            f"noise protocol {request.protocol} is not defined for {request.info.name}; "
            f"choose one of {', '.join([*general, *confusions])}, or a data set that has it"
        )
    return _mapped(request, confusions[request.protocol])


def _human(request: Request) -> Ints:
    annotation = request.protocol.removeprefix("human:")
    return load_human_labels(
        request.info.name, annotation, request.clean, request.info.num_classes, request.root
    )


PROTOCOLS: dict[str, Protocol] = {
    "none": Protocol("the given labels", lambda request: request.clean.copy()),
    "symmetric": Protocol(
        "uniform over the other classes; round(rate n_c) labels of each class c flip", _symmetric
    ),
    "symmetric-inclusive": Protocol(
        "uniform over all classes, the true one included; round(rate n_c) are drawn anew",
        _symmetric_inclusive,
    ),
    "asymmetric": Protocol(
        "CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog, dog to cat, "
        "drawn simultaneously; CIFAR-100: next fine class within the true superclass",
        _confused,
    ),
    "asymmetric-idblock": Protocol(
        "CIFAR-100: next id within blocks of five ids (not superclasses)", _confused
    ),
    "pairflip": Protocol("class c to c + 1, the last to 0", _pairflip),
    "human:NAME": Protocol(
        "CIFAR-10N / CIFAR-100N labels: aggre_label, random_label1..3, worse_label; noisy_label", _human
    ),
}


def _mapped(request: Request, target: Mapping[int, int]) -> Ints:
    """Labels of the classes of `target` flip to what it says."""
    chosen, _ = _draws(request, np.array(sorted(target)))
    table = np.arange(request.info.num_classes)
    table[list(target)] = list(target.values())
    return np.where(chosen, table[request.clean], request.clean)


def _draws(request: Request, classes: Ints) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """Which samples flip, exactly round(rate n_c) of each of `classes`; a number for each one's target."""
    key = np.array([request.seed, _STREAM], dtype=np.uint64)
    first, second = np.random.Philox(key=key).random_raw(2 * len(request.clean)).reshape(-1, 2).T
    chosen = np.zeros(len(request.clean), dtype=bool)
    for c in classes:
        members = np.flatnonzero(request.clean == c)
        order = np.argsort(first[members], kind="stable")
        chosen[members[order[: round(request.rate * len(members))]]] = True
    return chosen, second


def _below(raw: npt.NDArray[np.uint64], bound: int) -> Ints:
    """Uniform integers in [0, bound) from 64-bit ones (53 bits are used)."""
    return ((raw >> np.uint64(11)) * 2.0**-53 * bound).astype(np.int64)
