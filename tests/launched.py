"""Launch scripts in processes of their own: started by accelerate or not, watched, killed, waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
LIMIT = 150.0  # seconds that any one process may take


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def script(stage: str, argv: Sequence[str]) -> list[str]:
    """A launch script and its arguments, as `python` and `accelerate launch` take them."""
    return [str(ROOT / f"launch/{stage}.py"), *argv]


def accelerate(*words: str) -> list[str]:
    """`accelerate launch` with `words`."""
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def start(command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, on CPUs and loopback, stderr among its output."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment | variables, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process; past LIMIT its whole group is killed."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()  # ranks have sessions of their own
        output, _ = process.communicate()
        raise AssertionError(f"killed after {LIMIT} s:\n{output}") from None
    return process.returncode, output


def finish(process: subprocess.Popen[str]) -> str:
    """Output of a process that must succeed."""
    code, output = end(process)
    assert code == 0, output
    return output


def recorded(run: Path, step: int) -> bool:
    """Whether the run in folder `run` has recorded `step` optimizer steps."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def await_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Return as soon as the run in folder `run` has recorded `step` optimizer steps."""
    deadline = time.monotonic() + LIMIT
    while not recorded(run, step):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"step {step} was never reached:\n{end(process)[1]}")
        time.sleep(0.005)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and its ranks."""
    ranks = psutil.Process(process.pid).children(recursive=True)
    for member in [*ranks, process]:
        member.kill()
    process.wait(timeout=30)
    assert process.stdout
    process.stdout.close()


def kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    """SIGKILL to one rank below a launcher."""
    (found,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == str(rank)
    )
    found.kill()
