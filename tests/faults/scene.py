"""A place where a fault befalls a run: its folders, its processes, what is left of them afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from rmd_dist.engine.checkpoint import newest
from rmd_dist.models.weights import read_tensors
from tests.faults.command import Command
from tests.faults.nursery import Job, Nursery
from tests.tiny import words

LIMIT = 90.0  # seconds until a run is under way, or has ended by its fault
TOLD = ("error: ", "stopped: ", "interrupted")


class Unavailable(Exception):
    """This fault cannot be made here; says why."""


@dataclass(frozen=True)
class Outcome:
    """What a fault led to."""

    message: str
    """The line that tells of it."""
    code: int
    """Exit code: of the command, or of a forked rank that nobody killed."""
    seconds: float
    """From the fault, or the start of a run that is refused, until no process was left."""
    intact: int | None
    """Step of the newest checkpoint that still loads; None: there is none."""
    text: str
    """All that was printed."""
    debris: list[str]
    """Temporary files left behind."""


class Scene:
    """Runs below a folder, forked by a nursery or (None) as the commands that a user types."""

    def __init__(self, folder: Path, nursery: Nursery | None) -> None:
        self.runs, self.data, self._nursery = folder / "runs", folder / "data", nursery
        self.run = self.runs / "distill" / "tiny"
        self.checkpoints = self.run / "checkpoints"
        self.runs.mkdir(parents=True)
        self._folder, self._jobs = folder, list[Job | Command]()

    def start(
        self, *more: str, ranks: int = 1, sabotage: str = "", launcher: bool = False, loader: str = "memory"
    ) -> Job | Command:
        """A distillation that would take long, and saves every 2 steps."""
        argv = words("distill", self.runs, "--epochs", "60", "--checkpoint.every_steps", "2", "--keep", "2")
        argv = [loader if word == "memory" else word for word in argv]
        argv += ["--eval.every_epochs", "1", "--data.root", str(self.data), *more]
        output = self._folder / f"output-{len(self._jobs)}.txt"
        job: Job | Command
        if self._nursery is None:
            job = Command("distill", argv, ranks=ranks, output=output, sabotage=sabotage, launcher=launcher)
        elif launcher:
            raise Unavailable("needs accelerate launch itself")
        else:
            job = self._nursery.start("distill", argv, ranks=ranks, output=output, sabotage=sabotage)
        self._jobs.append(job)
        return job

    def under_way(self, *more: str, step: int = 4, **options: object) -> Job | Command:
        """A run that has saved step `step`."""
        job = self.start(*more, **options)  # type: ignore[arg-type]
        self._until(job, lambda: self.saved() >= step)
        return job

    def ended(self, *more: str) -> None:
        """A run that has ended well."""
        job = self.start(*more)
        assert job.wait(LIMIT) and job.codes() == [0], job.text()

    def saved(self) -> int:
        """Step of the newest checkpoint, by its name."""
        steps = [int(path.stem.split("-")[1]) for path in self.checkpoints.glob("step-*.json")]
        return max(steps, default=0)

    def outcome(self, job: Job | Command, since: float) -> Outcome:
        """Wait for the end that the fault brings."""
        if not job.wait(LIMIT):
            raise AssertionError(f"not ended {LIMIT:g} s after the fault:\n{job.text()[-3000:]}")
        text = job.text()
        told = [line for line in text.splitlines() if line.startswith(TOLD)]
        told = told or [line for line in text.splitlines() if line.startswith("warning: ")]
        codes = [code for code in job.codes() if code is not None and code != -SIGKILL]
        found = newest(self.checkpoints, warn=lambda _: None)
        if found is not None:
            read_tensors(found.path)
        return Outcome(
            told[-1].replace(f"{self._folder}/", "") if told else "",
            codes[0] if codes else -SIGKILL,
            job.gone() - since,
            found.step if found else None,
            text,
            [path.name for path in self.run.rglob("*.tmp")],
        )

    def began(self, *more: str, **options: object) -> Outcome:
        """What comes of a run that starts now."""
        since = time.monotonic()
        return self.outcome(self.start(*more, **options), since)  # type: ignore[arg-type]

    def newest_file(self) -> Path:
        """The tensors of the newest checkpoint, damaged or not."""
        return max(self.checkpoints.glob("step-*.safetensors"))

    def mount(self, size: str) -> None:
        """Make `runs` a file system of its own."""
        _command("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(self.runs))

    def remount(self, how: str) -> None:
        """`ro` or `rw`."""
        _command("mount", "-o", f"remount,{how}", str(self.runs))

    def immutable(self, path: Path, yes: bool) -> None:
        """Have the file system refuse new files in a folder: modes would not stop root."""
        _command("chattr", "+i" if yes else "-i", str(path))

    def close(self) -> None:
        """End every process and mount, whatever happened."""
        for job in self._jobs:
            with contextlib.suppress(OSError):
                job.signal(None, SIGKILL)
            job.wait(20)
        if self.checkpoints.exists():
            with contextlib.suppress(Unavailable):
                self.immutable(self.checkpoints, False)
        if os.path.ismount(self.runs):
            _command("umount", "-l", str(self.runs))

    def _until(self, job: Job | Command, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert job.running and time.monotonic() < deadline, job.text()[-3000:]
            time.sleep(0.01)

    def printed(self, job: Job | Command, pattern: str) -> None:
        """Wait until a job has printed something."""
        self._until(job, lambda: bool(re.search(pattern, job.text())))


@contextlib.contextmanager
def scene(folder: Path, nursery: Nursery | None) -> Iterator[Scene]:
    """A scene in an empty folder, and the end of all that was started there."""
    made = Scene(folder, nursery)
    try:
        yield made
    finally:
        made.close()


def _command(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise Unavailable(f"there is no {words[0]} here") from None
    if done.returncode:
        raise Unavailable(f"{words[0]} is not allowed here ({done.stderr.strip()})")
