"""One cell as a process of its own: started, watched, asked to stop, and what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rmd_dist.config import AnyConfig, DistillConfig
from rmd_dist.config.convert import save_yaml
from rmd_dist.config.presets import FOLDER
from rmd_dist.errors import EXIT_STOPPED, ConfigError
from rmd_dist.files import atomic_path
from rmd_dist.models.export import WEIGHTS
from rmd_dist.runs.folder import read_manifest
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import teacher_folder

GRACE_SECONDS = 120.0  # for a checkpoint to be written before a cell is killed
POLL_SECONDS = 0.2

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


def tied(command: list[str]) -> list[str]:
    """What runs `command`, its program by an absolute path, until this process ends, however that ends."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


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
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the cells' environment, beside this process's."""

    def command(self, stage: str, config: Path) -> list[str]:
        """What starts a stage."""
        script = ["-m", "rmd_dist", stage, "--config", str(config)]
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        if self.launch_config:
            return [*launcher, "--config_file", str(self.launch_config), *script]
        if self.processes > 1:  # a free port; ranks without a GPU find each other by gloo
            # By a file: without one accelerate would take what its default_config.yaml says.
            topology = ["--config_file", str(FOLDER / "accelerate/cpu2.yaml")]
            topology += ["--num_processes", str(self.processes)]
            return [*launcher, *topology, *script]
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
    """A cell under way; as a context, its process has ended when the context does."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    file: IO[bytes] = field(repr=False)
    begun_at: int = 0
    """Size of the log, of earlier attempts, when this one began."""
    stopping: bool = False
    """Whether `stop` was called."""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            self.kill()
        self.file.close()

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

    def outcome(self) -> str:
        """What came of the run, now that its process has ended: finished, stopped or failed.

        Stopped, by whomever, it will continue. Raises ConfigError for a damaged manifest.
        """
        code, status = self.process.returncode, read_manifest(self.folder).get("status")
        if status == "finished":
            return "finished"
        told = code == EXIT_STOPPED or (code != 0 and status == "stopped")
        return "stopped" if told or self.stopping else "failed"

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
    environment = os.environ | topology.environment
    if topology.devices:
        environment |= {"CUDA_VISIBLE_DEVICES": topology.devices}
    if topology.threads:
        environment |= {"OMP_NUM_THREADS": str(topology.threads)}
    command = topology.command(cell.stage, study / "cells" / f"{cell.key}.yaml")
    process = subprocess.Popen(
        tied(command),
        stdout=file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # a terminal's Ctrl-C is for the study, which then asks its cells to stop
    )
    return Running(process, cell.run_folder(study), log, file, begun_at)


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
    return config
