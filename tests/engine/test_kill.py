"""kill -9 in the middle of an epoch: the same command continues, and the end is the same to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.launched import accelerate, await_step, finish, kill_all, script, start
from tests.tiny import final_tensors, train_tiny, words


def launch(stage: str, argv: list[str], processes: int) -> subprocess.Popen[str]:
    """A launch script on `processes` ranks."""
    several = accelerate("--multi_gpu", "--main_process_port", "0", "--num_processes", str(processes))
    return start([*(several if processes > 1 else [sys.executable]), *script(stage, argv)])


@pytest.mark.parametrize(("stage", "processes"), [("pretrain", 1), ("distill", 2)])
def test_a_killed_run_ends_as_if_nothing_had_happened(stage, processes, tmp_path, ranks):
    # 10 steps an epoch, a checkpoint every 4 steps, killed after step 14: inside the second epoch.
    more = "--max-steps 40 --checkpoint.every_steps 4 --eval.every_epochs 1 --threads 1".split()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ranks(processes).run(train_tiny, stage, words(stage, whole, *more))
    process = launch(stage, words(stage, killed, *more), processes)
    await_step(process, killed / stage / "tiny", step=14)
    kill_all(process)
    output = finish(launch(stage, words(stage, killed, *more), processes))
    assert "continuing at step" in output
    expected, found = final_tensors(stage, whole), final_tensors(stage, killed)
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    assert scalars(killed / stage / "tiny") == scalars(whole / stage / "tiny")


def scalars(folder: Path) -> list[dict[str, float]]:
    """The records of a run without what a clock gave."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "train/images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]
