"""The commands that a user types, as processes that can be signalled and are gone when all are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.faults.nursery import ROOT


class Command:
    """`python launch/STAGE.py ARGV`, or `accelerate launch` of it, with the same calls as nursery.Job."""

    def __init__(
        self, stage: str, argv: Sequence[str], *, ranks: int, output: Path, sabotage: str, launcher: bool
    ) -> None:
        script = [str(ROOT / f"launch/{stage}.py"), *argv]
        if sabotage:
            script = [str(ROOT / "tests/faults/sabotage.py"), sabotage, stage, *argv]
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
        command = [*launch, "--num_processes", str(ranks), *script] if launcher or ranks > 1 else script
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.output = output
        self._gone = 0.0
        with output.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | environment | {"ACCELERATE_USE_CPU": "true"},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._seen = {psutil.Process(self._process.pid)}

    def signal(self, rank: int | None, number: signal.Signals) -> float:
        """Send a signal to one rank, or, as a terminal does, to all processes (None); returns when."""
        now = time.monotonic()
        if self.running:
            if rank is None:
                os.killpg(self._process.pid, number)
            else:
                self._ranks()[rank].send_signal(number)
        return now

    def signal_launcher(self, number: signal.Signals) -> float:
        """Send a signal to the first process alone; returns when."""
        now = time.monotonic()
        self._process.send_signal(number)
        return now

    def _ranks(self) -> list[psutil.Process]:
        ranks = [p for p in self._alive() if "LOCAL_RANK" in p.environ()]
        return sorted(ranks, key=lambda p: int(p.environ()["LOCAL_RANK"])) or self._alive()

    def _alive(self) -> list[psutil.Process]:
        self._process.poll()
        for process in list(self._seen):
            try:
                self._seen.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return [p for p in self._seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    @property
    def running(self) -> bool:
        """Whether any process of it is left."""
        if not self._gone and not self._alive():
            self._gone = time.monotonic()
        return not self._gone

    def wait(self, seconds: float) -> bool:
        """Whether all processes have ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.running

    def codes(self) -> list[int | None]:
        """The exit code of the first process, which is the one that a user sees."""
        # Its first thread may be gone before the others: then it has ended, and has no code yet.
        return [None if self.running else self._process.wait(10)]

    def gone(self) -> float:
        """When the last process ended."""
        assert self._gone
        return self._gone

    def text(self) -> str:
        """What all of them printed."""
        return self.output.read_text(errors="replace")
