"""The two stages: pretraining, which sees no label, and distillation on noisy labels."""

from __future__ import annotations

from collections.abc import Sequence

from rmd_dist.commands import screen
from rmd_dist.config import AnyConfig, DistillConfig, PretrainConfig
from rmd_dist.config.cli import parse


def pretrain(argv: Sequence[str] | None = None) -> None:
    """`rmd pretrain`: relation modelling by SimSiam or SimCLR."""
    _train(parse(PretrainConfig, argv))


def distill(argv: Sequence[str] | None = None) -> None:
    """`rmd distill`: a student on noisy labels, with a pretrained teacher's relation graph."""
    _train(parse(DistillConfig, argv))


def _train(config: AnyConfig) -> None:
    from pathlib import Path

    from rmd_dist.data.dataset import find_source

    find_source(config.data.dataset, Path(config.data.root))  # an unknown name is told before torch is loaded
    from rmd_dist.engine.start import train

    screen.spare()
    train(config)
