"""Noise matrix and temperature from logits and labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rmd_dist.relations import numerics
from rmd_dist.relations.noise_matrix import Calibration, calibrate, symmetric
from tests.relations.blobs import pairflip

EYE = torch.eye(3, dtype=torch.float64)


def _drawn(n: int, T: Tensor, temperature: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, C) which, divided by `temperature`, are right of the true classes; labels given by T."""
    draw = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, len(T), generator=draw)
    true = torch.multinomial((logits / temperature).softmax(1), 1, generator=draw)[:, 0]
    return logits, torch.multinomial(T[true].float(), 1, generator=draw)[:, 0]


def _log_posterior(logits: Tensor, labels: Tensor, prior: Tensor, sharpness: Tensor, T: Tensor) -> Tensor:
    """What `calibrate` makes greatest, written down, as a mean."""
    evidence = ((logits.double() * sharpness).softmax(1) @ T).gather(1, labels[:, None])
    return (evidence.log().sum() + (prior * T.log()).sum()) / len(labels)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_recovers_what_labels_were_drawn_by(temperature):
    T = 0.9 * pairflip(5, 0.4) + 0.02
    logits, labels = _drawn(20_000, T, temperature)
    found = calibrate(logits, labels, symmetric(0.8, T))
    assert (found.noise_matrix - T).abs().max() < 0.05
    assert float(found.temperature) == pytest.approx(temperature, rel=0.1)


def test_nothing_is_likelier(monkeypatch):
    """Against torch's Adam on autograd's gradients, in blocks of 256 rows here and all at once there."""
    monkeypatch.setattr(numerics, "BLOCK_NUMBERS", 1)
    logits, labels = _drawn(900, 0.9 * pairflip(3, 0.3) + 0.1 / 3, 1.5)
    prior = 15 * symmetric(0.8, EYE)  # a class has 300 rows
    found = calibrate(logits, labels, symmetric(0.8, EYE))
    best = _log_posterior(logits, labels, prior, 1 / found.temperature, found.noise_matrix)
    log_sharpness = torch.zeros((), dtype=torch.float64, requires_grad=True)
    free = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_sharpness, free], lr=0.05)
    for _ in range(600):
        adam.zero_grad()
        loss = -_log_posterior(logits, labels, prior, log_sharpness.exp(), free.softmax(1))
        loss.backward()
        adam.step()
    assert float(best) == pytest.approx(-float(loss.detach()), abs=1e-6)
    torch.testing.assert_close(found.noise_matrix, free.softmax(1).detach(), atol=1e-3, rtol=0)
    assert float(found.temperature) == pytest.approx(float((-log_sharpness.detach()).exp()), rel=1e-3)
    likelihood = _log_posterior(logits, labels, 0 * prior, 1 / found.temperature, found.noise_matrix)
    assert found.log_likelihood == pytest.approx(float(likelihood), abs=1e-12)


def test_posterior_by_hand():
    """Bayes: p(true) T[true, given], over its sum."""
    T = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    calibration = Calibration(T, torch.tensor(2.0).double(), 0.0)
    logits = torch.tensor([[2 * math.log(3.0), 0.0]])  # at temperature 2 that is (3/4, 1/4)
    expected = 0.75 * 0.1 / (0.75 * 0.1 + 0.25 * 0.8)
    found = calibration.posterior(logits, torch.tensor([1]))
    assert found[0].tolist() == pytest.approx([expected, 1 - expected])
    assert calibration.clean(logits)[0].tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("kept", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_symmetric(kept, classes):
    found = symmetric(kept, torch.eye(classes, dtype=torch.float64))
    if classes > 1:
        torch.testing.assert_close(found.sum(1), torch.ones(classes).double())
    torch.testing.assert_close(found.diagonal(), torch.full((classes,), kept).double())


def test_labels_without_any_noise_stay_finite():
    """Where nothing holds the sharpness back."""
    labels = torch.arange(300) % 3
    found = calibrate(50 * EYE[labels].float(), labels, symmetric(0.8, EYE))
    assert all(torch.isfinite(t).all() for t in (found.noise_matrix, found.temperature))
    torch.testing.assert_close(found.noise_matrix, symmetric((100 + 8) / 110, EYE))  # rows, pseudo-counts
