"""How a run is measured, saved and carried on; `schema` has what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rmd_dist.config.fields import setting


@dataclass
class MeasureConfig:
    """How a model is measured."""

    batch_size: int = setting(512, low=1)
    """Images of one evaluation batch on each rank."""

    knn_k: int = setting(200, low=1, reported=True)
    """Neighbours of the weighted kNN; at most all of its bank."""

    knn_temperature: float = setting(0.1, low=1e-06, reported=True)
    """Temperature of the kNN weights exp(similarity / T)."""


@dataclass
class EvalConfig(MeasureConfig):
    """What is measured while training, and how often."""

    every_epochs: int = setting(1, low=0, reported=True)
    """Evaluate after every so many epochs, and at the end; 0: at the end only."""

    train_samples: int = setting(10_000, low=0, reported=True)
    """Training samples used to measure memorisation and as the kNN bank; 0: all of them."""

    pictures_every_minutes: float = setting(10.0, low=0)
    """Draw confusion and relation matrices at most so often, and at the end; 0: at every evaluation."""


@dataclass
class CheckpointConfig:
    """When state is saved."""

    every_steps: int = setting(0, low=0)
    """Save after every so many optimizer steps; 0: not by steps."""

    every_epochs: int = setting(1, low=0)
    """Save after every so many epochs; 0: not by epochs. The end is always saved."""

    keep: int = setting(3, low=1)
    """Checkpoints kept; older ones are deleted."""

    every_minutes: float = setting(0.0, low=0)
    """Save after every so many minutes; 0: not by time."""

    asynchronous: bool = True
    """Write while training goes on; false: training waits until the file is on the disk."""


@dataclass
class RunConfig:
    """One run: its folder, its seed, its end."""

    root: str = setting("runs", short="runs", free=True, path=True, study="--out")
    """Runs are written to ROOT/STAGE/NAME."""

    name: str | None = setting(None, short="name", free=True, study="--out", in_names=True)
    """Folder name of the run; unset: made from data set, model and the main settings."""

    seed: int = setting(0, low=0, high=2**32 - 1, short="seed", study="seeds")
    """Seed of weights, order and augmentation."""

    max_steps: int | None = setting(None, low=1, free=True, reported=True)
    """Stop after so many optimizer steps; the schedule stays that of all epochs."""

    resume: str = setting("auto", free=True, path=True)
    """auto: continue from the newest checkpoint; never: refuse to touch an existing run; or a PATH."""

    resume_allow: tuple[str, ...] = setting((), free=True)
    """Keys that may differ from what the run began with, such as optim.lr, or a group of them (optim)."""

    precision: Literal["launch", "no", "tf32", "bf16", "fp16", "fp64"] = "launch"
    """`launch`: what accelerate launch was told; `no`: fp32 proper; `tf32`: on GPUs; fp64: for checks."""

    deterministic: bool = setting(True, free=True)
    """Equal runs give equal bits, which exact resume needs; false: the fastest kernels, which may not."""

    cuda_graph: bool = setting(True, free=True)
    """On one GPU, launch a step as one CUDA graph: the same bits in less of the host's time."""

    cpu: bool = setting(False, free=True)
    """Use the CPU even where there is a GPU."""

    threads: int = setting(0, low=0, high=1024, free=True)
    """torch's threads of each rank on a CPU; 0: its share of the cores (under accelerate launch)."""

    on_nonfinite: Literal["stop", "skip"] = setting("stop", free=True)
    """At a loss or gradient that is nan or infinite: stop, or leave the step out."""

    log_every: int = setting(10, low=1, free=True)
    """Optimizer steps between logged scalars; the first five steps are always logged."""
