"""Asked to stop by a signal: real runs, one and two ranks, in training and in the midst of an evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from rmd_dist.engine.checkpoint import newest
from rmd_dist.engine.preemption import Preemption
from rmd_dist.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped
from rmd_dist.runs.folder import read_manifest
from tests.engine.test_kill import launch, scalars
from tests.launched import LIMIT, accelerate, await_step, finish, recorded, script, start
from tests.tiny import final_tensors, train_tiny, words

pytestmark = pytest.mark.slow

SOON = 15.0  # seconds a stop may take on a loaded machine; launchers grant 30


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)


def end(process: subprocess.Popen[str]) -> str:
    """The output of a process that has been asked to stop."""
    try:
        return process.communicate(timeout=SOON)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def test_a_stopped_run_has_saved_and_ends_as_if_never_stopped(tmp_path, ranks):
    """Ctrl-C in a terminal: the launcher and both ranks get it, and the launcher passes it on again."""
    more = ["--max-steps", "24", "--eval.every_epochs", "1", "--threads", "1"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    folder = stopped / "distill" / "tiny"
    process = launch("distill", words("distill", stopped, *more), 2)
    await_step(process, folder, 13)
    os.killpg(process.pid, signal.SIGINT)
    output = end(process)
    # accelerate launch knows 0 and 1 alone: the manifest and the last line tell.
    assert process.returncode == 1, output
    assert output.count("stopped: ") == 1 and "the same command continues" in output
    found = newest(folder / "checkpoints", warn=pytest.fail)
    assert found is not None and 13 <= found.step < 24
    told = read_manifest(folder)
    assert (told["status"], told["step"], told["why"]) == ("stopped", found.step, "SIGINT")
    assert len(list((folder / "checkpoints").iterdir())) == 2  # ONE checkpoint
    assert not list(folder.rglob("*.tmp"))

    finish(launch("distill", words("distill", stopped, *more), 2))
    ranks(2).run(train_tiny, "distill", words("distill", whole, *more))
    assert (read_manifest(folder)["status"], read_manifest(folder)["why"]) == ("finished", None)
    expected, tensors = final_tensors("distill", whole), final_tensors("distill", stopped)
    assert [k for k in expected if not torch.equal(expected[k], tensors[k])] == []
    assert scalars(folder) == scalars(whole / "distill" / "tiny")


def test_a_stop_does_not_wait_for_the_end_of_an_evaluation(tmp_path, nursery):
    """Evaluations of one image a batch after every epoch; only one rank, with the shorter share, is asked."""
    more = "--max-steps 20 --eval.every_epochs 1 --eval.batch_size 1 --data.test_samples 797".split()
    folder = tmp_path / "distill" / "tiny"
    argv = words("distill", tmp_path, *more)
    job = nursery.start("distill", argv, ranks=2, output=tmp_path / "output")
    deadline = time.monotonic() + LIMIT
    while not recorded(folder, 10):
        assert job.running and time.monotonic() < deadline, job.text()
        time.sleep(0.005)
    job.signal(1, signal.SIGTERM)
    assert job.wait(SOON) and job.codes() == [EXIT_STOPPED] * 2, job.text()
    found = newest(folder / "checkpoints", warn=pytest.fail)
    assert found is not None and found.step == 10, job.text()
    assert "test/accuracy" not in (folder / "metrics.jsonl").read_text()
    job = nursery.start("distill", argv, ranks=2, output=tmp_path / "output")
    assert job.wait(LIMIT) and job.codes() == [0, 0], job.text()
    measured = [r["step"] for r in scalars(folder) if "test/accuracy" in r]
    assert measured == [10, 20]  # that of step 10 was made after all, once


def test_a_signal_before_training_leaves_nothing(tmp_path):
    process = launch("pretrain", words("pretrain", tmp_path, "--max-steps", "3"), 1)
    folder = tmp_path / "pretrain" / "tiny"
    wait_for(process, folder.exists)
    process.send_signal(signal.SIGTERM)
    output = end(process)
    assert process.returncode == EXIT_STOPPED, output
    assert "stopped: SIGTERM before training began" in output and "Traceback" not in output
    assert not folder.exists()


def test_a_signal_while_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rmd_dist.runs.folder.remove_debris", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM before training began"):
        train_tiny("pretrain", words("pretrain", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_run_stops_when_its_launcher_is_gone(tmp_path):
    """accelerate with one process passes no signal on; its run must not go on unseen."""
    argv = words("distill", tmp_path, "--epochs", "400")
    process = start([*accelerate("--cpu", "--num_processes", "1"), *script("distill", argv)])
    folder = tmp_path / "distill" / "tiny"
    try:
        await_step(process, folder, 3)
        process.send_signal(signal.SIGTERM)
        output = end(process)  # at the end of the run, which holds the same pipe
        assert "stopped: SIGTERM at step" in output, output
        assert read_manifest(folder)["status"] == "stopped"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


TWICE = """
import os, signal, sys, time
from rmd_dist.engine import preemption
with preemption.Preemption() as asked:
    asked.defer()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, passed on by the launcher
    print("still here", asked.requested, flush=True)
    time.sleep(preemption.SAME_CTRL_C_SECONDS + 0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("and here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
    print("not here")
"""


def test_a_second_ctrl_c_ends_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_INTERRUPTED, done.stderr
    assert done.stdout.splitlines() == ["still here SIGINT", "and here"]
    assert done.stderr == "interrupted twice: ended at once, without a checkpoint\n"


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Preemption() as asked:
        with pytest.raises(Stopped, match="SIGTERM before training"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
