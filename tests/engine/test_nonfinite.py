"""A loss or gradient that is nan or infinite: the run stops, or leaves it out; the ruin is never saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rmd_dist.engine import start
from rmd_dist.engine.checkpoint import newest
from rmd_dist.engine.guard import MOST_SKIPPED
from rmd_dist.errors import Fault
from rmd_dist.models.weights import read_tensors
from rmd_dist.parallel.accelerator import make_accelerator
from rmd_dist.tasks import DistillTask, StepOutput
from tests.tiny import final_tensors, tensors_at, train_tiny, words

pytestmark = pytest.mark.slow  # whole runs

EVERY = ["--checkpoint.every_steps", "1", "--keep", "99"]
Spoil = Callable[[Tensor], Tensor]


def nan_loss(loss: Tensor) -> Tensor:
    return loss * float("nan")


def nan_gradient(loss: Tensor) -> Tensor:
    """The value as it is, but the gradient of a root at 0."""
    return loss + (loss - loss.detach()).abs().sqrt()


@pytest.fixture
def spoiling(monkeypatch) -> Callable[[Spoil, int], None]:
    """`spoiling(how, call)` ruins the loss of one call of the task's step in this process."""

    def install(how: Spoil, call: int) -> None:
        step, calls = DistillTask.step, [0]

        def spoilt(self, module, batch, *, logging):
            output = step(self, module, batch, logging=logging)
            calls[0] += 1
            if calls[0] != call:
                return output
            for buffer in module.buffers():  # the batch that ruins a loss has gone through batch norm
                if buffer.is_floating_point():
                    buffer.data.fill_(float("nan"))
            return StepOutput(how(output.loss), output.values)

        monkeypatch.setattr(DistillTask, "step", spoilt)

    return install


def run_folder(runs: Path) -> Path:
    return runs / "distill" / "tiny"


@pytest.mark.parametrize("how", [nan_loss, nan_gradient])
def test_by_default_the_run_stops_before_the_weights_follow(how, spoiling, tmp_path):
    spoiling(how, 4)
    with pytest.raises(Fault) as caught:
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "8", *EVERY))
    message = str(caught.value)
    for part in ("at step 4", "lower --lr", "lower --K", "--clip-norm", "step-000000003.safetensors"):
        assert part in message
    assert "\n" not in message
    found = newest(run_folder(tmp_path) / "checkpoints", warn=pytest.fail)
    assert found is not None and found.step == 3
    manifest = json.loads((run_folder(tmp_path) / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "step 4" in manifest["why"]
    # What stopped it was of the moment: the same command goes on.
    assert train_tiny("distill", words("distill", tmp_path, "--max-steps", "8", *EVERY))


@pytest.mark.parametrize("how", [nan_loss, nan_gradient])
def test_a_skipped_step_changes_nothing_and_is_counted(how, spoiling, tmp_path):
    spoiling(how, 4)
    argv = [*EVERY, "--on-nonfinite", "skip"]
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "6", *argv))
    before, after, later = (tensors_at("distill", tmp_path, step) for step in (3, 4, 5))
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert any(not torch.equal(after[k], later[k]) for k in after)
    assert all(t.isfinite().all() for t in later.values() if t.is_floating_point())
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "8", *argv))  # the count goes on
    lines = (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()
    counts = [r["train/nonfinite_steps"] for r in map(json.loads, lines) if "train/nonfinite_steps" in r]
    assert counts == [0, 0, 0, 1, 1, 1, 1, 1]


def test_without_a_spoilt_step_both_modes_train_the_same(tmp_path):
    for name, mode in (("a", "stop"), ("b", "skip")):
        argv = words("distill", tmp_path / name, "--max-steps", "3", "--on-nonfinite", mode)
        train_tiny("distill", argv)
    a, b = (final_tensors("distill", tmp_path / name) for name in "ab")
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_weights_that_have_gone_are_not_skipped_for_ever(tmp_path):
    argv = words("distill", tmp_path, "--lr", "1e30", "--on-nonfinite", "skip", "--max-steps", "99")
    with pytest.raises(Fault, match=rf"in {MOST_SKIPPED} steps in a row.*no checkpoint had been saved"):
        train_tiny("distill", argv)


def _train_spoilt_on_all(runs: Path, mode: str) -> str:
    """On each rank: a run whose lr is far too large; what it raised."""
    more = ["--lr", "1e30", "--max-steps", "9", "--on-nonfinite", mode, "--checkpoint.every_steps", "1"]
    try:
        train_tiny("distill", words("distill", runs, *more))
    except Fault as fault:
        from rmd_dist.parallel import collectives as dist

        dist.shutdown()  # the ranks are in step: none hangs here
        return str(fault)
    return "trained"


def test_all_ranks_stop_together_and_the_ruin_is_not_saved(ranks, tmp_path):
    told = ranks(2).run(_train_spoilt_on_all, tmp_path, "stop")
    assert all("nan or infinite" in text for text in told), told
    for path in (run_folder(tmp_path) / "checkpoints").glob("*.safetensors"):
        assert all(t.isfinite().all() for t in read_tensors(path).values() if t.is_floating_point())


@pytest.fixture
def fp16_on_a_cpu(monkeypatch) -> None:
    """The gradient scaler of fp16, on a CPU."""

    def scaled(*args: object) -> Accelerator:
        accelerator = make_accelerator(*args)
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=8.0), True
        accelerator.state._mixed_precision = "fp16"  # by which accelerate unscales gradients
        return accelerator

    monkeypatch.setattr(start, "make_accelerator", scaled)


def test_skipping_gets_along_with_a_gradient_scaler(spoiling, tmp_path, fp16_on_a_cpu):
    """A step that is left out must not block the next."""
    spoiling(nan_loss, 2)
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "4", "--on-nonfinite", "skip", *EVERY))
    found = newest(run_folder(tmp_path) / "checkpoints", warn=pytest.fail)
    assert found is not None and (found.step, found.scalars["nonfinite_steps"]) == (4, 1)
    assert found.scalars["scaler"]["scale"] == 4.0  # halved once


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_gradients_that_overflow_for_ever_are_not_scaled_down_for_ever(
    mode, tmp_path, fp16_on_a_cpu, monkeypatch
):
    """A scaler leaves such steps out by itself, with a loss that is finite, and nothing would be learned."""
    step = DistillTask.step

    def spoilt(self, module, batch, *, logging):
        output = step(self, module, batch, logging=logging)
        return StepOutput(nan_gradient(output.loss), output.values)

    monkeypatch.setattr(DistillTask, "step", spoilt)
    argv = words("distill", tmp_path, "--max-steps", "40", "--on-nonfinite", mode)
    with pytest.raises(Fault, match=r"overflow in fp16 at every scale, at step 1\d at .*lower --lr"):
        train_tiny("distill", argv)
    lines = (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()
    scales = [json.loads(line)["train/loss_scale"] for line in lines if "loss_scale" in line]
    assert scales[:3] == [4.0, 2.0, 1.0]
