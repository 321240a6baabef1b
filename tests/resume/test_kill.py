"""kill -9 in the middle of an epoch: the same command continues, and the end is the same to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import final_tensors, words

ROOT = Path(__file__).parents[2]
LIMIT = 150.0  # seconds that any one process may take


def start(stage: str, argv: list[str], processes: int) -> subprocess.Popen[str]:
    """A launch script in a process group of its own, on `processes` ranks."""
    script = [str(ROOT / f"launch/{stage}.py"), *argv]
    command = [sys.executable, *script]
    if processes > 1:
        accelerate = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--main_process_port",
            "0",
        ]
        command = [*accelerate, "--num_processes", str(processes), *script]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    return output


def kill_after(process: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGKILL to all ranks as soon as `step` optimizer steps are recorded."""
    deadline = time.monotonic() + LIMIT
    while f'"step": {step},' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be killed"
        )
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()


@pytest.mark.parametrize(("stage", "processes"), [("pretrain", 1), ("distill", 2)])
def test_a_killed_run_ends_as_if_nothing_had_happened(stage, processes, tmp_path):
    # 10 steps an epoch, a checkpoint every 4 steps, killed after step 14: inside the second epoch.
    more = ["--max-steps", "40", "--checkpoint.every_steps", "4", "--eval.every_epochs", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(stage, words(stage, whole, *more), processes))
    metrics = killed / stage / "tiny" / "metrics.jsonl"
    kill_after(start(stage, words(stage, killed, *more), processes), metrics, step=14)
    output = finish(start(stage, words(stage, killed, *more), processes))
    assert "continuing at step" in output
    expected, found = final_tensors(stage, whole), final_tensors(stage, killed)
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    assert scalars(killed / stage / "tiny") == scalars(whole / stage / "tiny")


def scalars(folder: Path) -> list[dict[str, float]]:
    """The records of a run without what a clock gave."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "train/images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]
