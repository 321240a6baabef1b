"""Resume of a run on another number of ranks, in the midst of an epoch: differences to the uninterrupted run.

    python -m tests.faults.reshape

10 steps an epoch; stopped after steps 13 and 16, compared after step 18 with 18 steps on one rank: weights
and buffers, the greatest relative difference of a tensor (see tests/tiny.py), and all momentum as one vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.distributed.pool import Pool, World
from tests.tiny import final_tensors, greatest_difference, train_tiny, words

BOUND = 0.02
"""Of the weights after 18 steps; those of two ranks throughout are as far from one rank's."""

# A low rate: rounding must not be blown up by the training itself before it can be told from a mistake.
MORE = ("--lr", "0.002", "--workers", "1")
LAST = 18
PLANS = {
    "1 -> 2": ((1, 13), (2, LAST)),
    "2 -> 1": ((2, 13), (1, LAST)),
    "1 -> 2 -> 1": ((1, 13), (2, 16), (1, LAST)),
    "2 throughout": ((2, LAST),),
}


def differences(stage: str, where: Path, ranks: Callable[[int], World]) -> dict[str, float]:
    """Plan -> greatest relative difference of a tensor of the model to that of an uninterrupted run."""

    def carry_out(plan: tuple[tuple[int, int], ...], runs: Path) -> Path:
        for world, steps in plan:
            ranks(world).run(train_tiny, stage, words(stage, runs, "--max-steps", str(steps), *MORE))
        return runs

    whole = final_tensors(stage, carry_out(((1, LAST),), where / "whole"))
    return {
        name: greatest_difference(final_tensors(stage, carry_out(plan, where / name)), whole)
        for name, plan in PLANS.items()
    }


def main() -> None:
    pool = Pool()
    try:
        print("| run | " + " | ".join(PLANS) + " |\n" + "|---" * (len(PLANS) + 1) + "|")
        for stage in ("pretrain", "distill"):
            with tempfile.TemporaryDirectory(prefix="rmd-reshape-") as where:
                found = differences(stage, Path(where), lambda size: World(pool, size))
            print(f"| {stage} | " + " | ".join(f"{value:.1e}" for value in found.values()) + " |", flush=True)
    finally:
        pool.close()


if __name__ == "__main__":
    main()
