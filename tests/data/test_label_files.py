"""Labels from files: by path, by index, whole arrays; and written so that they come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmd_dist.data.dataset import Dataset
from rmd_dist.data.label_files import read_labels, write_labels
from rmd_dist.data.labels import make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.errors import ConfigError

from .images.folders import write_classes


@pytest.fixture
def digits(tmp_path: Path) -> Dataset:
    return open_dataset("digits", "train", root=tmp_path, loader="memory")


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    place = write_classes(tmp_path / "photos", {"cat": 20, "dog": 20})
    return open_dataset(str(place), "train", root=tmp_path / "data", loader="memory")


@pytest.mark.parametrize("name", ["labels.csv", "labels.npy"])
def test_what_was_written_is_read(tmp_path: Path, digits: Dataset, photos: Dataset, name: str) -> None:
    for data in (digits, photos):
        given = (data.labels + 1) % data.info.num_classes
        write_labels(tmp_path / name, given, data)
        np.testing.assert_array_equal(read_labels(tmp_path / name, data), given)


@pytest.mark.parametrize("name", ["labels.csv", "labels.npy"])
def test_images_that_are_left_out(tmp_path: Path, digits: Dataset, photos: Dataset, name: str) -> None:
    """They come back, and the manifest counts them alone; the rates and transitions are of the others."""
    for data in (digits, photos):
        given, count = (data.labels + 1) % data.info.num_classes, len(data)
        given[3:5] = -1
        given[:3] = data.labels[:3]
        write_labels(tmp_path / name, given, data)
        labels = make_labels(data, "file", 0, 0, file=tmp_path / name)
        np.testing.assert_array_equal(labels.given, given)
        assert np.flatnonzero(labels.left_out).tolist() == [3, 4]
        manifest = labels.manifest
        assert (manifest["left_out"], manifest["count"]) == (2, count)
        wanted = np.zeros_like(manifest["transitions"])
        for own, label in zip(data.labels, given, strict=True):
            if label >= 0:
                wanted[own, label] += 1
        np.testing.assert_array_equal(manifest["transitions"], wanted)
        if data is digits:
            assert labels.flipped is not None and np.flatnonzero(~labels.flipped).tolist() == [0, 1, 2, 3, 4]
            assert manifest["realised_rate"] == (count - 5) / (count - 2)


def test_an_empty_label_in_any_table_leaves_out(tmp_path: Path, digits: Dataset) -> None:
    wanted = digits.labels.copy()
    wanted[[2, 7]] = -1
    (tmp_path / "labels.csv").write_text("label;index\n;2\n ;7\n")
    (tmp_path / "labels.tsv").write_text("index\tlabel\n2\t\n7\t\n")
    (tmp_path / "labels.jsonl").write_text('{"index": 2, "label": ""}\n{"index": 7, "label": null}\n')
    for suffix in ("csv", "tsv", "jsonl"):
        np.testing.assert_array_equal(read_labels(tmp_path / f"labels.{suffix}", digits), wanted)


def test_without_any_left_out_the_manifest_does_not_speak_of_them(tmp_path: Path, digits: Dataset) -> None:
    labels = make_labels(digits, "symmetric", 0.4, 0)
    assert "left_out" not in labels.manifest and not labels.left_out.any()
    np.save(tmp_path / "labels.npy", np.full(len(digits), -1))
    none = make_labels(digits, "file", 0, 0, file=tmp_path / "labels.npy").manifest
    assert (none["left_out"], none["realised_rate"]) == (len(digits), None)


def test_a_file_may_name_some_images(tmp_path: Path, photos: Dataset) -> None:
    assert photos.files is not None
    path = photos.files.paths()[3].decode()
    other = photos.files.others()[0].decode()
    (tmp_path / "few.csv").write_text(f"path,label\n./{path},dog\n{other},dog\n")
    wanted = photos.labels.copy()
    wanted[3] = 1
    np.testing.assert_array_equal(read_labels(tmp_path / "few.csv", photos), wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "index,label\n0,10\n",
            "line 2: label '10' is no class of digits; its classes are 0, 1, 2, 3, 4, ...",
        ),
        ("index,label\n1437,1\n", "line 2: index '1437' is not in 0 to 1436"),
        ("index,label\n-1,1\n", "index '-1' is not in"),
        ("index,label\n3,1\n3,1\n", "line 3 names an image that came before"),
        ("label\n3\n", "line 2 does not say which image it is about; add a column index"),
        ("index,name\n3,1\n", "has no column of labels"),
        ("index,label\n", "names none of the 1437 training images"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, digits: Dataset, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_labels(tmp_path / "labels.csv", digits)


def test_numbers_of_classes_are_no_names_where_names_are_numbers(tmp_path: Path) -> None:
    place = write_classes(tmp_path / "numbers", {"1": 20, "2": 20})
    data = open_dataset(str(place), "train", root=tmp_path / "data", loader="memory")
    (tmp_path / "labels.csv").write_text("index,label\n0,2\n1,1\n")
    assert read_labels(tmp_path / "labels.csv", data)[:2].tolist() == [1, 0]
    (tmp_path / "labels.csv").write_text("index,label\n0,0\n")
    with pytest.raises(ConfigError, match="label '0' is no class of numbers; its classes are 1, 2"):
        read_labels(tmp_path / "labels.csv", data)


def test_paths_that_are_not_there(tmp_path: Path, photos: Dataset) -> None:
    (tmp_path / "labels.csv").write_text("path,label\nmouse/1.png,dog\n")
    with pytest.raises(ConfigError, match=r"line 2: mouse/1.png is no image that was prepared"):
        read_labels(tmp_path / "labels.csv", photos)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.int64), r"holds int64 \(5,\)"),
        (np.zeros(1437), r"holds float64"),
        (np.full(1437, 10), "labels outside 0 to 9"),
        (np.full(1437, -2), "labels outside 0 to 9, and -1 for images to leave out"),
    ],
)
def test_arrays_that_cannot_be(tmp_path: Path, digits: Dataset, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "labels.npy", array)
    with pytest.raises(ConfigError, match=message):
        read_labels(tmp_path / "labels.npy", digits)
    (tmp_path / "labels.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ConfigError, match="cannot be read as NPY"):
        read_labels(tmp_path / "labels.npy", digits)


def test_nobody_knows_the_true_labels_of_own_images(tmp_path: Path, digits: Dataset, photos: Dataset) -> None:
    """What is measured against the truth is left out, unless noise was made here."""
    for data in (digits, photos):
        write_labels(tmp_path / "labels.csv", (data.labels + 1) % data.info.num_classes, data)
    assert make_labels(photos, "none", 0, 0).clean is None
    given = make_labels(photos, "file", 0, 0, file=tmp_path / "labels.csv")
    assert given.clean is None and given.flipped is None and given.manifest["realised_rate"] is None
    made = make_labels(photos, "symmetric", 0.4, 0)
    assert made.clean is not None and 0.3 < made.manifest["realised_rate"] < 0.5
    np.save(tmp_path / "digits.npy", (digits.labels + 1) % 10)
    known = make_labels(digits, "file", 0, 0, file=tmp_path / "digits.npy")
    assert known.clean is not None and known.manifest["realised_rate"] == 1.0
