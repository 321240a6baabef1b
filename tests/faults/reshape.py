"""Resume of a run on another number of ranks, in the midst of an epoch: differences to the uninterrupted run.

    python -m tests.faults.reshape

10 steps an epoch; stopped after step 13 (and 16), compared after step 18 with 18 steps on one rank: the
greatest relative difference of any weight or buffer (see tests/tiny.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.distributed.pool import Pool, World
from tests.tiny import final_tensors, greatest_difference, train_tiny, words

BOUNDS = {"fp64": 1e-9, "fp32": 0.05}
"""In fp32 rounding puts single activations on the other side of a ReLU's kink, whether a run stops or not."""

# A low rate: rounding must not be blown up by training itself before it can be told from a mistake.
MORE = ("--lr", "0.002", "--workers", "1")
LAST = 18
PLANS = {
    "1 -> 2": ((1, 13), (2, LAST)),
    "2 -> 1": ((2, 13), (1, LAST)),
    "1 -> 2 -> 1": ((1, 13), (2, 16), (1, LAST)),
    "2 throughout": ((2, LAST),),
}


def differences(
    stage: str, precision: str, where: Path, ranks: Callable[[int], World], plans: Iterable[str] = PLANS
) -> dict[str, float]:
    """Plan -> greatest relative difference of a tensor of the model to that of an uninterrupted run."""
    more = [*MORE, "--precision", {"fp32": "no"}.get(precision, precision)]

    def carry_out(plan: tuple[tuple[int, int], ...], runs: Path) -> Path:
        for world, steps in plan:
            ranks(world).run(_train, stage, words(stage, runs, "--max-steps", str(steps), *more))
        return runs

    whole = final_tensors(stage, carry_out(((1, LAST),), where / "whole"))
    return {
        name: greatest_difference(final_tensors(stage, carry_out(PLANS[name], where / name)), whole)
        for name in plans
    }


def _train(stage: str, argv: list[str]) -> None:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train_tiny(stage, argv)


def main() -> None:
    pool = Pool()
    try:
        print("| run | " + " | ".join(PLANS) + " |\n" + "|---" * (len(PLANS) + 1) + "|")
        for stage, precision in itertools.product(("pretrain", "distill"), BOUNDS):
            with tempfile.TemporaryDirectory(prefix="rmd-reshape-") as where:
                found = differences(stage, precision, Path(where), lambda size: World(pool, size))
            values = " | ".join(f"{value:.1e}" for value in found.values())
            print(f"| {stage}, {precision} | {values} |", flush=True)
    finally:
        pool.close()


if __name__ == "__main__":
    main()
