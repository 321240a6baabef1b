"""One cell as a process of its own: started, watched, asked to stop, and what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_high
from typing import IO

from rmd_dist.cli import save_yaml
from rmd_dist.config import AnyConfig, ConfigError, DistillConfig
from rmd_dist.curves import read_curve
from rmd_dist.faults import EXIT_STOPPED
from rmd_dist.files import atomic_path
from rmd_dist.history import parse_records
from rmd_dist.models.export import WEIGHTS
from rmd_dist.run import read_manifest
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import results_of, run_folder, teacher_folder

GRACE_SECONDS = 120.0  # for a checkpoint to be written before a cell is killed
POLL_SECONDS = 0.2

LAUNCH = Path(__file__).parents[2] / "launch"

# Becomes the command that follows it, having asked the kernel for SIGTERM (PR_SET_PDEATHSIG) when the thread
# that started it ends, however it ends; not in a preexec_fn, which other threads' locks can block for ever.
_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("its worker ended before it began")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Topology:
    """How each cell is started."""

    processes: int = 1
    """Processes of a cell; more than one: DDP by `accelerate launch`."""
    launch_config: Path | None = None
    """accelerate's configuration file, instead of `processes`."""
    threads: int = 0
    """torch's CPU threads and augmentation threads of each process; 0: the run's own default."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the cells; None: as it is."""

    def command(self, stage: str, config: Path) -> list[str]:
        """What starts a stage."""
        script = [str(LAUNCH / f"{stage}.py"), "--config", str(config)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        if self.launch_config:
            return [*launcher, "--config_file", str(self.launch_config), *script]
        if self.processes > 1:  # a free port; ranks without a GPU find each other by gloo
            topology = ["--multi_gpu", "--num_processes", str(self.processes), "--main_process_port", "0"]
            return [*launcher, *topology, "--mixed_precision", "no", *script]
        return [sys.executable, *script]


@dataclass(frozen=True)
class Data:
    """Where the data are on this machine; nothing of it changes what is computed. None: the cell's own."""

    root: str | None = None
    source: str | None = None
    loader: str | None = None
    cpu: bool = False

    def into(self, config: AnyConfig) -> None:
        """Put it into a cell's configuration."""
        for key in ("root", "source", "loader"):
            if (value := getattr(self, key)) is not None:
                setattr(config.data, key, value)
        config.run.cpu = config.run.cpu or self.cpu


@dataclass
class Running:
    """A cell under way."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    file: IO[bytes] = field(repr=False)
    stopping: bool = False
    begun_at: int = 0
    """Size of the log, of earlier attempts, when this one began."""
    _read: int = 0
    """Bytes of metrics.jsonl that `news` has been through."""

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Until the process ends, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def stop(self) -> None:
        """Ask the run to save and stop."""
        self.stopping = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and its ranks at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.file.close()

    def curve(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of what has been measured so far, read anew from the beginning."""
        with contextlib.suppress(ConfigError):
            return list(zip(*read_curve(self.folder, tag), strict=True))
        return []

    def step_seconds(self, batch_size: float, after: int = 0) -> float | None:
        """Median time of an optimizer step, of those logged beyond step `after`; None without any."""
        rates = [value for step, value in self.curve("train/images_per_second") if step > after]
        return batch_size / median_high(rates) if rates else None

    def news(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of what has been measured since this was last asked."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self._read = 0  # a continued run has dropped what came after its checkpoint
                file.seek(self._read)
                lines = file.read()
        except OSError:  # nothing has been measured yet
            return []
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        return [(step, values[tag]) for step, values in parse_records(whole) if tag in values]

    def stopped(self) -> bool:
        """Whether the run was asked to stop, by whomever, and will continue."""
        status = read_manifest(self.folder).get("status")
        return self.process.returncode == EXIT_STOPPED or (
            self.process.returncode != 0 and status == "stopped"
        )

    def last_words(self) -> str:
        """Why it ended: what it printed as an error, else its last line, else its exit code."""
        with self.log.open("rb") as file:
            file.seek(self.begun_at)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        told = [line for line in lines if line.startswith(("error:", "stopped:", "interrupted:"))]
        code = self.process.returncode
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return (told or [line for line in lines if line][-1:] or [ended])[-1][:500]


def start(study: Path, cell: Cell, topology: Topology, data: Data) -> Running:
    """Start a cell, or continue it from its newest checkpoint. Raises ConfigError if it cannot be written."""
    config = complete(study, cell, topology, data)
    try:
        for name in ("cells", "logs"):
            (study / name).mkdir(exist_ok=True)
        with atomic_path(study / "cells" / f"{cell.key}.yaml") as temporary:
            save_yaml(config, temporary)
        log = study / "logs" / f"{cell.key}.log"
        file = log.open("ab")
        begun_at = file.tell()
    except OSError as error:
        raise ConfigError(f"cannot write to {study}: {error.strerror}; make it writable") from error
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": topology.devices} if topology.devices else {})
    if topology.threads:
        environment |= {"OMP_NUM_THREADS": str(topology.threads)}
    command = topology.command(cell.stage, study / "cells" / f"{cell.key}.yaml")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command],
        stdout=file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # a terminal's Ctrl-C is for the study, which then asks its cells to stop
    )
    return Running(process, run_folder(study, cell), log, file, begun_at=begun_at)


def complete(study: Path, cell: Cell, topology: Topology, data: Data) -> AnyConfig:
    """A cell's configuration with where its run, its data and its teacher are."""
    config = replace(
        cell.config,
        data=replace(cell.config.data),
        run=replace(cell.config.run, root=str(study / "runs"), name=cell.key),
    )
    data.into(config)
    if topology.threads:
        config.run.threads = config.data.workers = topology.threads
    if isinstance(config, DistillConfig):
        if config.teacher not in (None, "random"):
            config.teacher = str(teacher_folder(study, str(config.teacher)) / WEIGHTS)
        elif cell.needs:
            config.teacher = str(study / "runs" / "pretrain" / cell.needs / WEIGHTS)
        config.run.resume_allow = ("teacher",)  # a study may move; the run compares the SHA-256 anyway
    return config


def outcome(running: Running, seconds: float) -> dict[str, float] | None:
    """What a run that has ended found; None if it did not finish.

    Raises ConfigError for a damaged manifest.
    """
    manifest = read_manifest(running.folder)
    if running.process.returncode or manifest.get("status") != "finished":
        return None
    results = results_of(running.folder) | {"seconds": seconds, "steps": float(manifest.get("step", 0))}
    batch = manifest.get("config", {}).get("data.batch_size")
    if batch and (seconds_of_step := running.step_seconds(float(batch))):
        results["step_seconds"] = seconds_of_step
    return results
