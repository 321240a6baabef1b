"""Ranks in a second instead of eight: one process imports everything once and forks the ranks of each run.

    with Nursery() as nursery:
        job = nursery.start("distill", words, ranks=2, output=path)
        job.kill(0); job.wait(20)

A forked rank is what `accelerate launch` would have started: a process of its own with RANK, WORLD_SIZE
and so on in its environment, that goes through the launch script's own way (cli.run, parse, train) and ends
as an interpreter ends. Nothing has used a thread before the fork. The kernel kills ranks whose nursery
is gone, and the nursery ends with the process that started it: nothing is left behind whatever happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from tests.distributed.pool import free_port

ROOT = Path(__file__).parents[2]
READY = 120.0  # seconds that the imports may take
_PR_SET_PDEATHSIG = 1

# What a run imports late, because a --help or another run does without.
MODULES = (
    *(
        "rmd_dist.engine.start",
        "rmd_dist.engine.trainer",
        "torch.utils.tensorboard",
        "torch.utils.tensorboard.summary",
    ),
    *("torch._dynamo", "torch.distributed.algorithms.ddp_comm_hooks", "sklearn.datasets", "rich.live"),
)


@dataclass
class Job:
    """The ranks of one run."""

    pids: list[int]
    output: Path
    """What all of them print."""
    ended: dict[int, tuple[int, float]] = field(default_factory=dict)
    """pid -> (exit code, negative: by which signal; time.monotonic() of its end)."""

    def signal(self, rank: int | None, number: signal.Signals) -> float:
        """Send a signal to one rank, or to all at once (None); returns when."""
        now = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            if rank is None:
                os.killpg(self.pids[0], number)
            else:
                os.kill(self.pids[rank], number)
        return now

    @property
    def running(self) -> bool:
        """Whether a rank has not ended."""
        return len(self.ended) < len(self.pids)

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.002)
        return not self.running

    def codes(self) -> list[int | None]:
        """Exit codes in rank order; None: still running."""
        return [self.ended[pid][0] if pid in self.ended else None for pid in self.pids]

    def end(self, grace: float, term: float = 15.0) -> bool:
        """As a launcher does when one rank has ended: wait `grace` seconds, SIGTERM, then SIGKILL.

        Returns whether all ranks ended without its help.
        """
        if self.wait(grace):
            return True
        self.signal(None, signal.SIGTERM)
        if not self.wait(term):
            self.signal(None, signal.SIGKILL)
            assert self.wait(30), f"ranks that SIGKILL does not end: {self.pids}"
        return False

    def gone(self) -> float:
        """When the last rank ended."""
        return max(at for _, at in self.ended.values())

    def text(self) -> str:
        """What the ranks printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class Nursery:
    """The process that forks ranks, seen from the one that asks for them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._jobs: dict[int, Job] = {}
        self._forked: list[Job] = []
        self._output = Path(os.devnull)
        self._news, self._lost = threading.Condition(), False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self, stage: str, argv: Sequence[str], *, ranks: int, output: Path, sabotage: str = "") -> Job:
        """Fork the ranks of `launch/STAGE.py ARGV`; they share a process group of their own."""
        asked = {"stage": stage, "argv": list(argv), "ranks": ranks, "sabotage": sabotage}
        asked |= {"output": str(output), "port": free_port()}
        stdin = self._process.stdin
        assert stdin is not None
        with self._news:
            self._output = output
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            self._news.wait_for(lambda: bool(self._forked) or self._lost, READY)
            assert self._forked, "the nursery gives no answer; its errors are on stderr"
            return self._forked.pop()

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        for line in stdout:
            news = json.loads(line)
            with self._news:
                if "forked" in news:
                    job = Job(news["forked"], self._output)
                    self._jobs |= dict.fromkeys(job.pids, job)
                    self._forked.append(job)
                else:
                    self._jobs[news["pid"]].ended[news["pid"]] = (news["code"], news["at"])
                self._news.notify_all()
        with self._news:
            self._lost = True
            self._news.notify_all()

    def close(self) -> None:
        """End the nursery, and the ranks that are left."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._listener.join(10)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def train(stage: str, argv: list[str]) -> None:
    """What launch/STAGE.py does."""
    from rmd_dist.config import DistillConfig, PretrainConfig
    from rmd_dist.config.cli import parse
    from rmd_dist.engine.start import train as train_stage

    train_stage(parse(PretrainConfig, argv) if stage == "pretrain" else parse(DistillConfig, argv))


def _live(asked: dict[str, Any], rank: int) -> None:
    """A rank's life, in the forked process."""
    from rmd_dist.commands.entry import run
    from tests.faults.sabotage import install

    file = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if asked["ranks"] > 1:
        world, number = str(asked["ranks"]), str(rank)
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked["port"])}
    install(asked["sabotage"])
    run(lambda: train(asked["stage"], asked["argv"]))


def _fork(asked: dict[str, Any], ours: IO[str]) -> list[int]:
    pids: list[int] = []
    for rank in range(asked["ranks"]):
        pid = os.fork()
        group = pids[0] if pids else pid
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setpgid(0, group)
            ours.close()
            _live(asked, rank)
        with contextlib.suppress(PermissionError):  # it has done it itself, and more
            os.setpgid(pid, group)
        pids.append(pid)
    return pids


def _warm_up() -> None:
    """Import, and do once, what takes long the first time and starts no thread."""
    for name in MODULES:
        importlib.import_module(name)
    from rmd_dist.config import DistillConfig, PretrainConfig
    from rmd_dist.config.cli import parse
    from rmd_dist.data.render import rng
    from rmd_dist.runs import figures

    for config in (PretrainConfig, DistillConfig):
        parse(config, [])
    rng.uniform(0, 0, 0, 0, 0)
    figures.confusion_matrix(np.ones((2, 2)), "ab", "")
    threads = len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 1
    assert threads == threading.active_count() == 1, "a fork would leave these threads behind"


def _serve() -> None:
    """Fork what is asked for on stdin, tell of every end on stdout, until stdin is closed."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    _warm_up()
    ours = os.fdopen(os.dup(1), "w")
    asked_for = os.fdopen(os.dup(0), "rb", buffering=0)
    own, pending, children = os.getpid(), b"", set()
    try:
        while True:
            if select.select([asked_for], [], [], 0.002 if children else None)[0]:
                more = asked_for.read(65536)
                if not more:
                    return
                pending += more
                while b"\n" in pending:
                    line, _, pending = pending.partition(b"\n")
                    pids = _fork(json.loads(line), ours)
                    children.update(pids)
                    print(json.dumps({"forked": pids}), file=ours, flush=True)
            while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                children.discard(ended[0])
                told = {"pid": ended[0], "code": os.waitstatus_to_exitcode(ended[1]), "at": time.monotonic()}
                print(json.dumps(told), file=ours, flush=True)
    finally:
        for pid in children if os.getpid() == own else ():  # a rank ends through here too
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
