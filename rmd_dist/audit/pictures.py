"""What the page shows: doubted images, and beside them rightly labelled ones of the suggested class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist.audit.detect import Audit
from rmd_dist.audit.page import Case
from rmd_dist.audit.subject import Subject

EXAMPLES = 3
_RIGHT = 0.5  # an example's label is right with at least this probability
_CANDIDATES = 20_000  # of a class that are looked at


class Pictures(Mapping[int, npt.NDArray[np.uint8]]):
    """Pixels (H, W, 3) of a subject's images by their number, read when they are asked for."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        return self._subject.pixels(index)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._subject)


def cases(subject: Subject, audit: Audit, features: Tensor, order: Sequence[int]) -> list[Case]:
    """The rows `order` of an audit as cases of the page; `features` (n, D) of its images, on the CPU."""
    nearest = examples(audit, features, order)
    found = []
    for row in order:
        index, suggested = int(subject.rows[row]), int(audit.suggested[row])
        found.append(
            Case(
                index=index,
                path=subject.paths[index],
                given=int(audit.given[row]),
                suggested=suggested,
                p_given=float(audit.p_given[row]),
                p_suggested=float(audit.posterior[row, suggested]),
                picture=index,
                examples=tuple(int(subject.rows[k]) for k in nearest[row]),
                duplicate_of=subject.duplicate_of(index),
                conflict=bool(subject.conflicts[index]),
            )
        )
    return found


def examples(audit: Audit, features: Tensor, rows: Sequence[int]) -> dict[int, list[int]]:
    """Row -> rows of the suggested class, by their own label and the audit, with the nearest features.

    Nearest by the cosine of features whose columns are standardised.
    """
    found: dict[int, list[int]] = {row: [] for row in rows}
    if not len(rows):
        return found
    sample = features[:: max(1, len(features) // _CANDIDATES)].float()
    mean, std = sample.mean(0), sample.std(0) + 1e-6

    def unit(of: npt.NDArray[np.int64]) -> Tensor:
        return torch.nn.functional.normalize((features[torch.from_numpy(of)].float() - mean) / std, dim=1)

    asked = np.asarray(rows, dtype=np.int64)
    for suggested in np.unique(audit.suggested[asked]):
        right = (audit.given == suggested) & ~audit.flagged & (audit.p_given >= _RIGHT)
        candidates = np.flatnonzero(right)[:_CANDIDATES]
        of_class = asked[audit.suggested[asked] == suggested]
        if not len(candidates):
            continue
        similarity = unit(of_class) @ unit(candidates).T
        similarity[torch.from_numpy(of_class[:, None] == candidates[None])] = -torch.inf  # not itself
        best = similarity.topk(min(EXAMPLES, len(candidates)), dim=1)
        for row, near, values in zip(of_class, best.indices, best.values, strict=True):
            found[int(row)] = candidates[near[values > -torch.inf].numpy()].tolist()
    return found
