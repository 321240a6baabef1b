"""What is done about a loss or a gradient that is nan or infinite."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rmd_dist.faults import Fault

MOST_SKIPPED = 20
"""Steps skipped in a row, after which the run stops: the weights stay as they are, so it is they."""

ADVICE = (
    "try a lower --lr, --clip-norm 1, --precision no, in distillation a lower --K; "
    "--on-nonfinite skip leaves single steps out"
)


class Guard:
    """Looks at the loss, and the gradient norm where one is known, before the weights follow them.

    All ranks see the same numbers (the loss is global, gradients are averaged), so they decide alike. On a
    CPU every step is looked at. A GPU is not made to wait: in mode `stop` the verdict stays on the device
    until `check`, which the trainer calls on logging steps and before it saves; `skip` waits in each step.
    """

    def __init__(self, mode: Literal["stop", "skip"], module: nn.Module, skipped: int) -> None:
        self.skipped = skipped
        """Steps left out since the run began."""
        self.skips = mode == "skip"
        self._in_a_row = 0
        # Batch norm's running statistics have seen the batch when its loss is known.
        self._buffers = list(module.buffers()) if self.skips else []
        self._before = [buffer.clone() for buffer in self._buffers]
        self._spoilt: Tensor | None = None

    def begin(self) -> None:
        """Before the forward pass: keep the buffers, to have them back after a skipped step."""
        for kept, buffer in zip(self._before, self._buffers, strict=True):
            kept.copy_(buffer)

    def accepts(self, step: int, losses: list[Tensor], norm: Tensor | None) -> bool:
        """Whether the optimizer may step. Raises Fault where the run must stop.

        `norm`: of the gradient, None where it is not known or its overflow is a scaler's business.
        """
        total = torch.stack([loss.detach().float() for loss in losses]).sum()
        spoilt = ~torch.isfinite(total if norm is None else total + norm)
        if self.skips:
            return self._skip(step) if bool(spoilt) else self._take()
        self._spoilt = spoilt if self._spoilt is None else self._spoilt | spoilt
        if spoilt.is_cpu:
            self.check(step)
        return True

    def check(self, step: int) -> None:
        """Raise Fault if a loss or gradient up to `step` was not finite. A GPU is waited for."""
        if self._spoilt is not None and bool(self._spoilt):
            raise Fault(f"loss or gradient is nan or infinite at step {step}; {ADVICE}")

    def _take(self) -> bool:
        self._in_a_row = 0
        return True

    def _skip(self, step: int) -> bool:
        for kept, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(kept)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise Fault(
                f"loss or gradient is nan or infinite in {MOST_SKIPPED} steps in a row, up to step {step}, "
                f"which were all skipped; {ADVICE}"
            )
        return False
