"""Checkpoints written while training goes on: a copy in host memory, and one thread of rank 0."""

from __future__ import annotations

import math
import time
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from rmd_dist.engine.checkpoint import Snapshot, write_checkpoint
from rmd_dist.errors import Fault, writing


class Saver:
    """Saves the states of one run; every rank has one and calls the same, rank 0's (`enabled`) writes.

    `save` copies the state to host memory before it returns, so that the next step may change it at once:
    on a GPU into pinned memory, waiting for the copy (90 MB of a ResNet-18 with its momentum: some 10 ms).
    The buffers are kept and used again. At most one checkpoint is being written; a second `save` waits
    for it. A failure is kept: `failed` tells, `wait` raises it.
    """

    def __init__(self, folder: Path, *, enabled: bool, asynchronous: bool, keep: int, step: int) -> None:
        self.step = step
        """Step of the newest checkpoint that was saved, or resumed from; 0: none."""
        self.held_seconds = 0.0
        """How long the last `save` held up training."""
        self._saved_at, self._asked = time.monotonic(), False
        self._folder, self._enabled, self._asynchronous, self._keep = folder, enabled, asynchronous, keep
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._buffers: dict[str, Tensor] = {}

    def asks(self, every_minutes: float) -> bool:
        """Whether that much time has passed on rank 0 since the last `save`, or the start; told once."""
        due = self._enabled and 0 < every_minutes <= (time.monotonic() - self._saved_at) / 60
        asks, self._asked = due and not self._asked, due
        return asks

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written."""
        return self._failure is not None

    def save(self, state: Snapshot) -> None:
        """Begin to save a state. After a failure nothing is saved any more."""
        started = time.monotonic()
        follows, self.step = self.step, state.step
        if self._enabled:
            self._join()
            if self._failure is None:
                copy = self._copy(state)
                self._thread = Thread(target=self._write, args=(copy, follows), name="rmd-saver")
                self._thread.start()
                if not self._asynchronous:
                    self._join()
        self._saved_at = time.monotonic()
        self.held_seconds = self._saved_at - started

    def wait(self) -> None:
        """Until the checkpoint in flight is on the disk. Raises what kept it, or an earlier one, from it."""
        self._join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait without raising: for a run that ends by another error."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copy(self, state: Snapshot) -> Snapshot:
        copies = {}
        for name, value in state.tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or (buffer.shape, buffer.stride()) != (value.shape, value.stride()):
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            copies[name] = buffer.copy_(value.detach(), non_blocking=True)
        if any(value.is_cuda for value in state.tensors.values()):
            torch.cuda.synchronize()
        self._buffers = copies
        return Snapshot(state.step, copies, state.scalars)

    def _write(self, state: Snapshot, follows: int) -> None:
        try:
            spoilt = [name for name, value in state.tensors.items() if not _finite(value)]
            if spoilt:
                raise Fault(
                    f"the state after step {state.step} is not finite ({len(spoilt)} tensors, such as "
                    f"{spoilt[0]}) and is not saved; try a lower --lr, or --clip-norm 1"
                )
            with writing(self._folder):
                write_checkpoint(self._folder, state, keep=self._keep, follows=follows)
        except BaseException as error:  # kept for the training thread, which raises it
            self._failure = error


def _finite(value: Tensor) -> bool:
    """By its sum, in one thread: the others train."""
    if value.dtype is torch.bfloat16:
        value = value.float()  # unknown to NumPy
    return not value.is_floating_point() or math.isfinite(np.sum(value.numpy(), dtype=np.float64))
