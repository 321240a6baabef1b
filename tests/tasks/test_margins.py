"""Margins of the given labels: as a slow loop has them, on any number of ranks, over stops and bad steps."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from rmd_dist.errors import ConfigError
from rmd_dist.tasks import DistillTask, StepOutput
from rmd_dist.tasks.margins import Margins
from tests.tiny import on_ranks, train_tiny, trainer_of, words


def margins_of(runs: Path) -> np.ndarray:
    return np.load(runs / "distill" / "tiny" / "margins.npy")


def slow_margin(z: np.ndarray, y: int) -> float:
    return float(z[y] - max(z[c] for c in range(len(z)) if c != y))


@pytest.fixture
def seen(monkeypatch) -> list[tuple[Tensor, np.ndarray]]:
    """(indices, logits) of every micro-batch that is trained on."""
    found: list[tuple[Tensor, np.ndarray]] = []
    step = DistillTask.step

    def spied(self, module, batch, *, logging):
        def forward(x):
            logits, *others = module(x)
            found.append((batch.index, logits.detach().float().numpy()))
            return logits, *others

        return step(self, forward, batch, logging=logging)

    monkeypatch.setattr(DistillTask, "step", spied)
    return found


@pytest.mark.parametrize("more", ["", "--accumulation 2 --validation 0.25", "--precision bf16"])
def test_they_are_the_mean_of_a_slow_loop(more, tmp_path, seen):
    """Over more than two epochs; nan for images that are no part of the run or held out."""
    few = "--data.train_samples 240 --max-steps 12".split()
    with trainer_of("distill", words("distill", tmp_path, *few, *more.split())) as trainer:
        trainer.fit()
        task = trainer.task
        assert isinstance(task, DistillTask)
    by_image = defaultdict(list)
    for index, logits in seen:
        for i, z in zip(index.tolist(), logits, strict=True):
            by_image[i].append(slow_margin(z, task.labels.given[i]))
    found = margins_of(tmp_path)
    assert found.dtype == np.float32 and found.shape == (1437,)
    assert set(np.flatnonzero(~np.isnan(found))) == set(by_image) <= set(task.splits.train)
    assert max(len(margins) for margins in by_image.values()) > 2
    for i, margins in by_image.items():
        assert found[i] == pytest.approx(np.mean(margins), rel=1e-5, abs=1e-5)


def test_a_margin_that_is_not_finite_is_left_out():
    margins = Margins(5, torch.device("cpu"))
    logits = torch.tensor(
        [[3.0, 1.0, 2.0], [-math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0], [0.0, -math.inf, 4.0]]
    )
    margins.add(torch.tensor([4, 1, 2, 0]), logits, torch.tensor([0, 0, 1, 2]))
    margins.add(torch.tensor([4, 1]), logits[[0, 0]], torch.tensor([1, 2]))
    np.testing.assert_array_equal(margins.mean(), [4, -1, np.nan, np.nan, (1 - 2) / 2])


def nan_loss(output: StepOutput) -> StepOutput:
    return StepOutput(output.loss * math.nan, output.values)


def nan_gradient(output: StepOutput) -> StepOutput:
    """The value as it is, but the gradient of a root at 0."""
    return StepOutput(output.loss + (output.loss - output.loss.detach()).abs().sqrt(), output.values)


@pytest.mark.parametrize("how", [None, nan_loss, nan_gradient])
def test_a_step_that_is_left_out_leaves_no_margins(how, tmp_path, monkeypatch):
    """Spoilt in its logits, its loss, or in its gradient alone, with logits as good as any."""
    step, batches = DistillTask.step, []

    def spoilt(self, module, batch, *, logging):
        batches.append(batch.index)
        if len(batches) != 2:
            return step(self, module, batch, logging=logging)
        if how is not None:
            return how(step(self, module, batch, logging=logging))
        return step(self, lambda x: [t * math.nan for t in module(x)], batch, logging=logging)

    monkeypatch.setattr(DistillTask, "step", spoilt)
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "3", "--on-nonfinite", "skip"))
    known = np.flatnonzero(~np.isnan(margins_of(tmp_path)))
    assert set(known) == {*batches[0].tolist(), *batches[2].tolist()}


def test_a_stopped_run_has_those_of_a_whole_one(tmp_path):
    few = ("--data.train_samples", "96", "--max-steps")  # an epoch has two steps
    for name, parts in (("whole", ("5",)), ("parts", ("3", "5"))):
        for steps in parts:
            train_tiny("distill", words("distill", tmp_path / name, *few, steps))
    whole, parts = (margins_of(tmp_path / name) for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole, parts)


def test_a_checkpoint_of_a_version_without_them_is_refused_in_one_line(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "tensors", lambda _: {})
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "1"))
    with pytest.raises(ConfigError, match=r"step-000000001\.safetensors has no margins: .*another --name"):
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "2"))


def _totals(runs: Path) -> dict[str, Tensor]:
    """On each rank: the totals at the end of a run of shares that are unequal on 3 ranks."""
    more = "--precision fp64 --batch-size 26 --data.train_samples 104 --max-steps 9".split()
    with trainer_of("distill", words("distill", runs, *more)) as trainer:
        trainer.fit()
        assert isinstance(trainer.task, DistillTask)
        return {"totals": trainer.task.margins.totals}


def test_any_number_of_ranks_has_the_same(ranks, tmp_path):
    for world, (first, alone) in zip((2, 3), on_ranks(ranks, _totals, tmp_path), strict=True):
        assert alone["totals"][:, 1].sum() == 9 * 26
        np.testing.assert_allclose(first["totals"], alone["totals"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            margins_of(tmp_path / str(world)), margins_of(tmp_path / "1"), rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
def test_they_tell_wrong_labels_from_right_ones(tmp_path):
    more = "--K 0 --epochs 3 --lr 0.1 --augment.flip_p 0 --augment.padding 1 --data.train_samples 1437"
    with trainer_of("distill", words("distill", tmp_path, *more.split())) as trainer:
        trainer.fit()
        assert isinstance(trainer.task, DistillTask)
        wrong = trainer.task.labels.flipped
    margins = margins_of(tmp_path)
    known = ~np.isnan(margins)
    assert wrong is not None
    assert roc_auc_score(wrong[known], -margins[known]) > 0.8
