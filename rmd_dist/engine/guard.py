"""What is done about a loss or a gradient that is nan or infinite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from rmd_dist.errors import Fault

MOST_SKIPPED = 20
"""Steps skipped in a row, after which the run stops: the weights stay as they are, so it is they. A GPU's
count is looked at on logging steps."""

LEAST_SCALE = 1e-4
"""Of a gradient scaler (fp16), which halves it at every overflow; below it no scale will do."""

ADVICE = (
    "try a lower --lr, --clip-norm 1, --precision no, in distillation a lower --K; "
    "--on-nonfinite skip leaves single steps out"
)


class Guard:
    """Looks at the loss, and the gradient norm where one is known, before the weights follow them.

    All ranks see the same numbers (the loss is global, gradients are averaged), so they decide alike. A
    device is not made to wait: its verdicts stay there until `check`, which the trainer calls on logging
    steps and before it saves, on a CPU after every step.
    """

    def __init__(
        self, mode: Literal["stop", "skip"], buffers: Iterable[Tensor], device: torch.device, skipped: int
    ) -> None:
        self.skipped = skipped
        """Steps left out since the run began, as of the last `check`."""
        self.skips = mode == "skip"
        # What a forward pass changes, such as batch norm's running statistics, has seen the batch when its
        # loss is known.
        self._buffers = list(buffers) if self.skips else []
        self._before = [buffer.clone() for buffer in self._buffers]
        self._spoilt = torch.zeros((), dtype=torch.bool, device=device)
        self._skipped = torch.full((), skipped, device=device)
        self._in_a_row = torch.zeros_like(self._skipped)

    def begin(self) -> None:
        """Before the forward pass: keep the buffers, to have them back after a skipped step."""
        for kept, buffer in zip(self._before, self._buffers, strict=True):
            kept.copy_(buffer)

    def marked(self, loss: Tensor) -> Tensor:
        """`loss`; where steps are skipped, one that is not finite gets gradients that are not finite either.

        Else a loss of nan could have finite gradients, and a gradient scaler would let the step pass.
        """
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan) if self.skips else loss

    def watch(self, losses: list[Tensor], norm: Tensor | None) -> Tensor | None:
        """Look at a step before the weights follow it; returns 1.0 if it is to be left out, 0.0 if not.

        None: nothing is left out in this mode.

        `norm`: of the gradient, None where it is not known or its overflow is a scaler's business.
        """
        total = torch.stack([loss.detach().float() for loss in losses]).sum()
        spoilt = ~torch.isfinite(total if norm is None else total + norm)
        if self.skips:
            for kept, buffer in zip(self._before, self._buffers, strict=True):
                torch.where(spoilt, kept, buffer, out=buffer)
            self._skipped += spoilt
            self._in_a_row.add_(1).mul_(spoilt)
        else:
            self._spoilt |= spoilt
        return spoilt.float() if self.skips else None

    def verdict(self) -> Tensor:
        """What `check` judges by: (3,) float64, on the device."""
        return torch.stack([self._spoilt, self._skipped, self._in_a_row]).double()

    def check(
        self, step: int, verdict: Sequence[float] | None = None, loss_scale: float | None = None
    ) -> None:
        """Raise Fault if the run must stop for what was seen up to `step`.

        `verdict`: the numbers of `verdict()`, where they have been fetched; else a GPU is waited for.
        `loss_scale`: a gradient scaler's, which leaves out steps by itself and never gives up.
        """
        spoilt, skipped, in_a_row = verdict or self.verdict().tolist()
        self.skipped = int(skipped)
        if spoilt:
            raise Fault(f"loss or gradient is nan or infinite at step {step}; {ADVICE}")
        if loss_scale is not None and loss_scale < LEAST_SCALE:
            raise Fault(
                f"gradients overflow in fp16 at every scale, at step {step} at {loss_scale:.2g}; {ADVICE}"
            )
        if in_a_row >= MOST_SKIPPED:
            raise Fault(
                f"loss or gradient is nan or infinite in {MOST_SKIPPED} steps in a row, up to step {step}, "
                f"which were all skipped; {ADVICE}"
            )
