"""The interface between the trainer and a task."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist.config import AnyConfig, CropFlipConfig, ViewConfig
from rmd_dist.data.datasets import Dataset
from rmd_dist.data.loader import Batch, Loader, build_loader, normalize
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.splits import Indices
from rmd_dist.evaluate import go_on


@dataclass(frozen=True)
class Place:
    """Where this process stands."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    workers: int = 1
    autocast: torch.dtype | None = None
    """What mixed precision casts to; None: nothing is cast."""


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


@dataclass
class Pictures:
    """Images of one training batch to look at: one (B, H, W, 3) uint8 array for each view."""

    views: list[npt.NDArray[np.uint8]]


class Task(ABC):
    """Model, data and loss of a stage.

    `module` is what is trained; the trainer hands it back wrapped (DDP, autocast, compile) to `step`.
    Everything a task holds is built the same on every rank.
    """

    module: nn.Module
    classes: Sequence[str]
    dtype: torch.dtype
    """Of weights and images, outside autocast."""
    headline: str
    """Tag of the accuracy that the closing table shows."""
    exported: nn.Module
    """The part of `module` that is of use to others: what `export` writes."""

    def __init__(self, config: AnyConfig, place: Place) -> None:
        self.config, self.place = config, place
        data = config.data
        # With ffcv the betons stand already (start.prepare_data), checked against the source.
        source = Path(data.source) if data.source and data.loader == "memory" else None
        self.train_set, self.test_set = (
            open_dataset(data.dataset, split, root=Path(data.root), source=source, loader=data.loader)
            for split in ("train", "test")
        )
        info = self.train_set.info
        self.classes = info.classes
        self.dtype = torch.float64 if config.run.precision == "fp64" else torch.float32
        self.normalize = partial(
            normalize,
            mean=info.mean,
            std=info.std,
            channels_last=config.model.channels_last,
            dtype=self.dtype,
        )
        self.test_indices: Indices = np.arange(len(self.test_set))[: data.test_samples]

    @abstractmethod
    def train_loader(self) -> Loader:
        """Augmented micro-batches of this rank in the global order."""

    @abstractmethod
    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        """One forward pass on this rank's share of a micro-batch. Collective."""

    @abstractmethod
    def evaluate(self, between: Callable[[], None] = go_on) -> Evaluation:
        """Measure the model as it stands. Collective.

        Every rank calls `between`, a collective, after every batch; what it raises ends the evaluation.
        """

    def matrices(self) -> dict[str, npt.NDArray[np.float32]]:
        """Tag -> matrix to be drawn as a heat map, values in [-1, 1]. Collective."""
        return {}

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the finished model for use by others (rank 0)."""

    def about(self) -> dict[str, Any]:
        """What the run's manifest says of this task."""
        return {"dataset": self.config.data.dataset, "data_sha256": self.train_set.sha256}

    def warning(self, values: dict[str, float]) -> str | None:  # noqa: ARG002 - for tasks that have one
        """A warning that logged values (tag -> value) call for."""
        return None

    @abstractmethod
    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        """What to say of an evaluation (tag -> value) that looks like a model which tells nothing apart.

        `logged`: the newest training scalars. Said when two evaluations in a row look so.
        """

    def at_chance(self, accuracy: float) -> bool:
        """Whether an accuracy on the test images is no better than guessing (within 3 standard errors)."""
        chance = 1 / len(self.classes)
        error = math.sqrt(chance * (1 - chance) / max(len(self.test_indices), 1))
        return accuracy <= chance + 3 * error

    def pictures(self, batch: Batch) -> Pictures:
        """The augmented images of a batch."""
        return Pictures([view.cpu().numpy() for view in batch.views])

    def _autocast(self) -> torch.autocast:
        """Mixed precision for what is computed outside a training step: models compute as they train."""
        place = self.place
        return torch.autocast(place.device.type, place.autocast, enabled=place.autocast is not None)

    def _augmented(self, indices: Indices, augment: ViewConfig | CropFlipConfig) -> Loader:
        config = self.config
        return build_loader(
            self.train_set,
            kind=config.data.loader,
            augment=augment,
            batch_size=config.data.batch_size // config.optim.accumulation,
            seed=config.run.seed,
            indices=indices,
            rank=self.place.rank,
            world_size=self.place.world_size,
            workers=self.place.workers,
            pinned=self.place.device.type == "cuda",
        )

    def _in_order(self, dataset: Dataset, indices: Indices) -> Loader:
        """Unaugmented samples in order, this rank's share, each once."""
        return build_loader(
            dataset,
            kind=self.config.data.loader,
            augment=None,
            batch_size=self.config.eval.batch_size,
            seed=0,
            indices=indices,
            shuffle=False,
            rank=self.place.rank,
            world_size=self.place.world_size,
            workers=self.place.workers,
            pinned=self.place.device.type == "cuda",
        )
