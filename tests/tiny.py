"""Runs small enough for tests: digits, a narrow encoder, a few steps; both stages, any number of ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rmd_dist.engine.trainer import Trainer

COMMON = (
    "--dataset digits --loader memory --model resnet18_cifar_w16_s2 --cpu true --batch-size 48 --workers 1 "
    "--data.train_samples 480 --data.test_samples 96 --eval.train_samples 96 --eval.every_epochs 0 "
    "--checkpoint.every_epochs 0 --log-every 1"
).split()
STAGES = {
    "pretrain": "--simsiam.dim 64 --simsiam.hidden_dim 16 --epochs 4 --lr 0.03".split(),
    "distill": "--epochs 4 --lr 0.02 --teacher random --K 0.2".split(),
}


def words(stage: str, runs: Path, *more: str) -> list[str]:
    """Command line of a tiny run that writes below `runs`."""
    return [*COMMON, *STAGES[stage], "--runs", str(runs), "--name", "tiny", *more]


def _parsed(stage: str, arguments: list[str]) -> Any:
    """A run's configuration; and accelerate forgets the run before, whose precision may have been another."""
    from accelerate.state import AcceleratorState, GradientState

    from rmd_dist.config import DistillConfig, PretrainConfig
    from rmd_dist.config.cli import parse

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return parse(PretrainConfig, arguments) if stage == "pretrain" else parse(DistillConfig, arguments)


def train_tiny(stage: str, arguments: list[str]) -> dict[str, Any]:
    """Run one stage in this process (or on this rank); returns its results."""
    from rmd_dist.engine.start import train

    return train(_parsed(stage, arguments))


@contextlib.contextmanager
def trainer_of(stage: str, arguments: list[str]) -> Iterator[Trainer]:
    """The trainer of a run, before its first step."""
    from rmd_dist.engine.start import opened_trainer

    with opened_trainer(_parsed(stage, arguments)) as trainer:
        yield trainer


def final_tensors(stage: str, runs: Path) -> dict[str, Tensor]:
    """Everything in the newest checkpoint: weights, buffers and momentum."""
    from rmd_dist.engine.checkpoint import newest
    from rmd_dist.models.weights import read_tensors

    checkpoint = newest(runs / stage / "tiny" / "checkpoints", warn=print)
    assert checkpoint is not None
    return read_tensors(checkpoint.path)


def tensors_at(stage: str, runs: Path, step: int) -> dict[str, Tensor]:
    """Everything in the checkpoint of a step."""
    from rmd_dist.models.weights import read_tensors

    return read_tensors(runs / stage / "tiny" / "checkpoints" / f"step-{step:09d}.safetensors")


def on_ranks(
    ranks: Any, run: Callable[..., dict[str, Tensor]], folder: Path, *arguments: Any
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(tensors of 2 and then 3 ranks, tensors of one) that `run(folder/RANKS, *arguments)` ends with.

    All ranks of one run must have the same, to the bit.
    """
    (alone,) = ranks(1).run(run, folder / "1", *arguments)
    for world in (2, 3):
        first, *others = ranks(world).run(run, folder / str(world), *arguments)
        assert all(torch.equal(first[key], other[key]) for other in others for key in first)
        yield first, alone


def update_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """||u_a - u_b|| / ||u_b|| over all momentum buffers u: what the optimizer makes of the gradients."""
    names = [k for k in b if k.startswith("optimizer/")]
    assert names and all(k in a for k in names)
    off = sum(float((a[k] - b[k]).double().square().sum()) for k in names)
    return (off / sum(float(b[k].double().square().sum()) for k in names)) ** 0.5


def greatest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """max over the model's tensors of ||a - b|| / ||b||, where a tensor counts as no smaller than rms 0.01.

    The floor is for what has hardly left 0, such as biases after a few steps: there a relative error of the
    value would be that of a difference of large, cancelling gradients.
    """
    assert a.keys() == b.keys()
    names = [k for k in b if k.startswith("model/") and b[k].is_floating_point()]
    return max(float((a[k] - b[k]).norm() / b[k].norm().clamp_min(0.01 * b[k].numel() ** 0.5)) for k in names)
