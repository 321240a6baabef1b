"""Measures of a model: accuracy, confusion, memorisation, weighted kNN, linear probe.

They take the outputs that `predict` gathered, which are the same on every rank, and every rank returns the
same figures. Functions that talk to other ranks say so, and must be called by all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.errors import ConfigError
from rmd_dist.parallel.numerics import full_precision

Integers: TypeAlias = npt.NDArray[np.int64] | Tensor
"""Labels or indices, (N,), as NumPy array or as tensor."""

KNN_BLOCK = 256  # queries of one similarity block: 256 x 50 000 float32 is 50 MB
_VOTE_UNITS = 2.0**38  # of a weight in (0, 1]: whole numbers, whose sum up to 2^25 neighbours is exact


@dataclass(frozen=True)
class Classification:
    """How predictions agree with labels."""

    accuracy: float
    """Share of samples predicted right, in [0, 1]."""

    per_class: npt.NDArray[np.float64]
    """(C,) the same share of each true class; nan for a class without samples."""

    confusion: npt.NDArray[np.int64]
    """(C, C) counts, rows: true class, columns: predicted class."""

    def to_scalars(self, prefix: str = "test") -> dict[str, float]:
        """Tag -> value: overall accuracy, and that of the worst class that has samples."""
        return {
            f"{prefix}/accuracy": self.accuracy,
            f"{prefix}/accuracy_worst_class": float(np.nanmin(self.per_class)),
        }


def classification(predicted: Integers, labels: Integers, num_classes: int) -> Classification:
    """Accuracy and confusion matrix of `predicted` (N,) against `labels` (N,), classes 0 to C - 1."""
    predicted, labels = _numpy(predicted), _numpy(labels)
    _same_length("predicted", predicted, "labels", labels)
    for name, values in (("predicted", predicted), ("labels", labels)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"{name} holds {values.min()} to {values.max()}, classes are 0 to {num_classes - 1}"
            )
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes).astype(np.int64)
    counts = confusion.sum(axis=1)
    per_class = np.full(num_classes, np.nan)
    np.divide(confusion.diagonal(), counts, out=per_class, where=counts > 0)
    return Classification(float(confusion.trace() / len(labels)), per_class, confusion)


@dataclass(frozen=True)
class Memorisation:
    """What a model trained on noisy labels makes of its training samples. Shares are nan without samples."""

    clean_count: int
    """Samples whose given label is true."""

    wrong_count: int
    """Samples whose given label is wrong."""

    clean_fitted: float
    """Share of the clean-labelled that are predicted as labelled."""

    wrong_memorised: float
    """Share of the wrongly-labelled that are predicted as their GIVEN, wrong label."""

    wrong_recovered: float
    """Share of the wrongly-labelled that are predicted as their TRUE class."""

    def to_scalars(self, prefix: str = "memorisation") -> dict[str, float]:
        """Tag -> value; a share without samples (no noise, say) is left out."""
        shares = {
            f"{prefix}/clean_fitted": self.clean_fitted,
            f"{prefix}/wrong_memorised": self.wrong_memorised,
            f"{prefix}/wrong_recovered": self.wrong_recovered,
        }
        return {tag: value for tag, value in shares.items() if not math.isnan(value)}


def memorisation(predicted: Integers, given: Integers, clean: Integers) -> Memorisation:
    """Compare predictions with the given (noisy) and the clean labels, each (N,).

    For reporting only (docs/architecture.md, contract 7): no training decision may read the result.
    """
    predicted, given, clean = _numpy(predicted), _numpy(given), _numpy(clean)
    _same_length("predicted", predicted, "given", given)
    _same_length("predicted", predicted, "clean", clean)
    wrong = given != clean
    return Memorisation(
        clean_count=int((~wrong).sum()),
        wrong_count=int(wrong.sum()),
        clean_fitted=_share((predicted == given)[~wrong]),
        wrong_memorised=_share((predicted == given)[wrong]),
        wrong_recovered=_share((predicted == clean)[wrong]),
    )


def at_chance(accuracy: float, num_classes: int, count: int) -> bool:
    """Whether an accuracy on `count` images is no better than guessing (within 3 standard errors)."""
    chance = 1 / num_classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / max(count, 1))


def knn_accuracy(
    bank: Tensor,
    bank_labels: Integers,
    queries: Tensor,
    query_labels: Integers,
    k: int = 200,
    temperature: float = 0.1,
    device: torch.device | None = None,
) -> float:
    """Accuracy of the weighted kNN classifier of Wu et al. 2018 (arXiv:1805.01978, section 3.4). Collective.

    Of a query's k nearest bank rows by cosine similarity s, each votes for its label with weight
    exp(s / temperature). bank (N, D) and queries (M, D) are the same on every rank; ranks share the
    queries. k is capped by N. Computed on `device` (default: the bank's), on which the ranks'
    collectives must run too: a GPU's under NCCL. Features that are not finite give nan.
    """
    if k < 1 or not temperature > 0:
        raise ConfigError(
            f"kNN with k={k}, temperature={temperature}: k must be at least 1 and the temperature positive; "
            "set --eval.knn_k and --eval.knn_temperature"
        )
    if not (bank.isfinite().all() and queries.isfinite().all()):
        return math.nan
    device = device or bank.device
    bank = F.normalize(bank.to(device).float(), dim=1)
    voted = torch.as_tensor(bank_labels).to(device)
    truth = torch.as_tensor(query_labels).to(device)
    num_classes = int(voted.max()) + 1
    # Ranks share whole blocks: a block has the same shape, hence the same rounding, on any number of ranks.
    starts = range(0, len(queries), KNN_BLOCK)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for start in starts[parallel.share(len(starts), parallel.rank(), parallel.world_size())]:
        block = F.normalize(queries[start : start + KNN_BLOCK].to(device).float(), dim=1)
        with full_precision(device):
            similarity, neighbour = (block @ bank.T).topk(min(k, len(bank)), dim=1)
        # Votes only compare: taking off the greatest similarity keeps a small temperature from overflow. They
        # are added up as whole numbers, so that the order, which a GPU leaves to chance, cannot matter.
        weight = ((similarity - similarity[:, :1]).double() / temperature).exp().mul(_VOTE_UNITS).long()
        votes = weight.new_zeros(len(block), num_classes).scatter_add_(1, voted[neighbour], weight)
        correct += (votes.argmax(dim=1) == truth[start : start + KNN_BLOCK]).sum()
    return parallel.all_reduce_sum(correct).item() / len(queries)


def linear_probe(
    train_features: Tensor, train_labels: Integers, test_features: Tensor, test_labels: Integers
) -> float:
    """Test accuracy of logistic regression (L2, C = 1, L-BFGS) on standardised features. Collective.

    Features (N, D) and (M, D). Deterministic: fitted on rank 0, for which the others wait, hours if need be.
    Labels of fewer than two classes or features that are not finite give nan.
    """
    accuracy = math.nan
    if parallel.is_main() and train_features.isfinite().all() and test_features.isfinite().all():
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels = _numpy(train_labels)
        if len(np.unique(labels)) > 1:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(train_features.cpu().numpy(), labels)
            accuracy = float(probe.score(test_features.cpu().numpy(), _numpy(test_labels)))
    result: float = parallel.broadcast_object(accuracy, patient=True)
    return result


def _numpy(values: Integers) -> npt.NDArray[np.int64]:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _same_length(name: str, a: npt.NDArray[np.int64], other: str, b: npt.NDArray[np.int64]) -> None:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"{name} {a.shape} and {other} {b.shape} must be (N,) of the same N > 0")


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else math.nan
