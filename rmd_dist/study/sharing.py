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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.study.runner import POLL_SECONDS, tied

CONTROL = "nvidia-cuda-mps-control"
_PATIENCE = 60.0  # seconds for the daemon to start, to answer, or to end


@contextlib.contextmanager
def shared_gpus(logs: Path, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Run the service, whose logs go to the folder `logs`; gives the variables by which processes find it.

    It ends with the context, and with this process however that ends. Processes that do not find it take
    turns as without it; `say` is told at the end if none has. Raises ConfigError where the service is not
    there, or does not start.
    """
    program = shutil.which(CONTROL)
    if program is None:
        raise ConfigError(f"--mps needs {CONTROL}, which comes with NVIDIA's driver; leave --mps out")
    with contextlib.ExitStack() as stack:
        try:
            logs.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context((logs / "control.log").open("w+"))
            # It holds sockets, whose paths must be short.
            pipes = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="rmd-mps-", ignore_cleanup_errors=True)
            )
        except OSError as error:
            raise ConfigError(f"--mps: cannot write to {error.filename}: {error.strerror}") from error
        variables = {"CUDA_MPS_PIPE_DIRECTORY": pipes, "CUDA_MPS_LOG_DIRECTORY": str(logs.resolve())}
        # The daemon numbers all GPUs as its clients do.
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | variables

        def ask(words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program], input=f"{words}\n", capture_output=True, env=environment, text=True,
                timeout=_PATIENCE, check=False,
            )  # fmt: skip

        daemon = subprocess.Popen(
            tied([program, "-f"]), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + _PATIENCE
            while ask("get_server_list").returncode:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    why = " ".join(log.read().split()) or "nothing was printed"
                    raise ConfigError(f"--mps: {CONTROL} did not start ({why}); leave --mps out")
                time.sleep(POLL_SECONDS)
            yield variables
            if not ask("get_server_list").stdout.strip():
                say(f"--mps: no cell found the service, all took turns; see {logs}")
        finally:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                ask("quit")
                daemon.wait(_PATIENCE)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
