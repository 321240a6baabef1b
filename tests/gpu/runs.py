"""Tiny runs on the device under test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tests.tiny import final_tensors, train_tiny, trainer_of, words

SMALL = "resnet18_cifar_w16_s2"

if TYPE_CHECKING:
    from rmd_dist.engine.trainer import Trainer


@dataclass(frozen=True)
class Device:
    """`type`: cuda or cpu; runs are written below `folder`."""

    type: str
    folder: Path

    def words(self, stage: str, name: str, *more: str) -> list[str]:
        """Command line of a tiny run on this device, in a folder `name` of its own."""
        here = ["--cpu", str(self.type == "cpu").lower(), "--model", SMALL]
        return words(stage, self.folder / name, *here, *more)

    def train(self, stage: str, name: str, *more: str) -> dict[str, Tensor]:
        """Run it; returns what its newest checkpoint holds."""
        train_tiny(stage, self.words(stage, name, *more))
        return self.final(stage, name)

    def final(self, stage: str, name: str) -> dict[str, Tensor]:
        """What the newest checkpoint of a run holds."""
        return final_tensors(stage, self.folder / name)

    @contextlib.contextmanager
    def trainer(self, stage: str, *more: str) -> Iterator[Trainer]:
        """The trainer of such a run, before its first step."""
        with trainer_of(stage, self.words(stage, "trainer", *more)) as trainer:
            yield trainer


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not a[name].equal(b[name])]


def cuda_alone(*values: Any) -> Any:
    """A parameter of a test that is left out on a CPU."""
    import pytest

    return pytest.param(*values, marks=pytest.mark.cuda_alone)
