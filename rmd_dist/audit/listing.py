"""The files of an audit that other programs read: wrong_labels.csv, corrected.csv, noise_matrix.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.audit.detect import Audit
from rmd_dist.audit.subject import Subject
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import write_csv

WRONG_LABELS = "wrong_labels.csv"
CORRECTED = "corrected.csv"
COLUMNS = (
    *("rank", "path", "index", "split", "is_label_issue", "label_score", "given_label", "predicted_label"),
    *("p_given", "p_predicted", "duplicate_of", "conflict"),
)
"""Of wrong_labels.csv; is_label_issue, label_score, given_label and predicted_label as cleanlab has them."""


def write_wrong_labels(
    path: Path, subject: Subject, audit: Audit, more: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write every image, worst first. `more`: columns (n,) beside.

    Images without a label come last, without a rank.
    """
    names, splits, classes = subject.paths, subject.splits(), subject.classes

    def place(index: int) -> list[Any]:
        return [names[index], index, splits[index]]

    def equal(index: int) -> list[Any]:
        return [subject.duplicate_of(index), bool(subject.conflicts[index])]

    def line(rank: int, row: int) -> list[Any]:
        index, suggested = int(subject.rows[row]), int(audit.suggested[row])
        return [
            rank + 1,
            *place(index),
            bool(audit.flagged[row]),
            f"{audit.p_given[row]:.6g}",
            classes[audit.given[row]],
            classes[suggested],
            f"{audit.p_given[row]:.6g}",
            f"{audit.posterior[row, suggested]:.6g}",
            *equal(index),
            *(values[row] for values in more.values()),
        ]

    lines = [line(rank, int(row)) for rank, row in enumerate(audit.order)]
    for index in np.setdiff1d(np.arange(len(subject)), subject.rows).tolist():
        lines.append(["", *place(index), False, *[""] * 5, *equal(index), *[""] * len(more)])
    with writing(path):
        write_csv(path, [*COLUMNS, *more], lines)


def write_corrected(path: Path, names: Sequence[str], labels: Iterable[int], classes: Sequence[str]) -> None:
    """Write labels as `--labels` takes them: by path, or by index where images have no files; -1 is empty."""
    own = any(names)
    keys: Sequence[Any] = names if own else range(len(names))
    texts = ("" if label < 0 else classes[label] for label in labels)
    with writing(path):
        write_csv(path, ["path" if own else "index", "label"], zip(keys, texts, strict=True))


def write_noise_matrix(path: Path, audit: Audit, classes: Sequence[str]) -> None:
    """Write the share of each true class (rows) that is labelled as each class (columns)."""
    rows = (
        [name, *(f"{share:.6g}" for share in row)]
        for name, row in zip(classes, audit.noise_matrix, strict=True)
    )
    with writing(path):
        write_csv(path, ["true \\ given", *classes], rows)


def read_wrong_labels(path: Path) -> list[dict[str, str]]:
    """The rows of an audit's list, in the order of the images. Raises ConfigError if it is none."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {*COLUMNS} <= rows[0].keys():
            raise ValueError("it lacks columns")
        return sorted(rows, key=lambda row: int(row["index"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(
            f"{path} cannot be read ({error!s:.100}); make the audit anew: rmd audit"
        ) from error
