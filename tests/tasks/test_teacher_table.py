"""A teacher's table against the teacher itself, over stops and ranks, and what is refused."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from rmd_dist.config import CropFlipConfig
from rmd_dist.data.loader import build_loader
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.render.crops import Crops
from rmd_dist.errors import ConfigError
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks import DistillTask
from tests.tasks.test_tasks import batches, built, encoder_in
from tests.tiny import final_tensors, greatest_difference, on_ranks, train_tiny, update_difference, words

TABLE = ("--teacher-table", "true")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    return encoder_in(tmp_path_factory.mktemp("teacher") / "encoder")


def taught(runs: Path, teacher: Path, *more: str) -> list[str]:
    """Command line of a tiny run; tables are kept below `runs`."""
    where = ("--teacher", str(teacher), "--data-root", str(runs / "data"))
    return words("distill", runs, "--augment.padding", "1", *where, *more)


def tables(runs: Path) -> list[Path]:
    return sorted((runs / "data/teacher_tables").glob("*.npy"))


@pytest.mark.parametrize(
    ("padding", "flip_p", "count"), [(0, 0.0, 1), (2, 0.5, 50), (1, 1.0, 9), (0, 0.3, 2), (3, 0.0, 49)]
)
def test_numbered_crops_are_those_that_the_loader_draws(padding, flip_p, count, tmp_path):
    config = CropFlipConfig(padding=padding, flip_p=flip_p)
    dataset = open_dataset("digits", "train", root=tmp_path, loader="memory")
    crops, plain = Crops(config, dataset.info.image_size), torch.from_numpy(dataset.images)
    assert len(crops) == count
    seen: set[int] = set()
    with build_loader(dataset, augment=config, batch_size=200, seed=5) as loader:
        for epoch in range(3):
            for batch in loader.epoch(epoch):
                numbers = crops.drawn(5, epoch, batch.index.numpy())
                seen.update(numbers.tolist())
                for view, index, number in zip(batch.views[0], batch.index, numbers, strict=True):
                    assert torch.equal(crops.render(plain[index][None], int(number))[0], view)
    assert seen == set(range(count))


@pytest.mark.parametrize(("autocast", "near"), [(None, 1e-5), (torch.bfloat16, 2e-2)])
def test_rows_are_what_the_teacher_says(autocast, near, tmp_path, teacher):
    compute = Compute(autocast=autocast)
    words = taught(tmp_path, teacher, *TABLE, "--data.train_samples", "96")
    parts = built("distill", tmp_path, *words, teacher=teacher, compute=compute)
    (path,) = tables(tmp_path)
    assert np.load(path, mmap_mode="r").shape == (96, 18, 128)
    for batch in batches(parts, 2, epoch=1):
        task = parts.task
        with torch.inference_mode(), compute.autocasting():
            expected = task.teacher(task.preprocess(batch.views[0]))
        assert batch.taught is not None and batch.taught.dtype == expected.dtype
        torch.testing.assert_close(batch.taught, expected, rtol=near, atol=near / 10)


@pytest.mark.slow
def test_a_run_reads_the_table_and_ends_where_it_would_without(tmp_path, teacher, monkeypatch):
    few = ("--precision", "fp64", "--data.train_samples", "96", "--max-steps", "4")
    train_tiny("distill", taught(tmp_path / "without", teacher, *few))
    assert not tables(tmp_path / "without")
    train_tiny("distill", taught(tmp_path / "with", teacher, *few, *TABLE))
    (path,) = tables(tmp_path / "with")
    without, table = (final_tensors("distill", tmp_path / name) for name in ("without", "with"))
    assert greatest_difference(table, without) < 1e-10 and update_difference(table, without) < 1e-10
    # Another run of the same images and crops finds it, and no training step asks the teacher itself.
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(DistillTask, "_taught", lambda *_: pytest.fail("asked the teacher"))
    train_tiny("distill", taught(tmp_path / "with", teacher, *few, *TABLE, "--seed", "1", "--name", "second"))
    assert tables(tmp_path / "with") == [path] and path.stat().st_mtime_ns == written


def test_what_decides_features_decides_the_table(tmp_path, teacher):
    few = (*TABLE, "--data.train_samples", "96")
    for number, more in enumerate(((), ("--flip_p", "0"), ("--augment.padding", "0"), ("--seed", "4"))):
        built("distill", tmp_path, *taught(tmp_path, teacher, *few, *more), teacher=teacher)
        assert len(tables(tmp_path)) == min(number + 1, 3)  # the seed decides which crops, not what they are
    built(
        "distill", tmp_path, *taught(tmp_path, teacher, *few, "--data.train_samples", "48"), teacher=teacher
    )
    assert len(tables(tmp_path)) == 4


@pytest.mark.slow
def test_a_stopped_run_has_the_bits_of_a_whole_one(tmp_path, teacher):
    """Also where the table was lost in between."""
    for steps in ("6",), ("2", "6"):
        for number in steps:
            runs = tmp_path / f"{len(steps)}"
            for path in tables(runs):
                path.unlink()
            train_tiny("distill", taught(runs, teacher, *TABLE, "--max-steps", number))
    whole, parts = (final_tensors("distill", tmp_path / name) for name in ("1", "2"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def _trained(runs: Path, teacher: Path) -> dict[str, torch.Tensor]:
    more = (*TABLE, "--precision", "fp64", "--batch-size", "26", "--max-steps", "6")
    train_tiny("distill", taught(runs, teacher, *more))
    return final_tensors("distill", runs)


@pytest.mark.slow
def test_any_number_of_ranks_has_the_same(ranks, tmp_path, teacher):
    for first, alone in on_ranks(ranks, _trained, tmp_path, teacher):
        assert greatest_difference(first, alone) < 1e-10
    assert [len(tables(tmp_path / world)) for world in "123"] == [1, 1, 1]


def test_what_has_no_table_is_one_line(tmp_path, teacher):
    few = ("--max-steps", "1")
    with pytest.raises(ConfigError, match="teacher = random has no file"):
        train_tiny("distill", taught(tmp_path, Path("random"), *TABLE, *few))
    with pytest.raises(ConfigError, match="crops that are resized have no end"):
        train_tiny("distill", taught(tmp_path, teacher, *TABLE, *few, "--image-size", "24"))
    assert not tables(tmp_path)
    # Without a graph there is no teacher to ask.
    train_tiny("distill", taught(tmp_path, teacher, *TABLE, *few, "--K", "0"))
    assert not tables(tmp_path)


def test_a_full_disk_is_told_of_before_the_work(tmp_path, teacher, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"No space left on device\): it takes 4 MB; make room"):
        train_tiny("distill", taught(tmp_path, teacher, *TABLE, "--max-steps", "1"))
    assert not tables(tmp_path)


def test_a_table_that_is_cut_ends_the_run_by_a_word(tmp_path, teacher):
    parts = built("distill", tmp_path, *taught(tmp_path, teacher, *TABLE), teacher=teacher)
    (path,) = tables(tmp_path)
    with closing(parts.loader), pytest.raises(RuntimeError, match="was cut under the running job"):
        for number, _ in enumerate(parts.loader.epoch(0)):
            if number == 1:
                os.truncate(path, 1000)
