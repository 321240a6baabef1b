"""Training steps as CUDA graphs: what a step launches is recorded once, and then launched as one thing.

At small batches a step is bound by the host, which launches hundreds of kernels one by one. The graph holds
the same kernels on the same memory, so a replayed step gives the bits of one that is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from rmd_dist import parallel
from rmd_dist.config import AnyConfig
from rmd_dist.data.loader import Batch
from rmd_dist.engine.step import Step
from rmd_dist.tasks import StepOutput

WARM_UP = 3
"""Steps launched kernel by kernel before one is recorded: in them libraries choose and take memory."""


@dataclass(frozen=True)
class Recording:
    """A recorded step."""

    replay: Callable[[], None]
    """Launch it."""
    output: StepOutput
    """What it gives, in memory that the next replay of any recording overwrites."""


@functools.cache
def _stream() -> torch.cuda.Stream:
    """One for all runs of this process: cuBLAS keeps memory for each that it has seen."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore, no-any-return]


class CudaRecorder:
    """Runs or records work on a stream beside the usual one; its recordings share their memory."""

    def __init__(self) -> None:
        self._stream = _stream()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], StepOutput]) -> StepOutput:
        """Run `work` where it will be recorded, which autograd must have seen before."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            output = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return output

    def record(self, work: Callable[[], StepOutput]) -> Recording:
        """Record `work` without running it. Raises RuntimeError where that cannot be, as if it waits."""
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # The loader's threads may take pinned memory meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = work()
        finally:
            torch.cuda.set_stream(outside)  # an error leaves the other one
        return Recording(graph.replay, output)


def fits_graph(config: AnyConfig, accelerator: Accelerator) -> bool:
    """Whether steps may be replayed: on one GPU, where the host decides nothing in a step.

    With fp16 it decides whether to step, and with timm's optimizers it hands in the learning rate.
    """
    alone = accelerator.device.type == "cuda" and parallel.world_size() == 1
    return alone and config.run.cuda_graph and config.optim.name == "sgd" and accelerator.scaler is None


class GraphedStep:
    """Makes steps by `step`, from the fourth on by replaying a recording of it.

    Logged steps, which compute more, are a recording of their own; both read their batches from the same
    memory. What a step returns is overwritten by the next. Steps that cannot be recorded are launched kernel
    by kernel, which `warn` is told once.
    """

    def __init__(self, step: Step, warn: Callable[[str], None]) -> None:
        self._step, self._warn, self._recorder = step, warn, CudaRecorder()
        self._warm_ups: float = WARM_UP
        self._inputs: list[Batch] = []
        self._recordings: dict[bool, Recording] = {}

    def __call__(self, batches: Sequence[Batch], logging: bool) -> StepOutput:
        """One step."""
        if not self._warm_ups:
            self._read(batches)
            if logging in self._recordings or self._record(logging):
                self._recordings[logging].replay()
                return self._recordings[logging].output
        self._warm_ups -= 1
        return self._recorder.run(lambda: self._step(batches, logging))

    def _record(self, logging: bool) -> bool:
        """Whether it could be done; if not, it will not be tried again."""
        try:
            self._recordings[logging] = self._recorder.record(lambda: self._step(self._inputs, logging))
        except RuntimeError as error:
            self.close()
            self._step.optimizer.zero_grad()  # of the attempt
            self._warm_ups = math.inf
            reason = str(error).partition("\n")[0]
            self._warn(f"steps are launched kernel by kernel, as no CUDA graph can hold them: {reason}")
            return False
        return True

    def _read(self, batches: Sequence[Batch]) -> None:
        if not self._inputs:
            self._inputs = [batch.map(torch.empty_like) for batch in batches]
        for own, batch in zip(self._inputs, batches, strict=True):
            for into, tensor in zip(own.tensors, batch.tensors, strict=True):
                into.copy_(tensor)

    def close(self) -> None:
        """Let go of the recordings and their memory."""
        self._recordings.clear()
