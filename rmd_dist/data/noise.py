"""Label noise: protocols with a name, a rate and a seed, and a manifest that says what came out.

Public codebases mean different things by the same word, so every meaning has a name here. All draws
come from numpy's raw Philox stream, whose values numpy keeps fixed over versions and platforms (NEP 19),
one pair for each sample: a lower rate flips a subset of the samples that a higher one flips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config import ConfigError
from rmd_dist.data.classes import CIFAR100_COARSE
from rmd_dist.data.datasets import DATASET_INFO
from rmd_dist.data.human import load_human_labels

Labels = npt.NDArray[np.int64]

PROTOCOLS: dict[str, str] = {
    "none": "the given labels",
    "symmetric": "uniform over the other classes; round(rate n_c) labels of each class c flip",
    "symmetric-inclusive": "uniform over all classes, the true one included; round(rate n_c) are drawn anew",
    "asymmetric": "CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog, dog to cat, "
    "drawn simultaneously; CIFAR-100: next fine class within the true superclass",
    "asymmetric-idblock": "CIFAR-100: next id within blocks of five ids (not superclasses)",
    "pairflip": "class c to c + 1, the last to 0",
    "human:NAME": "CIFAR-10N / CIFAR-100N labels: aggre_label, random_label1..3, worse_label; noisy_label",
}

_CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
_STREAM = 0x6E6F697365  # "noise": the second word of the key, apart from the epochs of the sample order


@dataclass(frozen=True)
class NoisyLabels:
    """Labels to train on, and what was done to them."""

    labels: Labels
    """(N,)"""
    flipped: npt.NDArray[np.bool_]
    """(N,), whether the label differs from the clean one. For reporting only."""
    manifest: dict[str, Any]
    """JSON-ready: protocol, nominal_rate, realised_rate, seed, dataset, num_classes, count,
    transitions (C x C counts, rows true), labels_sha256 (of little-endian int64)."""


def make_noise(
    labels: npt.ArrayLike,
    protocol: str,
    rate: float,
    seed: int,
    num_classes: int,
    *,
    dataset: str | None = None,
    root: str | Path = "data",
) -> NoisyLabels:
    """Put `protocol` noise of `rate` on the clean `labels` (N,), all training samples in their order.

    `seed` is the noise's own, never the training seed. `dataset` is needed where a protocol depends on
    what the classes mean; None: CIFAR-10 for 10 classes, CIFAR-100 for 100. `root`: folder (or file) of
    human labels; these bring their own rate, so `rate` and `seed` are ignored, as they are for `none`.
    Raises ConfigError for values out of range, an unknown protocol, or one that does not fit the data set.
    """
    dataset = dataset or {10: "cifar10", 100: "cifar100"}.get(num_classes)
    clean = _checked(labels, rate, seed, num_classes, dataset)
    nominal: float | None = float(rate)
    if protocol == "none":
        noisy, nominal = clean.copy(), 0.0
    elif protocol.startswith("human:"):
        name = protocol.removeprefix("human:")
        noisy = load_human_labels(dataset or f"{num_classes} classes", name, clean, num_classes, Path(root))
        nominal = None
    elif protocol in ("symmetric", "symmetric-inclusive"):
        inclusive = protocol == "symmetric-inclusive"
        chosen, draw = _draws(clean, np.arange(num_classes), rate, seed)
        step = _below(draw, num_classes) if inclusive else 1 + _below(draw, num_classes - 1)
        noisy = np.where(chosen, (clean + step) % num_classes, clean)
    else:
        target = _targets(protocol, num_classes, dataset)
        chosen, _ = _draws(clean, np.array(sorted(target)), rate, seed)
        table = np.arange(num_classes)
        table[list(target)] = list(target.values())
        noisy = np.where(chosen, table[clean], clean)
    return _result(clean, noisy, num_classes, protocol, nominal, seed, dataset)


def _checked(labels: npt.ArrayLike, rate: float, seed: int, num_classes: int, dataset: str | None) -> Labels:
    clean = np.asarray(labels)
    if clean.ndim != 1 or not clean.size or clean.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape (N,), N > 0, got {clean.dtype} {clean.shape}")
    if num_classes < 2 or clean.min() < 0 or clean.max() >= num_classes:
        raise ValueError(f"labels from {clean.min()} to {clean.max()} do not fit {num_classes} classes")
    if dataset in DATASET_INFO and DATASET_INFO[dataset].num_classes != num_classes:
        raise ValueError(f"{dataset} has {DATASET_INFO[dataset].num_classes} classes, not {num_classes}")
    if not 0 <= rate <= 1:  # false for nan, too
        raise ConfigError(f"noise rate {rate} is not in [0, 1]; give a share such as 0.4")
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"noise seed {seed} is not in [0, 2^64); give a number such as 0")
    return clean.astype(np.int64)


def _draws(
    clean: Labels, classes: Labels, rate: float, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """Which samples flip, exactly round(rate n_c) of each of `classes`; a number for each one's target."""
    key = np.array([seed, _STREAM], dtype=np.uint64)
    first, second = np.random.Philox(key=key).random_raw(2 * len(clean)).reshape(-1, 2).T
    chosen = np.zeros(len(clean), dtype=bool)
    for c in classes:
        members = np.flatnonzero(clean == c)
        order = np.argsort(first[members], kind="stable")
        chosen[members[order[: round(rate * len(members))]]] = True
    return chosen, second


def _below(raw: npt.NDArray[np.uint64], bound: int) -> Labels:
    """Uniform integers in [0, bound) from 64-bit ones (53 bits are used)."""
    return ((raw >> np.uint64(11)) * 2.0**-53 * bound).astype(np.int64)


def _targets(protocol: str, num_classes: int, dataset: str | None) -> Mapping[int, int]:
    """What each flipped class becomes."""
    if protocol == "pairflip":
        return {c: (c + 1) % num_classes for c in range(num_classes)}
    if protocol == "asymmetric" and dataset == "cifar10":
        return _CIFAR10_PAIRS
    if protocol == "asymmetric" and dataset == "cifar100":
        return next_in_superclass()
    if protocol == "asymmetric-idblock" and dataset == "cifar100":
        return {c: c // 5 * 5 + (c + 1) % 5 for c in range(100)}
    if protocol not in PROTOCOLS:
        raise ConfigError(f"noise protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    fitting = [p for p in PROTOCOLS if not p.startswith(("asymmetric", "human"))]
    if dataset == "cifar10":
        fitting.append("asymmetric")
    raise ConfigError(
        f"noise protocol {protocol} is not defined for {dataset or f'{num_classes} classes'}; "
        f"choose one of {', '.join(fitting)}, or a data set that has it"
    )


def next_in_superclass() -> dict[int, int]:
    """The next fine class of CIFAR-100, by id, within the superclass; after the last comes the first."""
    target: dict[int, int] = {}
    for coarse in range(20):
        members = [fine for fine in range(100) if CIFAR100_COARSE[fine] == coarse]
        target |= dict(zip(members, members[1:] + members[:1], strict=True))
    return target


def _result(
    clean: Labels,
    noisy: Labels,
    num_classes: int,
    protocol: str,
    nominal: float | None,
    seed: int,
    dataset: str | None,
) -> NoisyLabels:
    flipped = noisy != clean
    transitions = np.bincount(clean * num_classes + noisy, minlength=num_classes**2)
    manifest = {
        "protocol": protocol,
        "nominal_rate": nominal,
        "realised_rate": float(flipped.mean()),
        "seed": int(seed),
        "dataset": dataset,
        "num_classes": num_classes,
        "count": len(clean),
        "transitions": transitions.reshape(num_classes, num_classes).tolist(),
        "labels_sha256": hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest(),
    }
    return NoisyLabels(noisy, flipped, manifest)


def transition_rows(
    manifest: Mapping[str, Any], classes: Sequence[str]
) -> tuple[list[str], list[list[str | int]]]:
    """Column titles and rows of a table of the transitions, for people to read.

    The full matrix up to 20 classes, else what each class became most often.
    """
    matrix = np.array(manifest["transitions"])
    if len(classes) <= 20:
        return ["true \\ given", *classes], [
            [name, *map(int, row)] for name, row in zip(classes, matrix, strict=True)
        ]
    rows: list[list[str | int]] = []
    for c, row in enumerate(matrix):
        others = [k for k in np.argsort(-row, kind="stable") if k != c and row[k]]
        text = ", ".join(f"{classes[k]} {row[k]}" for k in others[:3]) + (", ..." if len(others) > 3 else "")
        rows.append([classes[c], int(row[c]), int(row.sum() - row[c]), text])
    return ["true", "kept", "flipped", "most often to"], rows
