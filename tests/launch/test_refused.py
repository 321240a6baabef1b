"""What cannot work is told before there is a run folder; files that have moved are found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd_dist.config.checks import validate
from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import read_manifest
from tests.tiny import train_tiny, words

SMALL = ["--model", "resnet18_cifar_w16_s2", "--max-steps", "2"]


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        ("distill", "--model convnext_atto", "cannot be trained on images of 16 pixels"),
        ("pretrain", "--model convnext_atto", "cannot be trained on images of 16 pixels"),
        ("distill", "--model resnetv2_50 --K 0", "its classifier is a Conv2d"),
        ("distill", "--batch-size 1", "batch norm needs at least 2 images"),
        ("distill", "--batch-size 4 --accumulation 4", "batch norm needs at least 2 images"),
        ("pretrain", "--batch-size 4 --accumulation 4", "batch norm needs at least 2 images"),
        ("distill", "--K 0 --teacher NOTHERE", "teacher = NOTHERE does not exist"),
        ("distill", "--validation 0.0001", r"of 480 samples holds out 0"),
    ],
)
def test_refused_before_there_is_a_folder(stage, more, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        train_tiny(stage, words(stage, tmp_path / "runs", *SMALL, *more.split()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_trying_a_model_out_leaves_no_trace(tmp_path, monkeypatch):
    """Weights, buffers and random numbers are those of a run without."""
    from rmd_dist.tasks import Task
    from tests.tiny import final_tensors

    train_tiny("pretrain", words("pretrain", tmp_path / "tried", *SMALL))
    monkeypatch.setattr(Task, "try_out", lambda *_: None)
    train_tiny("pretrain", words("pretrain", tmp_path / "not", *SMALL))
    tried, untried = (final_tensors("pretrain", tmp_path / name) for name in ("tried", "not"))
    assert tried.keys() == untried.keys() and all(tried[k].equal(untried[k]) for k in tried)


@pytest.mark.slow
def test_runs_that_move_together_go_on(tmp_path):
    """By the same command in the new place, or with the teacher's new place given."""
    before, after = tmp_path / "before", tmp_path / "after"
    train_tiny("pretrain", words("pretrain", before, *SMALL))

    def distill(root: Path, steps: str, *teacher: str) -> None:
        given = words("distill", root, *SMALL, "--max-steps", steps)
        place = given.index("--teacher")
        given[place : place + 2] = teacher
        train_tiny("distill", given)

    distill(before, "2", "--teacher", str(before / "pretrain/tiny"))
    before.rename(after)
    distill(after, "3")
    distill(after, "4", "--teacher", str(after / "pretrain/tiny"))
    manifest = read_manifest(after / "distill" / "tiny")
    assert (manifest["step"], manifest["allowed"]) == (4, [])
    assert manifest["teacher"] == str(after / "pretrain" / "tiny" / "model.safetensors")


def test_paths_of_a_study_are_written_out(tmp_path, monkeypatch):
    from rmd_dist.config import DistillConfig

    monkeypatch.setenv("HOME", str(tmp_path))
    config = DistillConfig(teacher="~/encoder.safetensors")
    assert validate(config).teacher == str(tmp_path / "encoder.safetensors")
