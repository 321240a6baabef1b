"""The interface between the trainer and a task."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist.data.loader import Batch
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.evaluation.predict import BetweenBatches

Tell = Callable[[str], None]
"""Hears a line for people."""


@dataclass
class StepOutput:
    """What a micro-step gave."""

    loss: Tensor
    """Scalar over the global batch; the MEAN over ranks of its gradients is the global gradient."""

    values: dict[str, Tensor] = field(default_factory=dict)
    """Named scalars for the log, equal on every rank, without gradient."""


@dataclass
class Evaluation:
    """What an evaluation gave."""

    scalars: dict[str, float]
    """Tag -> value, equal on every rank."""

    confusion: npt.NDArray[np.int64] | None = None
    """Counts (C, C), rows true."""


class Task(ABC):
    """What one batch means, and what is measured of what it trains.

    Its parts (data sets, labels, models, losses) are handed to it, the same on every rank (`parts.py`).
    """

    module: nn.Module
    """What is trained; the trainer hands it back wrapped (DDP, autocast, compile) to `step`."""
    network: str
    """Name of the submodule that is of use to others: what is measured and exported."""
    headline: str
    """Tag of the accuracy that the closing table shows."""
    preprocess: Preprocess
    """From pixels to what `module` takes."""
    views: int
    """Arguments of `module`: images of a batch, in different views."""
    average: Any = None
    """Moving average of `network`, which steps may look at; the trainer puts it here where it keeps one."""

    def try_out(self, size: int) -> None:
        """Raise what `module` raises on two images of S = `size` pixels, forwards or backwards.

        Of a copy, with random numbers put back: nothing remains.
        """
        with torch.random.fork_rng(devices=[]):
            module = copy.deepcopy(self.module).train()
            pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
            outputs: list[Any] = [*module(*[self.preprocess(pixels)] * self.views)]
            flat = [t for output in outputs for t in (output if isinstance(output, tuple) else (output,))]
            loss: Tensor = sum((t.float().mean() for t in flat), torch.zeros(()))
            torch.autograd.backward(loss)

    def begin(self, tell: Tell, warn: Tell) -> None:  # noqa: B027 - for those who do
        """Do what is done once, before the first step of a run that is not continued. Collective.

        `tell` hears what people should know, `warn` what they should act on. What is found is in `module` or
        in `fixed_tensors`.
        """

    def begin_step(self, progress: float) -> None:  # noqa: B027
        """Hear of each step before it is made: a share of `progress`, in [0, 1), of all training is done."""

    @abstractmethod
    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        """One forward pass on this rank's share of a micro-batch. Collective."""

    @abstractmethod
    def evaluate(self, network: Any, between: BetweenBatches | None = None) -> Evaluation:
        """Measure `network`: that of `module`, or an average of its weights over time. Collective.

        `between`: see `predict`.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of what steps change beside `module`; checkpoints hold it too.

        Changed in place alone, and the same on every rank.
        """
        return {}

    def fixed_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of what `begin` finds and no step changes; checkpoints hold it, too."""
        return {}

    def per_sample(self) -> dict[str, npt.NDArray[np.float32]]:
        """Name -> (N,) of what was learned of the training samples, by index: NAME.npy of a finished run."""
        return {}

    def matrices(self, network: Any) -> dict[str, npt.NDArray[np.float32]]:  # noqa: ARG002 - for those who have
        """Tag -> matrix to be drawn as a heat map, values in [-1, 1]. Collective."""
        return {}

    def warning(self, values: dict[str, float]) -> str | None:  # noqa: ARG002
        """A warning that logged values (tag -> value) call for."""
        return None

    @abstractmethod
    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        """What to say of an evaluation (tag -> value) that looks like a model which tells nothing apart.

        `logged`: the newest training scalars. Said when two evaluations in a row look so.
        """
