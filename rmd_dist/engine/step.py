"""One training step: losses, gradients, the optimizer; all on the device, which nothing here waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.config import AnyConfig
from rmd_dist.data.loader import Batch
from rmd_dist.engine.guard import Guard
from rmd_dist.engine.optim import step_unless
from rmd_dist.tasks import Parts, StepOutput


class Step:
    """(micro-batches on the device, whether the step is logged) -> mean output over them, without gradient.

    What its host does is the same in every step, so that a CUDA graph can replay what it launches. The
    learning rate lies in the optimizer.
    """

    def __init__(
        self,
        parts: Parts,
        module: nn.Module,
        optimizer: AcceleratedOptimizer,
        guard: Guard,
        accelerator: Accelerator,
        config: AnyConfig,
    ) -> None:
        self.task, self.rendered = parts.task, parts.loader.rendered
        self.module, self.optimizer, self.guard = module, optimizer, guard
        self.accelerator, self.clip_norm = accelerator, config.optim.clip_norm
        micro_batch = config.data.batch_size // config.optim.accumulation
        self.rank_sizes = parallel.share_sizes(micro_batch, parallel.world_size())

    def __call__(self, micro_batches: Sequence[Batch], logging: bool) -> StepOutput:
        """Make the step; weights stay as they are where the guard leaves it out."""
        outputs = []
        self.guard.begin()
        for number, batch in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                with self.accelerator.autocast(), parallel.rows_known(self.rank_sizes):
                    output = self.task.step(self.module, self.rendered(batch), logging=logging)
                self.accelerator.backward(self.guard.marked(output.loss) / len(micro_batches))
            outputs.append(output)
        output, norm = _mean_output(outputs), self._clip(logging)
        scaled = self.accelerator.scaler is not None  # a scaler expects overflows, and leaves them out itself
        left_out = self.guard.watch([o.loss for o in outputs], None if scaled else norm)
        step_unless(None if scaled else left_out, self.optimizer)
        self.optimizer.zero_grad()
        if norm is not None:
            output.values["grad_norm"] = norm
        return output

    def _clip(self, logging: bool) -> Tensor | None:
        """Gradient norm where somebody wants it, clipped where the configuration says so."""
        norm = None
        if self.clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        elif logging or self.guard.skips:
            self.accelerator.unscale_gradients()
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        return norm


def _mean_output(outputs: list[StepOutput]) -> StepOutput:
    values = outputs[0].values
    if len(outputs) > 1:
        values = {name: torch.stack([o.values[name] for o in outputs]).mean() for name in values}
    return StepOutput(outputs[-1].loss.detach(), values)
