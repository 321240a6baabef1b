"""The accuracies that the paper prints in its Tables 1 to 5."""

from __future__ import annotations

import csv
import functools
from importlib import resources
from typing import TypeAlias

Key: TypeAlias = tuple[int, str, str, str, float, float | None]
"""Table, data set, method, noise, rate, K (None in Tables 1 and 2)."""

K_TABLES = (3, 4, 5)
"""Tables that compare values of K, and agree where they overlap: they are read as one, the first of them.

In the others a method's name says all, and K was tuned unseen.
"""


@functools.cache
def _accuracies() -> dict[Key, float]:
    text = (resources.files("rmd_dist.report") / "paper_results.csv").read_text()
    found: dict[Key, float] = {}
    for row in csv.DictReader(text.splitlines()):
        table = int(row["table"])
        key = _key(
            table, row["dataset"], row["method"], row["noise"], float(row["rate"]), float(row["K"] or 0)
        )
        accuracy = float(row["accuracy"])
        assert found.setdefault(key, accuracy) == accuracy, key
    return found


def paper_accuracy(
    table: int | None, dataset: str, method: str, noise: str, rate: float, K: float | None = None
) -> float | None:
    """The paper's accuracy in per cent; None where it prints none.

    `method` as in the table: CE, CE+RMDNet, CE+RGRL (K=5). `K` counts in Tables 3 to 5 alone, whose
    methods are all called LOSS+RMDNet, K = 0 included.
    """
    if table is None:
        return None
    return _accuracies().get(_key(table, dataset, method, noise, rate, K))


def _key(table: int, dataset: str, method: str, noise: str, rate: float, K: float | None) -> Key:
    compared = table in K_TABLES
    return K_TABLES[0] if compared else table, dataset, method, noise, rate, K if compared else None
