"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from rmd_dist.config import OptimConfig


def learning_rate(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (0-based).

    cosine: lr (1 + cos(pi step / total)) / 2 (Loshchilov & Hutter 2017, no restarts); multistep: lr times
    gamma for every milestone passed (a milestone is a share of all epochs, met at an epoch's start);
    constant. A linear warm-up, if any, multiplies the first epochs.
    """
    assert optim.lr is not None, "validate() fills in the learning rate"
    total = optim.epochs * steps_per_epoch
    lr = optim.lr
    if optim.schedule == "cosine":
        lr *= 0.5 * (1.0 + math.cos(math.pi * step / total))
    elif optim.schedule == "multistep":
        epoch = step // steps_per_epoch
        lr *= optim.gamma ** sum(epoch >= round(m * optim.epochs) for m in optim.milestones)
    warmup = optim.warmup_epochs * steps_per_epoch
    return lr * min(1.0, (step + 1) / warmup) if warmup else lr
