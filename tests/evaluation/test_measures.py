"""Measures: against slow loops and scikit-learn, by hand, and the same on any number of ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation import measures as evaluate
from rmd_dist.evaluation.measures import (
    classification,
    knn_accuracy,
    linear_probe,
    memorisation,
)
from rmd_dist.evaluation.predict import gather_by_index, predict, predict_classes

INFO = dataset_info("digits")


class IndexModel(nn.Module):
    """Logits whose argmax is (first pixel) mod 3, of images as they are."""

    pretrained_cfg: ClassVar = Preprocess((4, 4), (0.0,) * 3, (1 / 255,) * 3).to_cfg()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0, 0, 0].round().long() % 3, 3).double()


def numbered(count: int = 9) -> Dataset:
    """Every pixel of an image is its sample index."""
    images = np.arange(count, dtype=np.uint8).repeat(48).reshape(count, 4, 4, 3)
    return Dataset(replace(INFO, image_size=4), "test", np.arange(count) % 3, images=images)


def random_dataset(count: int) -> Dataset:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Dataset(INFO, "test", rng.integers(0, 10, count), images=images)


# --- classification and memorisation ---


def test_classification_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    result = classification(torch.from_numpy(predicted), truth, 5)
    assert np.array_equal(result.confusion, metrics.confusion_matrix(truth, predicted))
    assert result.accuracy == metrics.accuracy_score(truth, predicted)
    np.testing.assert_allclose(result.per_class, metrics.recall_score(truth, predicted, average=None))


def test_classification_by_hand_with_an_absent_class() -> None:
    result = classification(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 0]), 3)
    assert result.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.per_class[:2].tolist() == [2 / 3, 1.0] and math.isnan(result.per_class[2])
    assert result.to_scalars("x") == {"x/accuracy": 0.75, "x/accuracy_worst_class": 2 / 3}


@pytest.mark.parametrize("predicted, labels", [([0, 3], [0, 1]), ([0, 1], [0, -1]), ([0, 1], [0]), ([], [])])
def test_classification_refuses_what_cannot_be_counted(predicted: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError):
        classification(np.array(predicted, dtype=np.int64), np.array(labels, dtype=np.int64), 3)


def test_memorisation_by_hand() -> None:
    clean = np.array([0, 0, 1, 1, 2, 2, 0])
    given = np.array([0, 0, 1, 2, 0, 1, 1])  # the last four are wrong
    predicted = np.array([0, 1, 1, 2, 2, 0, 0])  # memorised, recovered, neither, recovered
    result = memorisation(predicted, given, clean)
    assert (result.clean_count, result.wrong_count) == (3, 4)
    assert result.to_scalars() == {
        "memorisation/clean_fitted": 2 / 3,
        "memorisation/wrong_memorised": 1 / 4,
        "memorisation/wrong_recovered": 2 / 4,
    }


def test_memorisation_without_noise_has_no_share_of_wrong_labels() -> None:
    labels = np.array([0, 1])
    assert memorisation(labels, labels, labels).to_scalars() == {"memorisation/clean_fitted": 1.0}


# --- running a model ---


def test_predict_leaves_every_mode_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Sequential(nn.Dropout(0.5)))
    model.pretrained_cfg = IndexModel.pretrained_cfg
    model.train()
    model[2].eval()  # as a frozen part
    seen = []
    for part in (model[1], model[2][0]):
        part.register_forward_hook(lambda module, *_: seen.append(module.training))
    outputs = predict(model, numbered())
    assert seen == [False, False] and model.training and not model[2].training
    assert not outputs.requires_grad and not outputs.is_inference()

    def stop() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        predict(model, numbered(), between=stop)
    assert model.training and not model[2].training


def test_outputs_come_in_the_order_asked_for() -> None:
    asked = np.array([7, 2, 5, 0])
    assert predict_classes(IndexModel(), numbered(), asked, batch_size=3).tolist() == [1, 2, 2, 0]
    outputs = predict(IndexModel(), numbered(), asked, batch_size=3)
    assert outputs.dtype == torch.float64 and outputs.argmax(1).tolist() == [1, 2, 2, 0]
    assert predict_classes(IndexModel(), numbered()).tolist() == [0, 1, 2] * 3


def test_a_large_output_is_reduced_batch_by_batch() -> None:
    calls, reduced = [], lambda x: calls.append(len(x)) or x.sum(dim=1)
    found = predict(IndexModel(), numbered(), batch_size=4, reduce=reduced, between=lambda: calls.append(0))
    assert found.tolist() == [1.0] * 9 and calls == [4, 0, 4, 0, 1, 0]


@pytest.mark.parametrize(
    "index, expected, said",
    [
        ([0, 1], [0, 1, 2], "1 missing (first: [2])"),
        ([0, 1, 1], [0, 1], "1 more than once (first: [1])"),
        ([0, 1, 1], [0, 1, 2], "1 missing (first: [2]), 1 more than once (first: [1])"),
        ([0, 9], [0], "1 not asked for (first: [9])"),
    ],
)
def test_coverage_is_checked(index: list[int], expected: list[int], said: str) -> None:
    with pytest.raises(RuntimeError) as error:
        gather_by_index(torch.tensor(index), torch.zeros(len(index)), np.array(expected))
    assert said in str(error.value)


# --- kNN ---


def slow_knn(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, t: float) -> int:
    """The class of one query, in float64, sample by sample."""
    near = []
    for row, label in zip(bank, labels, strict=True):
        cosine = float(row @ query) / (np.linalg.norm(row) * np.linalg.norm(query))
        near.append((cosine, int(label)))
    votes: dict[int, float] = {}
    for cosine, label in sorted(near, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(cosine / t)
    return max(votes, key=lambda label: votes[label])


@pytest.mark.parametrize("k, temperature", [(1, 0.1), (7, 0.1), (30, 0.5), (1000, 0.07)])
def test_knn_agrees_with_a_slow_loop(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "KNN_BLOCK", 16)  # several blocks, the last one short
    rng = np.random.default_rng(k)
    bank, queries = rng.normal(size=(90, 12)), rng.normal(size=(50, 12))
    labels, truth = rng.integers(0, 4, 90), rng.integers(0, 4, 50)
    bank += np.eye(12)[labels] * 2
    queries += np.eye(12)[truth] * 2
    expected = np.mean([slow_knn(bank, labels, q, k, temperature) for q in queries] == truth)
    got = knn_accuracy(torch.tensor(bank), labels, torch.tensor(queries), truth, k, temperature)
    assert got == expected and 0.3 < expected < 1


def test_knn_weighs_near_neighbours_more() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    args = (bank, np.array([1, 0, 0]), torch.tensor([[1.0, 0.1]]), np.array([1]))
    assert knn_accuracy(*args, k=3, temperature=0.1) == 1.0
    assert knn_accuracy(*args, k=3, temperature=1e4) == 0.0  # equal weights: the two far ones win
    assert knn_accuracy(*args, k=3, temperature=1e-4) == 1.0  # exp(1 / T) alone would overflow


def test_knn_of_broken_features_is_nan_and_bad_settings_are_refused() -> None:
    bank, labels = torch.eye(3), np.arange(3)
    assert math.isnan(knn_accuracy(bank, labels, bank * math.nan, labels))
    for k, temperature in ((0, 0.1), (5, 0.0), (5, math.nan)):
        with pytest.raises(ConfigError, match="knn_k"):
            knn_accuracy(bank, labels, bank, labels, k, temperature)


# --- linear probe ---


def test_linear_probe_standardises_and_repeats() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 240)
    told = np.eye(3)[labels] * 1e-4 + rng.normal(size=(240, 3)) * 3e-5  # tiny scale, but it tells
    noise = rng.normal(size=(240, 3)) * 1e2
    x = torch.tensor(np.hstack([told, noise]), dtype=torch.float32)
    accuracy = linear_probe(x[:160], labels[:160], x[160:], labels[160:])
    assert 0.9 < accuracy <= 1 and accuracy == linear_probe(x[:160], labels[:160], x[160:], labels[160:])
    assert math.isnan(linear_probe(x[:5], np.zeros(5, dtype=np.int64), x[5:9], labels[5:9]))
    assert math.isnan(linear_probe(x * math.nan, labels, x, labels))


# --- any number of ranks ---


def figures_of(count: int) -> tuple[list[int], Tensor, float, float]:
    """Everything that talks to other ranks, on `count` of 100 samples: run on every rank of a world."""
    evaluate.KNN_BLOCK = 16
    dataset = random_dataset(100)
    chosen = np.arange(100)[100 - count :]
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    classifier = nn.Sequential(encoder, nn.Linear(32, 10))
    encoder.pretrained_cfg = classifier.pretrained_cfg = Preprocess.for_dataset(INFO).to_cfg()
    classes = predict_classes(classifier, dataset, chosen, batch_size=8)
    features = predict(encoder, dataset, chosen, batch_size=8)
    features = torch.round(features, decimals=3)  # batches of other sizes may round otherwise
    labels = dataset.labels[chosen]
    knn = knn_accuracy(features, labels, features, labels, k=9)
    probe = linear_probe(features, labels % 2, features, labels % 2)
    return classes.tolist(), features, knn, probe


@pytest.mark.parametrize("world, count", [(2, 97), (3, 97), (3, 2)])
def test_the_same_figures_on_any_number_of_ranks(ranks, world: int, count: int) -> None:
    """97 samples make uneven shares and different numbers of batches; of 2, one of 3 ranks gets none."""
    (alone,) = ranks(1).run(figures_of, count)
    for classes, features, knn, probe in ranks(world).run(figures_of, count):
        assert classes == alone[0] and len(classes) == count
        torch.testing.assert_close(features, alone[1], rtol=0, atol=1.1e-3)
        assert knn == alone[2]
        assert probe == alone[3] or (math.isnan(probe) and math.isnan(alone[3]))


def gather_with_a_duplicate() -> str:
    """Every rank claims samples 0 and 1."""
    try:
        gather_by_index(torch.tensor([0, 1]), torch.zeros(2), np.arange(2))
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_sample_served_by_two_ranks_is_an_error_on_all(ranks) -> None:
    assert all("2 more than once" in said for said in ranks(2).run(gather_with_a_duplicate))
