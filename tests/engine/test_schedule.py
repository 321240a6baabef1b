"""The learning rate is a function of the step alone."""

import math

import pytest

from rmd_dist.config import OptimConfig
from rmd_dist.engine.schedule import learning_rate


def test_multistep_is_the_papers_recipe():
    """240 epochs, lr x 0.1 at 150, 180 and 210 (paper section 4.3)."""
    optim = OptimConfig(epochs=240, lr=0.01, schedule="multistep")
    at_epoch = {e: learning_rate(e * 7 + 6, 7, optim) for e in (0, 149, 150, 179, 180, 209, 210, 239)}
    expected = {0: 1e-2, 149: 1e-2, 150: 1e-3, 179: 1e-3, 180: 1e-4, 209: 1e-4, 210: 1e-5, 239: 1e-5}
    assert at_epoch == pytest.approx(expected, rel=1e-12)


def test_cosine_starts_at_lr_halves_in_the_middle_and_ends_at_zero():
    optim = OptimConfig(epochs=10, lr=0.03, schedule="cosine")
    assert learning_rate(0, 20, optim) == pytest.approx(0.03)
    assert learning_rate(100, 20, optim) == pytest.approx(0.015)
    assert learning_rate(50, 20, optim) == pytest.approx(0.03 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(200, 20, optim) == pytest.approx(0.0, abs=1e-12)


def test_warmup_rises_linearly_and_then_leaves_the_schedule_alone():
    optim = OptimConfig(epochs=10, lr=1.0, schedule="constant", warmup_epochs=2)
    assert [learning_rate(s, 5, optim) for s in (0, 4, 9, 10, 49)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
