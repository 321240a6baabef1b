"""Faults that have to be planted inside a rank; all others come from outside.

raise:RANK:STEP     the rank raises in its optimizer step
loader:RANK:BATCH   the rank's loader thread raises at its batch
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def install(what: str) -> None:
    """Plant `what` (nothing, if empty) in this process, before it trains."""
    if not what:
        return
    kind, rank, number = what.split(":")
    _INSTALLERS[kind](int(rank), int(number))


def _at_step(rank: int, number: int, action: Callable[[], None]) -> None:
    from rmd_dist.engine.trainer import Trainer
    from rmd_dist.parallel import collectives as dist

    step = Trainer.train_step

    def acting(self: Trainer, *args: Any, **options: Any) -> Any:
        if dist.rank() == rank and self.step == number:
            action()
        return step(self, *args, **options)

    Trainer.train_step = acting  # type: ignore[method-assign]


def _raise_in_step(rank: int, number: int) -> None:
    def fail() -> None:
        raise LookupError("broken on purpose")

    _at_step(rank, number, fail)


def _stall(rank: int, number: int) -> None:
    def stall() -> None:
        print("stalling", flush=True)
        time.sleep(10)

    _at_step(rank, number, stall)


def _raise_in_loader(rank: int, number: int) -> None:
    from rmd_dist.data.render.augment import Augmenter
    from rmd_dist.parallel import collectives as dist

    render, calls = Augmenter.render, [0]

    def raising(self: Augmenter, *args: Any) -> Any:
        calls[0] += 1
        if dist.rank() == rank and calls[0] == number:
            raise OSError(5, "Input/output error (on purpose)")
        return render(self, *args)

    Augmenter.render = raising  # type: ignore[method-assign]


_INSTALLERS = {"raise": _raise_in_step, "loader": _raise_in_loader, "stall": _stall}


def main() -> None:
    """`python -m tests.faults.sabotage WHAT STAGE ARGV...`: a launch script with a fault in it."""
    from rmd_dist.commands.entry import run
    from tests.faults.nursery import train

    what, stage, *argv = sys.argv[1:]
    install(what)
    run(lambda: train(stage, argv))


if __name__ == "__main__":
    main()
