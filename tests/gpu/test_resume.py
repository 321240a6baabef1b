"""Runs that are stopped and continued are the uninterrupted ones to the bit; a state is saved as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch

from rmd_dist.engine.checkpoint import newest
from rmd_dist.models.weights import read_tensors
from tests.gpu.runs import cuda_alone, differing

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])


@BOTH
@pytest.mark.parametrize("precision", ["no", "bf16", cuda_alone("fp16"), cuda_alone("tf32")])
def test_six_and_six_steps_are_twelve(stage, precision, device):
    """Epochs have ten steps: the second half begins in the first and ends in the second."""
    more = ["--precision", precision, "--max-steps"]
    whole = device.train(stage, "whole", *more, "12")
    device.train(stage, "parts", *more, "6")
    parts = device.train(stage, "parts", *more, "12")
    assert differing(whole, parts) == []


@BOTH
def test_a_state_is_saved_as_it_was_though_the_next_steps_change_it(stage, device):
    with device.trainer(stage) as trainer, contextlib.closing(trainer.loader.epoch(0)) as batches:

        def step() -> None:
            trainer.train_step([next(batches).to(trainer.accelerator.device)], logging=False)

        step()
        weights = {name: value.clone() for name, value in trainer.state.model.state_dict().items()}
        momenta = [s["momentum_buffer"].clone() for s in trainer.optimizer.state.values()]
        trainer._save()
        for _ in range(3):
            step()
        trainer.saver.wait()
        checkpoint = newest(trainer.folder.checkpoints, warn=pytest.fail)
        assert checkpoint is not None and checkpoint.step == 1
        saved = read_tensors(checkpoint.path)
        for name, value in weights.items():
            assert torch.equal(saved[f"model/{name}"], value.cpu()), name
        for number, momentum in enumerate(momenta):
            assert torch.equal(saved[f"optimizer/{number}/momentum_buffer"], momentum.cpu()), number
        changed = trainer.state.model.state_dict()
        assert any(not torch.equal(changed[name], value) for name, value in weights.items())
