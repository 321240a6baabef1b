"""Cells that share a GPU compute side by side, by NVIDIA's Multi-Process Service, for the time of a study.

Without it a GPU gives its processes turns, and the small kernels of one leave most of it idle while theirs
lasts. Every cell remains a process of its own, with the kernels that it would launch alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rmd_dist.errors import ConfigError

CONTROL = "nvidia-cuda-mps-control"
_PATIENCE = 60.0  # seconds for the daemon to start, or to end


@contextlib.contextmanager
def shared_gpus(logs: Path) -> Iterator[dict[str, str]]:
    """Run the service, whose logs go to the folder `logs`; gives the variables by which processes find it.

    Raises ConfigError where it is not there, or does not start.
    """
    program = shutil.which(CONTROL)
    if program is None:
        raise ConfigError(f"--mps needs {CONTROL}, which comes with NVIDIA's driver; leave --mps out")
    logs.mkdir(parents=True, exist_ok=True)
    # The folder holds sockets, whose paths must be short. The daemon numbers all GPUs as its clients do.
    with tempfile.TemporaryDirectory(prefix="rmd-mps-") as pipes, (logs / "start.log").open("w+") as log:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": pipes, "CUDA_MPS_LOG_DIRECTORY": str(logs.resolve())}
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | variables

        def control(*words: str, said: str | None = None) -> int:
            return subprocess.run(
                [program, *words], input=said, stdin=None if said else subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=environment, text=True, timeout=_PATIENCE, check=False,
            ).returncode  # fmt: skip

        try:
            code = control("-d")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"--mps: {CONTROL} did not start ({error}); leave --mps out") from error
        if code:
            log.seek(0)
            why = " ".join(log.read().split()) or f"exit code {code}"
            raise ConfigError(f"--mps: {CONTROL} did not start ({why}); leave --mps out")
        try:
            yield variables
        finally:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                control(said="quit\n")
