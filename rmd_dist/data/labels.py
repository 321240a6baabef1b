"""The labels a run trains on, what is known of the true ones, and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.data.dataset import Dataset
from rmd_dist.data.label_files import LEFT_OUT, read_labels
from rmd_dist.data.noise import make_noise
from rmd_dist.errors import ConfigError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Labels of all training samples, by sample index."""

    given: Ints
    """(N,), the labels to train on; LEFT_OUT (-1): the image is not."""
    clean: Ints | None
    """(N,), the true ones, for reporting only; None where nobody knows them."""
    manifest: dict[str, Any]
    """JSON-ready: protocol, nominal_rate, realised_rate, seed, dataset, num_classes, count,
    transitions (C x C counts, rows the data set's own labels), labels_sha256 (of the given ones as
    little-endian int64); left_out, if any: how many images, of which the counts and rates know nothing."""

    @property
    def left_out(self) -> npt.NDArray[np.bool_]:
        """(N,), whether an image is neither trained on nor held out."""
        left_out: npt.NDArray[np.bool_] = self.given == LEFT_OUT
        return left_out

    @property
    def flipped(self) -> npt.NDArray[np.bool_] | None:
        """(N,), whether a label is given that is not the true one; None where nobody knows that."""
        return None if self.clean is None else (self.given != self.clean) & ~self.left_out


def labels_sha256(given: Ints) -> str:
    """Hex SHA-256 of labels (N,) as little-endian int64, by which runs and audits tell them apart."""
    return hashlib.sha256(given.astype("<i8").tobytes()).hexdigest()


def make_labels(
    dataset: Dataset,
    protocol: str,
    rate: float,
    seed: int,
    root: str | Path = "data",
    file: Path | None = None,
) -> Labels:
    """The labels of `dataset` with `protocol` noise of `rate`, drawn from the noise's own `seed`.

    `root`: folder (or file) of human labels; `file`: of labels, with the protocol `file`. The labels of own
    images are nobody's truth: they count as clean only where noise is made of them. Raises ConfigError for
    values out of range, an unknown protocol, or one that does not fit the data set (see `make_noise`).
    """
    info, own = dataset.info, dataset.labels
    if info.num_classes < 2:
        held = f"one class alone, {info.classes[0]}" if info.classes else "no labels"
        raise ConfigError(
            f"{info.name} has {held}, with which only rmd pretrain works; put the images into folders of "
            "classes, or name them with their labels in a table"
        )
    given = read_labels(file, dataset) if file else make_noise(own, protocol, rate, seed, info, root)
    known = not info.varied or protocol not in ("none", "file")
    kept = given != LEFT_OUT
    transitions = np.bincount((own * info.num_classes + given)[kept], minlength=info.num_classes**2)
    nominal = 0.0 if protocol == "none" else float(rate)
    manifest = {
        "protocol": protocol,
        "nominal_rate": None if protocol == "file" or protocol.startswith("human:") else nominal,
        "realised_rate": float((given != own)[kept].mean()) if known and kept.any() else None,
        "seed": int(seed),
        "dataset": info.name,
        "num_classes": info.num_classes,
        "count": len(own),
        "transitions": transitions.reshape(info.num_classes, info.num_classes).tolist(),
        "labels_sha256": labels_sha256(given),
    } | ({} if kept.all() else {"left_out": int((~kept).sum())})
    return Labels(given, own if known else None, manifest)


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
