"""Faults under a real run of one rank: one line that names them, the checkpoints before them intact."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rmd_dist.data.render.augment import Augmenter
from rmd_dist.engine.checkpoint import newest
from rmd_dist.engine.trainer import Trainer
from rmd_dist.errors import Fault, Stopped
from rmd_dist.tasks import DistillTask
from tests.engine.test_checkpoint import files_up_to
from tests.tiny import train_tiny, words

pytestmark = pytest.mark.slow  # whole runs

EVERY = ["--checkpoint.every_steps", "2"]


def folder(runs: Path) -> Path:
    return runs / "distill" / "tiny"


def at_render(monkeypatch: pytest.MonkeyPatch, call: int, action: Callable[[], None]) -> None:
    """Do `action` in the loader's thread, before its batch number `call`."""
    render, calls = Augmenter.render, [0]

    def acting(self, *args):
        calls[0] += 1
        if calls[0] == call:
            action()
        return render(self, *args)

    monkeypatch.setattr(Augmenter, "render", acting)


def assert_sound(runs: Path, least: int) -> None:
    """An intact checkpoint, nothing half-written, no thread left, and the same command goes on to the end."""
    found = newest(folder(runs) / "checkpoints", warn=pytest.fail)
    assert found is not None and found.step >= least
    assert not list(runs.rglob("*.tmp"))
    assert not [t.name for t in threading.enumerate() if t.name in ("rmd-loader", "rmd-saver")]


def test_a_full_disk_at_a_checkpoint(tmp_path):
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "2"))
    with files_up_to(100_000), pytest.raises(Fault) as caught:
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "400", *EVERY))
    message = str(caught.value)
    for part in (
        "cannot write",
        "checkpoints: File too large; raise the limit",
        "step-000000002.safetensors",
    ):
        assert part in message
    assert "\n" not in message and json.loads((folder(tmp_path) / "manifest.json").read_text())["step"] < 12
    assert_sound(tmp_path, 2)
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "6", *EVERY))


def test_a_full_disk_at_the_records(tmp_path):
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "30"))
    size = (folder(tmp_path) / "metrics.jsonl").stat().st_size
    with files_up_to(size + 500), pytest.raises(Fault, match=r"cannot write .*(metrics|events).*: File too"):
        train_tiny(
            "distill", words("distill", tmp_path, "--max-steps", "40", "--checkpoint.every_steps", "0")
        )
    assert_sound(tmp_path, 30)
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "40"))
    lines = (folder(tmp_path) / "metrics.jsonl").read_text().splitlines()
    steps = [r["step"] for r in map(json.loads, lines) if "train/loss" in r]
    assert steps == list(range(1, 41))


def test_a_loader_thread_that_raises(tmp_path, monkeypatch):
    def fail() -> None:
        raise KeyError("an image")

    at_render(monkeypatch, 7, fail)
    began = time.monotonic()
    with pytest.raises(KeyError, match="an image"):
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "9", *EVERY))
    assert time.monotonic() - began < 60
    told = json.loads((folder(tmp_path) / "manifest.json").read_text())
    assert (told["status"], told["why"]) == ("failed", "KeyError: 'an image'")
    assert_sound(tmp_path, 4)


def test_out_of_memory_is_named(tmp_path, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(DistillTask, "step", fail)
    with pytest.raises(Fault, match=r"out of memory \(CUDA .*--batch-size.*no checkpoint had been saved"):
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "3"))


def test_a_signal_while_training_begins_is_a_stop_like_any_other(tmp_path, monkeypatch):
    """Between the last collective of the start and the first step: ranks must leave it together."""
    monkeypatch.setattr(Trainer, "_evaluation_owed", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"SIGTERM at step 1 of 9, saved"):
        train_tiny("distill", words("distill", tmp_path, "--max-steps", "9"))
    assert_sound(tmp_path, 1)


@pytest.fixture
def betons(tmp_path) -> list[str]:
    """Words of a run on ffcv's loader, whose betons are in tmp_path/data."""
    pytest.importorskip("ffcv")
    argv = words("distill", tmp_path, "--max-steps", "9", "--data.root", str(tmp_path / "data"), *EVERY)
    return ["ffcv" if word == "memory" else word for word in argv]


@pytest.mark.parametrize("how", ["cut", "written to"])
def test_a_beton_changed_under_the_run_is_named(how, betons, tmp_path, monkeypatch):
    beton = tmp_path / "data" / "digits_train.beton"

    def change() -> None:
        if how == "cut":
            os.truncate(beton, beton.stat().st_size // 2)
        else:
            with beton.open("r+b") as file:
                file.seek(3_000_000)
                file.write(b"other pixels")
            os.utime(beton, ns=(1, 1))

    check, calls = __import__("rmd_dist.data.sources.ffcv", fromlist=["Watch"]).Watch, [0]
    look = check.check

    def changing(self):
        calls[0] += 1
        if calls[0] == 7:
            change()
        look(self)

    monkeypatch.setattr(check, "check", changing)
    with pytest.raises(
        Fault, match=rf"digits_train\.beton was {how} under.*newest intact checkpoint: .*step-"
    ):
        train_tiny("distill", betons)
    assert_sound(tmp_path, 2)


def test_a_removed_beton_lives_on_until_it_is_opened_again(betons, tmp_path, monkeypatch):
    """The mapping holds on to the file: training goes on to step 9, whose evaluation does not find it."""
    at_render(monkeypatch, 5, (tmp_path / "data" / "digits_train.beton").unlink)
    with pytest.raises(Fault, match=r"digits_train\.beton does not exist.*step-000000008\.safetensors"):
        train_tiny("distill", betons)
    assert '"step": 9, ' in (folder(tmp_path) / "metrics.jsonl").read_text()
    assert_sound(tmp_path, 8)
    assert train_tiny("distill", betons)  # which writes the beton again
