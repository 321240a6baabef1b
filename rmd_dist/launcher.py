"""The processes of one launch: how many were asked for, what each gets, what the first decides for all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rmd_dist import dist
from rmd_dist.config import ConfigError


def workers_per_rank(asked: int) -> int:
    """Augmentation threads of this rank: `asked`, or with 0 its share of the cores this process may use."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return asked or max(1, len(os.sched_getaffinity(0)) // local_ranks)


def processes_asked_of_launcher() -> int:
    """`--num_processes N` of an `accelerate launch` that is this process's parent; 1 if there is none.

    `accelerate launch --cpu --num_processes 2` starts ONE process and sets nothing that tells it so.
    """
    import psutil

    with contextlib.suppress(psutil.Error, ValueError):
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
        if any(Path(w).name.startswith("accelerate") for w in words) and "launch" in words:
            return max((n for n in _flag_values(words, "num_processes")), default=1)
    return 1


def _flag_values(words: list[str], flag: str) -> Iterator[int]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.lstrip("-").replace("-", "_", 1).partition("=")
        if word.startswith("--") and name == flag:
            yield int(value or following)
        if word.endswith(".py"):
            return  # what follows belongs to the script


def from_main(action: Callable[[], Any]) -> Any:
    """What `action` gives on rank 0, on every rank; its ConfigError too, so that all ranks stop together."""
    outcome: tuple[Any, str | None] = (None, None)
    if dist.is_main():
        try:
            outcome = (action(), None)
        except ConfigError as error:
            outcome = (None, str(error))
    result, problem = dist.broadcast_object(outcome)
    if problem is not None:
        raise ConfigError(problem)
    return result
