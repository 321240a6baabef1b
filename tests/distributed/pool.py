"""Spawned gloo ranks that serve the whole test session: importing torch is paid once a rank, not once a test.

A test asks the fixture `ranks` for a world and ships a module-level function to it:

    def double(n):                          # runs on every rank; rmd_dist.parallel knows rank and world
        return n * 2 + dist.rank()

    def test_double(ranks):
        assert ranks(3).run(double, 1) == [2, 3, 4]      # results in rank order

The function and its arguments travel by pickle, so the function goes by name. `run_each` gives every
rank arguments of its own. Ranks run one torch thread, in a fresh process group each time (a world of 1
has none), with the variables that torchrun would set. Tensors should be returned small, or as numbers.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

TIMEOUT = 120.0
"""Seconds that one call may take, torch import included."""

GRACE = 3.0
"""Seconds that other ranks get to report too, once one has failed: they may hang in a collective."""

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ALWAYS = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}


class RankError(AssertionError):
    """A function raised or hung on some rank; the message has the tracebacks."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True)
class _Call:
    rank: int
    world: int
    port: int
    function: Callable[..., Any]
    args: tuple[Any, ...]


def _join_world(call: _Call) -> None:
    import torch.distributed as c10d

    values = (call.rank, call.world, call.rank, call.world, "127.0.0.1", call.port)
    os.environ.update({k: str(v) for k, v in zip(_RANK_VARIABLES, values, strict=True)})
    if call.world > 1:
        c10d.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT / 2))


def _leave_world() -> None:
    import sys

    from rmd_dist.parallel import collectives as dist

    dist.shutdown()
    for name in _RANK_VARIABLES:
        os.environ.pop(name, None)
    if "accelerate" in sys.modules:  # it keeps rank and world in class attributes
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _serve(pipe: Connection) -> None:
    """A rank's life: calls come in by the pipe, (worked, result or traceback) go out, None ends it."""
    os.environ.update(_ALWAYS)  # before torch
    import torch

    torch.set_num_threads(1)
    while (call := pipe.recv()) is not None:
        try:
            _join_world(call)
            result = call.function(*call.args)
            _leave_world()
            pipe.send((True, result))
        except BaseException:
            # No leaving by the barrier: peers may never reach it. The pool replaces failed ranks.
            pipe.send((False, traceback.format_exc()))


class Pool:
    """The ranks; started when first needed, all replaced after a failure."""

    def __init__(self) -> None:
        self._ranks: list[tuple[SpawnProcess, Connection]] = []

    def _grow(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(len(self._ranks), size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))

    def call(
        self, function: Callable[..., Any], args_of: Sequence[tuple[Any, ...]], timeout: float
    ) -> list[Any]:
        """Run function(*args_of[r]) on each rank r of a world of len(args_of); results in rank order.

        Raises:
            RankError: with the traceback of every rank that raised, or the ranks that did not answer.
        """
        world = len(args_of)
        self._grow(world)
        pipes = [pipe for _, pipe in self._ranks[:world]]
        port = free_port()
        for rank, (pipe, args) in enumerate(zip(pipes, args_of, strict=True)):
            pipe.send(_Call(rank, world, port, function, args))
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < world and (left := deadline - time.monotonic()) > 0:
            waiting = [pipe for r, pipe in enumerate(pipes) if r not in answers]
            for ready in wait(waiting, timeout=left):
                assert isinstance(ready, Connection)
                rank = pipes.index(ready)
                try:
                    answers[rank] = ready.recv()
                except EOFError:
                    self._ranks[rank][0].join(1)
                    answers[rank] = (False, f"the process died, exit code {self._ranks[rank][0].exitcode}")
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE)
        if len(answers) == world and all(worked for worked, _ in answers.values()):
            return [answers[r][1] for r in range(world)]
        self.close(kill=True)
        told = [
            f"--- rank {r} of {world}:\n{text}" for r, (worked, text) in sorted(answers.items()) if not worked
        ]
        silent = sorted(set(range(world)) - set(answers))
        raise RankError("\n".join([f"{function.__name__}: no answer from ranks {silent}", *told]))

    def close(self, kill: bool = False) -> None:
        """End all ranks; with `kill`, those of a failed call that may hang."""
        for process, pipe in self._ranks:
            if kill:
                process.kill()
            elif process.is_alive():
                pipe.send(None)
        for process, pipe in self._ranks:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)
            pipe.close()
        self._ranks = []


@dataclass(frozen=True)
class World:
    """A world of `size` ranks of the pool."""

    pool: Pool
    size: int
    timeout: float = TIMEOUT

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(*args) on every rank -> results in rank order."""
        return self.pool.call(function, [args] * self.size, self.timeout)

    def run_each(self, function: Callable[..., Any], args_of: Sequence[tuple[Any, ...]]) -> list[Any]:
        """function(*args_of[r]) on rank r -> results in rank order."""
        assert len(args_of) == self.size
        return self.pool.call(function, args_of, self.timeout)
