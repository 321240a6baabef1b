"""Where a run goes on: back to a named checkpoint once, then forward; and after a launcher's restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import read_manifest
from tests.tiny import train_tiny, words

pytestmark = pytest.mark.slow  # whole runs

EVERY = ["--checkpoint.every_steps", "2", "--keep", "9"]


def steps(runs: Path) -> list[int]:
    """Of the checkpoints that are there."""
    return sorted(int(path.stem[5:]) for path in (runs / "distill/tiny/checkpoints").glob("step-*.json"))


def run(runs: Path, most: int, *more: str) -> None:
    train_tiny("distill", words("distill", runs, "--max-steps", str(most), *EVERY, *more))


def test_a_run_goes_back_once_and_the_same_command_goes_on(tmp_path, capsys):
    run(tmp_path, 8)
    back = ["--resume", str(tmp_path / "distill/tiny/checkpoints/step-000000004.safetensors")]
    run(tmp_path, 6, *back)
    assert steps(tmp_path) == [2, 4, 6]  # 8 is forgotten
    assert read_manifest(tmp_path / "distill/tiny")["rolled_back"] == "step-000000004.safetensors"
    capsys.readouterr()
    run(tmp_path, 10, *back)
    assert "continuing at step 6" in " ".join(capsys.readouterr().out.split())
    assert steps(tmp_path) == [2, 4, 6, 8, 10]


def test_a_model_selected_in_a_forgotten_future_goes_with_it(tmp_path):
    more = ["--validation", "0.25", "--eval.every_epochs", "1", "--batch-size", "90"]  # 4 steps an epoch
    run(tmp_path, 8, *more)
    selected = tmp_path / "distill/tiny/selected.safetensors"
    best = read_manifest(tmp_path / "distill/tiny")["selected_step"]
    assert best in (4, 8) and selected.exists()
    back = tmp_path / f"distill/tiny/checkpoints/step-{best - 2:09d}.safetensors"
    run(tmp_path, best - 1, *more, "--resume", str(back))
    assert selected.exists() == (best - 1 == read_manifest(tmp_path / "distill/tiny")["selected_step"])


def test_never_means_this_job_not_its_restarts(tmp_path, monkeypatch):
    run(tmp_path, 2, "--resume", "never")
    with pytest.raises(ConfigError, match="resume = never"):
        run(tmp_path, 4, "--resume", "never")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run(tmp_path, 4, "--resume", "never")
    assert read_manifest(tmp_path / "distill/tiny")["step"] == 4
