"""From files to betons: pixels, splits by content, what is skipped, interruptions, changes, shards."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from rmd_dist.data.dataset import Dataset, dataset_info, find_source
from rmd_dist.data.images import build as building
from rmd_dist.data.images import pool
from rmd_dist.data.images.build import held_out
from rmd_dist.data.images.index import read_index
from rmd_dist.data.images.source import ImageFiles
from rmd_dist.data.images.store import ShardWriter, Store, open_shards, shard_path
from rmd_dist.data.images.work import Done, StoreOptions
from rmd_dist.data.images.work import work as real_work
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.sources.beton import JPEG, RAW, check_beton
from rmd_dist.data.splits import hold_out
from rmd_dist.errors import ConfigError, Fault

from .folders import content, picture, write, write_classes

SPLITS = ("train", "test")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos", {"cat": 30, "dog": 30})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def prepared(place: Path, root: Path, **options: Any) -> dict[str, Dataset]:
    """Both splits of a folder, without ffcv."""
    store = {k: options.pop(k) for k in ("store_size", "raw_bytes", "background") if k in options}
    ImageFiles.at(place).prepare(root, StoreOptions(**store), look=True, **options)
    return {split: open_dataset(str(place), split, root=root, loader="memory") for split in SPLITS}


def report(root: Path, name: str = "photos") -> dict[str, Any]:
    return dict(json.loads((root / name / "report.json").read_text()))


def test_every_image_comes_back(photos: Path, root: Path) -> None:
    found = prepared(photos, root)
    rows = read_index(root / "photos" / "index.parquet").to_pylist()
    assert [row["path"].decode() for row in rows] == [
        f"{c}/{k:03d}.png" for c in ("cat", "dog") for k in range(30)
    ]
    counts = dict.fromkeys(SPLITS, 0)
    for row in rows:
        split = "test" if held_out(row["sha256"]) else "train"
        data, k = found[split], counts[split]
        counts[split] += 1
        assert data.store is not None
        with Image.open(photos / row["path"].decode()) as image:
            np.testing.assert_array_equal(data.store.load(k), np.asarray(image))
        assert data.info.classes[data.labels[k]] == row["path"].decode().split("/")[0]
    assert counts == {split: len(data) for split, data in found.items()}
    assert 0 < counts["test"] < 15  # one in ten, by the hash
    info = found["train"].info
    assert (info.train_count, info.test_count) == tuple(counts.values())
    pixels = (
        np.concatenate([found["train"].store.load(k).reshape(-1, 3) for k in range(counts["train"])]) / 255
    )  # type: ignore[union-attr]
    np.testing.assert_allclose(info.mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(info.std, pixels.std(0), atol=1e-4)


def test_large_images_are_made_smaller_and_become_jpegs(tmp_path: Path, root: Path) -> None:
    sizes = {"a": (64, 96), "b": (600, 400), "c": (20, 900), "d": (32, 32)}
    for k, (name, (height, width)) in enumerate(sizes.items()):
        write(tmp_path / "photos" / name / "1.png", k, height, width)
    found = prepared(tmp_path / "photos", root, store_size=64, raw_bytes=64 * 64 * 3)
    stored = {}
    for data in found.values():
        assert data.store is not None
        for k, record in enumerate(data.store.records()):
            name = data.info.classes[data.labels[k]]
            stored[name] = (int(record["mode"]), *data.store.load(k).shape[:2])
            near = Image.fromarray(picture("abcd".index(name), *sizes[name])).resize(stored[name][:0:-1])
            assert np.abs(data.store.load(k).astype(int) - np.asarray(near)).mean() < 4
    assert stored == {"a": (JPEG, 64, 96), "b": (JPEG, 96, 64), "c": (JPEG, 20, 900), "d": (RAW, 32, 32)}


def test_a_second_run_does_nothing(photos: Path, root: Path) -> None:
    prepared(photos, root)
    before = {
        path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name[0] != "."
    }
    ImageFiles.at(photos).prepare(root, look=True)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not [path for path in root.iterdir() if "partial" in path.name]


def test_a_prepared_set_is_found_by_its_name_and_without_its_files(photos: Path, root: Path) -> None:
    before = prepared(photos, root)
    shutil.rmtree(photos)
    after = open_dataset("photos", "train", root=root, loader="memory")
    assert after.sha256 == before["train"].sha256
    assert dataset_info("photos", root) == before["train"].info
    with pytest.raises(
        ConfigError, match=r"'photo' is unknown: it is none of cifar10, .*, no folder or table"
    ):
        find_source("photo", root)
    with pytest.raises(ConfigError, match=r"what was prepared of photos is there: give --dataset photos"):
        find_source(str(photos), root)


def test_what_changed_is_told_and_prepared_anew_on_demand(photos: Path, root: Path) -> None:
    first = prepared(photos, root)
    write(photos / "cat" / "new.png", 999)
    with pytest.raises(ConfigError, match=r"from other files, or they have changed since .*give --update"):
        ImageFiles.at(photos).prepare(root, look=True)
    again = prepared(photos, root, update=True)
    assert sum(map(len, again.values())) == sum(map(len, first.values())) + 1
    with pytest.raises(ConfigError, match="with other options"):
        ImageFiles.at(photos).prepare(root, StoreOptions(store_size=16), look=True)


def test_a_failed_update_leaves_what_was_there(photos: Path, root: Path) -> None:
    before = prepared(photos, root)["train"].sha256
    for k in range(9):
        (photos / "cat" / f"bad{k}.png").write_bytes(b"no image")
    for _ in range(6):  # the limit is not walked through, one file each time
        with pytest.raises(ConfigError, match="files cannot be used"):
            prepared(photos, root, update=True)
    assert open_dataset("photos", "train", root=root, loader="memory").sha256 == before


def test_what_fails_at_the_end_begins_anew(photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk when one beton has its name and the other has not."""
    from rmd_dist.data.images import finish

    real = finish.write_json

    def full(path: Path, value: Any) -> None:
        if path.name == "photos_train.json":
            raise OSError(28, "No space left on device")
        real(path, value)

    monkeypatch.setattr(finish, "write_json", full)
    with pytest.raises(ConfigError, match=r"photos cannot be prepared .*No space left.*make room"):
        prepared(photos, root)
    monkeypatch.undo()
    assert sum(map(len, prepared(photos, root).values())) == 60


def test_a_moved_folder_is_looked_at_and_then_known(photos: Path, root: Path) -> None:
    before = prepared(photos, root)["train"].sha256
    moved = photos.parent / "elsewhere" / "photos"
    moved.parent.mkdir()
    photos.rename(moved)
    with pytest.raises(ConfigError, match="if it has moved, run rmd prepare"):
        open_dataset(str(moved), "train", root=root, loader="memory")
    ImageFiles.at(moved).prepare(root, look=True)
    assert open_dataset(str(moved), "train", root=root, loader="memory").sha256 == before


def test_a_cause_that_has_passed_is_looked_at_again(
    photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(home: bytes, paths: list[bytes], options: StoreOptions) -> list[Done]:
        found = real_work(home, paths, options)
        return [Done("cannot be read: Input/output error"), *found[1:]] if b"cat/000.png" in paths else found

    monkeypatch.setattr(pool, "work", unreadable)
    assert sum(map(len, prepared(photos, root).values())) == 59
    monkeypatch.undo()
    assert sum(map(len, prepared(photos, root, update=True).values())) == 60


def test_a_part_of_the_test_images_has_every_class(photos: Path, root: Path) -> None:
    from rmd_dist.data.splits import choose

    test = np.repeat([0, 1], 50)  # class by class, as a folder is listed
    chosen = choose(10, 100, test_samples=20, groups=lambda: np.arange(10)).test
    assert len(chosen) == 20 and set(test[chosen]) == {0, 1}


def test_another_folder_of_the_same_name_is_not_taken_for_it(
    photos: Path, root: Path, tmp_path: Path
) -> None:
    prepared(photos, root)
    other = write_classes(tmp_path / "elsewhere" / "photos", {"cat": 2, "cow": 2})
    with pytest.raises(ConfigError, match=r"was prepared from .*photos, not from .*elsewhere"):
        open_dataset(str(other), "train", root=root, loader="memory")


def test_broken_files_are_listed(photos: Path, root: Path) -> None:
    (photos / "cat" / "empty.png").write_bytes(b"")
    (photos / "cat" / "cut.png").write_bytes(content(5)[:200])
    found = prepared(photos, root)
    assert sum(map(len, found.values())) == 60
    with (root / "photos" / "skipped.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == ["cat/cut.png", "cat/empty.png"]
    assert all(line["reason"] for line in lines)
    assert sum(report(root)["skipped"].values()) == 2


def test_too_many_broken_files_stop_it_unless_allowed(photos: Path, root: Path) -> None:
    for k in range(5):
        (photos / "cat" / f"bad{k}.png").write_bytes(b"no image")
    with pytest.raises(
        ConfigError, match=r"4 of the first .* files cannot be used, such as .*bad0.png, which .*5%"
    ):
        prepared(photos, root)
    assert not ImageFiles.at(photos).is_prepared(root)
    assert sum(map(len, prepared(photos, root, allow_broken=True).values())) == 60


def test_duplicates_stay_together(tmp_path: Path, root: Path) -> None:
    photos = tmp_path / "photos"
    for k in range(40):
        one = write(photos / "cat" / f"{k}.png", k)
        for copy in range(2):
            shutil.copy(one, one.with_name(f"{k} copy {copy}.png"))
    (photos / "dog").mkdir()
    shutil.copy(photos / "cat" / "7.png", photos / "dog" / "7.png")
    found = prepared(photos, root)
    contents = {
        split: {data.store.load(k).tobytes() for k in range(len(data))}
        for split, data in found.items()
        if data.store
    }
    assert not contents["train"] & contents["test"]
    assert report(root)["duplicates"] == {
        "groups": 40, "images": 121, "groups of unlike labels": 1, "groups in both splits": 0
    }  # fmt: skip
    with (root / "photos" / "duplicates.csv").open() as file:
        conflicts = [line["path"] for line in csv.DictReader(file) if line["conflict"]]
    assert sorted(conflicts) == ["cat/7 copy 0.png", "cat/7 copy 1.png", "cat/7.png", "dog/7.png"]
    assert found["train"].files is not None
    groups = found["train"].files.groups()
    training, validation = hold_out(np.arange(len(groups)), 0.25, groups)
    assert not set(groups[training]) & set(groups[validation])
    assert abs(len(validation) - 0.25 * len(groups)) <= 3


def test_the_same_image_in_both_given_splits_is_told(tmp_path: Path, root: Path) -> None:
    photos = tmp_path / "photos"
    write_classes(photos / "train", {"cat": 3})
    write(photos / "test" / "cat" / "again.png", 0, 12, 10)  # as train/cat/000.png
    found = prepared(photos, root)
    assert [len(found[split]) for split in SPLITS] == [3, 1]
    assert report(root)["duplicates"]["groups in both splits"] == 1


def test_a_small_folder_has_something_to_test_on(tmp_path: Path, root: Path) -> None:
    photos = tmp_path / "photos"
    chosen = [seed for seed in range(40) if not _held_out(seed)][:3]
    for k in chosen:
        write(photos / "cat" / f"{k}.png", k)
    found = prepared(photos, root)
    assert [len(found[split]) for split in SPLITS] == [2, 1]
    store = found["test"].store
    assert store is not None and store.load(0).shape == (20, 24, 3)
    assert report(root)["images"] == {"train": 2, "test": 1}
    with pytest.raises(ConfigError, match="1 different images can be used for training; at least 2"):
        prepared(write_classes(tmp_path / "one", {"cat": 1}), root)


def _held_out(seed: int) -> bool:
    import hashlib

    return held_out(hashlib.sha256(content(seed)).digest())


def test_a_class_with_one_image_is_told(photos: Path, root: Path) -> None:
    write(photos / "rare" / "1.png", next(seed for seed in range(500, 600) if not _held_out(seed)))
    prepared(photos, root)
    assert report(root)["classes with no or one training image"] == ["rare"]
    classes = json.loads((root / "photos" / "classes.json").read_text())
    assert classes["classes"] == ["cat", "dog", "rare"] and classes["images"]["rare"]["train"] == 1


def test_an_interrupted_preparation_goes_on(
    photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is read twice, and the end is that of an uninterrupted one, to the byte."""
    read: list[bytes] = []

    def interrupted(home: bytes, paths: list[bytes], options: StoreOptions) -> list[Done]:
        if len(read) >= 32 and not going_on:
            raise KeyboardInterrupt
        read.extend(paths)
        return real_work(home, paths, options)

    going_on: list[bool] = []
    monkeypatch.setattr(pool, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(photos, root)
    assert len(read) == 32 and (root / ".photos.partial").is_dir()
    going_on.append(True)
    prepared(photos, root)
    assert len(read) == len(set(read)) == 60
    monkeypatch.undo()
    prepared(photos, root.with_name("other"))
    for split in SPLITS:
        first, second = (shard_path(folder, "photos", split, 0) for folder in (root, root.with_name("other")))
        assert first.read_bytes() == second.read_bytes()


def test_what_was_begun_with_other_options_begins_anew(photos: Path, root: Path) -> None:
    (root / ".photos.partial").mkdir(parents=True)
    (root / ".photos.partial" / "begun.json").write_text("no json")
    (root / ".photos.partial" / "part-000000.parquet").write_bytes(b"no parquet")
    assert sum(map(len, prepared(photos, root).values())) == 60


def test_shards(photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(photos, root.with_name("whole"))["train"]
    monkeypatch.setattr(ShardWriter, "shard_images", 20)
    monkeypatch.setattr(building, "ShardWriter", lambda *a: ShardWriter(*a, shard_images=20))
    found = prepared(photos, root)["train"]
    assert found.store is not None and whole.store is not None
    names = [path.name for path in found.store.paths]
    assert names == ["photos_train.beton", "photos_train.1.beton", "photos_train.2.beton"]
    assert [len(check_beton(path)) for path in found.store.paths] == [20, 20, len(found) - 40]
    for k in range(len(found)):
        np.testing.assert_array_equal(found.store.load(k), whole.store.load(k))
    assert found.sha256 == whole.sha256
    found.store.paths[1].unlink()
    with pytest.raises(ConfigError, match=r"photos_train.1.beton does not exist"):
        open_dataset(str(photos), "train", root=root, loader="memory")


def test_damage_in_a_stored_jpeg_is_a_fault(tmp_path: Path, root: Path) -> None:
    photos = write_classes(tmp_path / "photos", {"cat": 12})
    prepared(photos, root, raw_bytes=0)
    header = open_shards(root, "photos", "train")[0]
    with header.path.open("r+b") as file:
        file.seek(int(header.pointers[0]))
        file.write(bytes(40))
    with pytest.raises(Fault, match="image 0 cannot be decoded"):
        Store([header]).load(0)
    with pytest.raises(ConfigError, match="does not have the SHA-256"):
        open_shards(root, "photos", "train")


def test_a_file_whose_decoder_ends_its_process_is_skipped(photos: Path, root: Path, tmp_path: Path) -> None:
    bad = [b"cat/000.png", b"dog/003.png"]
    chunks = [[f"{c}/{k:03d}.png".encode() for k in range(30)] for c in ("cat", "dog")]
    worker = tmp_path / "deadly.py"
    worker.write_text(
        "import os\nfrom rmd_dist.data.images.work import Done\n"
        f"def work(home, paths, options):\n    if set(paths) & {set(bad)!r}: os._exit(9)\n"
        "    return [Done('', path) for path in paths]\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import deadly; from pathlib import Path\n"
        "from rmd_dist.data.images import pool; from rmd_dist.data.images.work import StoreOptions\n"
        "if __name__ == '__main__':\n"
        "    pool.work, pool.CHUNK, pool.FEW = deadly.work, 30, 0\n"
        f"    found = list(pool.worked_on(Path('.'), {chunks[0] + chunks[1]!r}, StoreOptions(), 2))\n"
        "    print([k for k, done in enumerate(found) if done.reason], len(found), found[0].reason)\n"
    )
    (tmp_path / "main.py").write_text(code)
    found = subprocess.run(
        [sys.executable, str(tmp_path / "main.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
    )  # fmt: skip
    assert found.stdout == "[0, 33] 60 its decoder ended the process that read it\n", found.stderr


@pytest.mark.slow
def test_ctrl_c_and_sigkill_lose_nothing(tmp_path: Path, root: Path) -> None:
    """By the command and several processes; the folder is larger than what one process would be given."""
    photos = write_classes(tmp_path / "photos", {"cat": 700, "dog": 700})
    command = [sys.executable, "-m", "rmd_dist", "prepare", "--dataset", str(photos), "--out", str(root)]
    for end in (signal.SIGINT, signal.SIGKILL):  # the latter to the parent alone
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while not list(root.glob(".photos.partial/*.beton")) and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, end) if end == signal.SIGINT else process.kill()
        _, errors = process.communicate(timeout=60)
        assert not psutil.wait_procs(workers, timeout=30)[1], "workers outlive the command"
        if process.returncode == 0:
            break  # it was done already
        assert process.returncode == (130 if end == signal.SIGINT else -9), errors
        assert "Traceback" not in errors
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sum(len(open_dataset("photos", s, root=root, loader="memory")) for s in SPLITS) == 1400  # type: ignore[arg-type]
