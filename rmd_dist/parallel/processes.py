"""The processes of one launch: how many were asked for, what each gets, what the first decides for all."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from rmd_dist.errors import ConfigError, Fault
from rmd_dist.parallel import collectives

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def share_of_cores(processes: int) -> int:
    """Threads for each of several processes, at least one, of the cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def workers_per_rank(asked: int) -> int:
    """Augmentation threads of this rank: `asked`, or with 0 its share of the cores this process may use."""
    return asked or share_of_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_torch_threads(asked: int) -> None:
    """Give torch `asked` CPU threads; with 0 this rank's share of the cores, if accelerate started it.

    `accelerate launch` sets OMP_NUM_THREADS to 1, which halves the speed of a lone process on two cores.
    """
    if asked or _launched_by_accelerate():
        torch.set_num_threads(workers_per_rank(asked))


def _launched_by_accelerate() -> bool:
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def refuse_separate_runs(group: int) -> None:
    """ConfigError if more processes were asked for than form this one's `group`: they would be separate runs.

    `accelerate launch --cpu --num_processes 2`, and a MULTI_CPU config file, start ONE process. All that
    tells it so is MASTER_ADDR, which that launcher sets for several processes alone, without WORLD_SIZE.
    """
    alone = _launched_by_accelerate() and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if alone or asked != group:
        exported = "; if it was your shell that set MASTER_ADDR: unset MASTER_ADDR" if alone else ""
        raise ConfigError(
            f"{'several' if alone else asked} processes were asked for, this one is in a group of {group}: "
            "they would be separate runs; on CPUs use --config_file configs/accelerate/cpu2.yaml "
            f"(that is --multi_gpu --num_processes N, without --cpu){exported}"
        )


def from_main(action: Callable[[], Any], *, patient: bool = False) -> Any:
    """What `action` gives on rank 0, on every rank; its ConfigError or Fault too, so that all stop.

    `patient`: it may take hours.
    """
    outcome: tuple[Any, type[Exception] | None] = (None, None)
    if collectives.is_main():
        try:
            outcome = (action(), None)
        except (ConfigError, Fault) as error:
            outcome = (str(error), type(error))
    result, problem = collectives.broadcast_object(outcome, patient=patient)
    if problem is not None:
        raise problem(result)
    return result


def stop_with_launcher() -> None:
    """Have the kernel send this process SIGTERM when the thread of `accelerate launch` that started it ends.

    With one process accelerate passes no signal on: killed itself, it would leave the run behind, unseen.
    """
    if _launched_by_accelerate() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def as_fault(error: Exception) -> Fault | None:
    """`error` as one line, if it is one or tells of a lost rank, the network or memory; else None: a bug."""
    if isinstance(error, Fault):
        return error
    said = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in said:
        return Fault(
            f"out of memory ({said}); start anew with a smaller --batch-size, or more --accumulation"
        )
    if "deterministic implementation" in said:
        what = said.split(",")[0]
        return Fault(f"{what}; use another model, or give up equal bits by --deterministic false")
    if not collectives.is_network_error(error):
        return None
    if not collectives.lost_peer(str(error)):
        return Fault(f"the ranks cannot talk to each other ({said}); see docs/nodes.md on the network")
    others = [r for r in range(collectives.world_size()) if r != collectives.rank()]
    told = [f"rank {r}: {text}" for r in others if (text := collectives.failure_of(r))]
    why = "; ".join(told) or f"without a word: killed, out of memory, or its machine is gone: {said}"
    return Fault(f"another rank has ended ({why}), so this one ends too; give the same command again")
