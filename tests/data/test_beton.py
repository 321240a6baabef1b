"""Betons: written as ffcv writes them, checked before anybody maps them, never half there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmd_dist.data.dataset import Samples, dataset_info
from rmd_dist.data.sources import beton
from rmd_dist.data.sources.beton import beton_path, check_beton, read_images, read_manifest, write_beton
from rmd_dist.errors import ConfigError

INFO = dataset_info("cifar10")
REPOSITORY = Path(__file__).parents[2]


def samples(count: int = 1500, side: int = 32) -> Samples:
    """More than two pages of 2 MiB."""
    random = np.random.default_rng(0)
    images = random.integers(256, size=(count, side, side, 3), dtype=np.uint8)
    return Samples(images, random.integers(10, size=count), "a test", "0" * 64)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(samples(), INFO, "train", tmp_path_factory.mktemp("beton"))


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    for path in (written, written.with_suffix(".json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / written.name


def test_what_was_written_is_read(written: Path) -> None:
    header = check_beton(written)
    np.testing.assert_array_equal(header.labels, samples().labels)
    np.testing.assert_array_equal(read_images(header), samples().images)
    assert header.image_size == 32
    assert header.labels.dtype == header.pointers.dtype == np.int64


def test_manifest(written: Path) -> None:
    manifest = read_manifest(written)
    content = written.read_bytes()
    assert manifest["beton_bytes"] == len(content)
    assert manifest["beton_sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["count"] == 1500
    assert manifest["classes"] == list(INFO.classes)
    assert manifest["source"] == "a test"
    assert manifest["samples_sha256"] == samples().sha256()


@pytest.mark.parametrize("count", [1, 682, 683, 1500])  # 682 images fill a page
def test_bytes_are_those_of_ffcv(tmp_path: Path, count: int) -> None:
    pytest.importorskip("ffcv")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    data = samples(count)

    class Indexed:
        def __len__(self) -> int:
            return count

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            return data.images[i], int(data.labels[i]), int(i)

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}
    theirs = tmp_path / "theirs.beton"
    DatasetWriter(str(theirs), fields, page_size=beton.PAGE_SIZE, num_workers=1).from_indexed_dataset(
        Indexed()
    )
    ours = write_beton(data, INFO, "train", tmp_path)
    assert ours.read_bytes() == theirs.read_bytes()


def test_ffcv_reads_it(written: Path) -> None:
    pytest.importorskip("ffcv")
    from ffcv.reader import Reader

    reader = Reader(str(written))
    assert reader.field_names == ["image", "label", "index"]
    header = check_beton(written)
    np.testing.assert_array_equal(reader.metadata["f0"]["data_ptr"], header.pointers)
    np.testing.assert_array_equal(reader.metadata["f1"], header.labels)


def test_progress_ends_at_the_count(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write_beton(samples(), INFO, "train", tmp_path, lambda *call: calls.append(call))
    name = "cifar10_train.beton"
    assert calls == [(name, 682, 1500), (name, 1364, 1500), (name, 1500, 1500)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "cifar10_train.json"]


def test_an_existing_beton_is_not_overwritten(copy: Path) -> None:
    before = copy.read_bytes()
    with pytest.raises(ConfigError, match="exists and is not overwritten; delete it"):
        write_beton(samples(10), INFO, "train", copy.parent)
    assert copy.read_bytes() == before


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(what: str, done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_beton(samples(), INFO, "train", tmp_path, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_beton(tmp_path: Path) -> None:
    """kill -9 in the middle; the next build succeeds over what is left."""
    code = (
        "import os, signal; from pathlib import Path; from tests.data.test_beton import *\n"
        "die = lambda *call: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_beton(samples(), INFO, 'train', Path({str(tmp_path)!r}), die)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    check_beton(write_beton(samples(), INFO, "train", tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cifar10_train.beton cannot be written.*No space left"):
        write_beton(samples(), INFO, "train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_of_an_odd_shape_are_refused(tmp_path: Path) -> None:
    wide = Samples(np.zeros((2, 8, 16, 3), np.uint8), np.zeros(2, np.int64))
    huge = Samples(np.zeros((1, 900, 900, 3), np.uint8), np.zeros(1, np.int64))
    for odd in (wide, huge):
        with pytest.raises(ConfigError, match="square and fit"):
            write_beton(odd, INFO, "train", tmp_path)


def spoil(path: Path, change: Any, *, amend: bool) -> None:
    """Change a beton's bytes; `amend` makes the manifest agree, so that only the structure gives it away."""
    content = bytearray(path.read_bytes())
    content = change(content) or content
    path.write_bytes(content)
    if amend:
        manifest = json.loads(path.with_suffix(".json").read_text())
        manifest |= {"beton_bytes": len(content), "beton_sha256": hashlib.sha256(content).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(manifest))


def put(place: int, *values: int) -> Any:
    def change(content: bytearray) -> None:
        content[place : place + len(values)] = bytes(values)

    return change


METADATA, ALLOCATIONS = 24 + 3 * 1041, 24 * 1500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-ALLOCATIONS], "cut short or was never finished"),  # no allocation table: a segfault
        (lambda b: b[:-24], "cut short or was never finished"),  # a cut one: wrong images
        (lambda b: b[:100], "shorter than a header"),
        (lambda b: b[:4000], "cut short"),
        (lambda b: b + bytes(24), "cut short or was never finished"),
        (put(16, *bytes(8)), "never finished"),  # a null table pointer: a hang or terabytes
        (put(0, 1), "no beton of version 2"),
        (put(2, 4), "no beton of version 2"),
        (put(4, 1), "no beton of version 2"),
        (put(8, 0, 0), "has 0 samples"),
        (put(8, 255, 255, 255, 255, 255, 255, 255, 255), "samples, 1500 in its manifest"),
        (put(24 + 1, ord("x")), "with image, label and index"),
        (put(METADATA, 0), "compressed images"),
        (put(METADATA + 1, 31), "images of another size"),
        (put(METADATA + 3, 31), "images of another size"),
        (put(METADATA + 5, *b"\xff" * 8), "images outside the data"),
        (put(METADATA + 5, *bytes(8)), "images outside the data"),
        (put(METADATA + 5, 7), "a wrong allocation table"),
        (put(METADATA + 16, 10), "labels out of range"),
        (put(METADATA + 16, *b"\xff" * 8), "labels out of range"),
        (put(METADATA + 24, 1), "indices out of order"),
        (put(-24, 0), "a wrong allocation table"),
        (put(-16, 1), "a wrong allocation table"),
        (put(-8, 1), "a wrong allocation table"),
    ],
)
def test_damage_is_found(copy: Path, change: Any, message: str) -> None:
    check_beton(copy)
    spoil(copy, change, amend=True)
    with pytest.raises(ConfigError, match=message) as caught:
        check_beton(copy)
    assert "delete it and run rmd prepare" in str(caught.value)
    assert str(copy) in str(caught.value)


def test_an_overwritten_page_is_found(copy: Path) -> None:
    check_beton(copy)
    spoil(copy, put(3 << 20, 1, 2, 3), amend=False)
    with pytest.raises(ConfigError, match="does not have the SHA-256 of its manifest; delete it"):
        check_beton(copy)


def test_truncation_is_found_before_the_file_is_read(copy: Path) -> None:
    spoil(copy, lambda b: b[: len(b) // 2], amend=False)
    with pytest.raises(ConfigError, match=r"bytes, \d+ in its manifest"):
        check_beton(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no manifest cifar10_train.json"),
        (b"", "damaged manifest"),
        (b"{", "damaged manifest"),
        (b"\xff", "damaged manifest"),
        (b"[]", "damaged manifest"),
        (b"{}", "damaged manifest"),
        (b'{"format": 2}', "format 2, this version reads 1"),
        (b'{"format": 1, "count": "many"}', "damaged manifest"),
    ],
)
def test_a_manifest_must_be_whole(copy: Path, content: bytes | None, message: str) -> None:
    beside = copy.with_suffix(".json")
    beside.unlink() if content is None else beside.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{message}.*delete it and run rmd prepare"):
        check_beton(copy)


def test_a_manifest_of_other_types(copy: Path) -> None:
    manifest = json.loads(copy.with_suffix(".json").read_text())
    for key, wrong in (("count", "1500"), ("classes", 10), ("beton_sha256", None), ("image_size", 32.0)):
        copy.with_suffix(".json").write_text(json.dumps(manifest | {key: wrong}))
        with pytest.raises(ConfigError, match=f"bad {key}"):
            check_beton(copy)


def test_a_missing_beton(tmp_path: Path, copy: Path) -> None:
    copy.unlink()
    with pytest.raises(ConfigError, match=r"does not exist; rmd prepare writes it"):
        check_beton(copy)


def test_the_sum_is_computed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_beton(copy)
    count = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: count.append(1) or digest(*a))
    check_beton(copy)
    assert not count
    os.utime(copy, (1, 1))
    check_beton(copy)
    assert len(count) == 1


def test_beton_path() -> None:
    assert beton_path(Path("data"), "digits", "test") == Path("data/digits_test.beton")
