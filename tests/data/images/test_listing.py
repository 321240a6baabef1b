"""What a folder or a table holds: layouts, links, hidden files, names in any bytes, tables of four kinds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rmd_dist.config.datasets import dataset_name
from rmd_dist.data.images.listing import (
    TEST,
    TRAIN,
    UNDECIDED,
    UNUSED,
    Listing,
    list_files,
    list_images,
    shown,
)
from rmd_dist.errors import ConfigError

from .folders import write, write_classes


def seen(listing: Listing) -> list[tuple[str, str | None, int]]:
    """(path, class, split) of each file."""
    names = {**dict(enumerate(listing.classes)), -1: None}
    rows = zip(listing.paths, listing.labels, listing.splits, strict=True)
    return [(os.fsdecode(path), names[label], split) for path, label, split in rows]


def test_folders_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "young" / "2.png", 0)
    write(tmp_path / "cat" / "1.JPG", 1)
    write(tmp_path / "Dog" / "1.png", 2)
    found = list_images(tmp_path)
    assert found.classes == ("Dog", "cat")  # by code point
    assert seen(found) == [
        ("Dog/1.png", "Dog", UNDECIDED), ("cat/1.JPG", "cat", UNDECIDED),
        ("cat/young/2.png", "cat", UNDECIDED),
    ]  # fmt: skip
    assert found.sizes[0] == (tmp_path / "Dog" / "1.png").stat().st_size


def test_the_folder_that_names_the_class_may_lie_deeper(tmp_path: Path) -> None:
    for path in ("animals/cat/1.png", "animals/dog/1.png", "things/cup/1.png", "things/1.png"):
        write(tmp_path / path, 0)
    found = list_images(tmp_path, class_level=2)
    assert found.classes == ("cat", "cup", "dog")
    assert found.counts == {"above the folders of classes": 1}
    with pytest.raises(
        ConfigError, match=r"class-level = 4, but no image lies in so many folders; the first, animals/"
    ):
        list_images(tmp_path, class_level=4)


@pytest.mark.parametrize(
    ("folders", "wanted", "count"),
    [
        (("train", "test"), {"train": TRAIN, "test": TEST}, 0),
        (("train", "val"), {"train": TRAIN, "val": TEST}, 0),
        (("Training", "validation"), {"Training": TRAIN, "validation": TEST}, 0),
        (("train", "valid", "test"), {"train": TRAIN, "valid": UNUSED, "test": TEST}, 1),
        (("train",), {"train": UNDECIDED}, 0),
    ],
)
def test_folders_of_splits(
    tmp_path: Path, folders: tuple[str, ...], wanted: dict[str, int], count: int
) -> None:
    for folder in folders:
        write(tmp_path / folder / "cat" / "1.png", 0)
    (tmp_path / "notes").mkdir()
    write(tmp_path / "notes" / "page.png", 1)
    found = list_images(tmp_path)
    assert {path.split("/")[0]: split for path, _, split in seen(found)} == wanted
    assert found.classes == ("cat",)
    assert found.counts["of a validation split, not used beside a test split"] == count
    assert found.counts["beside the folders of splits"] == 1


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 0)
    write(tmp_path / "a.png", 1)
    found = list_images(tmp_path)
    assert seen(found) == [("a.png", None, UNDECIDED), ("b.png", None, UNDECIDED)]
    assert found.classes == ()


def test_what_lies_beside_classes_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "1.png", 0)
    write(tmp_path / "cover.png", 1)
    write(tmp_path / ".thumbs" / "1.png", 2)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "cat" / "readme.TXT").write_text("a cat")
    (tmp_path / "cat" / "plain").write_text("a cat")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    found = list_images(tmp_path)
    assert [path for path, _, _ in seen(found)] == ["cat/1.png"]
    assert found.counts == {
        "hidden": 2, "other files: .txt": 1, "other files: no suffix": 1, "other files: .png": 1,
        "above the folders of classes": 1,
    }  # fmt: skip


def test_links_are_followed_once(tmp_path: Path) -> None:
    pool, root = tmp_path / "pool", tmp_path / "root"
    write(root / "cat" / "1.png", 0)
    outside = write(pool / "far.png", 1)
    hidden = write(root / ".store" / "kept.png", 2)
    (root / "dog").mkdir()
    (root / "dog" / "again.png").symlink_to(root / "cat" / "1.png")  # met anyway
    (root / "dog" / "far.png").symlink_to(outside)
    (root / "dog" / "far twice.png").symlink_to(outside)
    (root / "dog" / "kept.png").symlink_to(hidden)
    (root / "dog" / "dead.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "loop").symlink_to(root)
    (root / "more").symlink_to(pool)
    found = list_images(root)
    # Of several ways to one file the first counts; linked folders come after all others.
    assert [path for path, _, _ in seen(found)] == ["cat/1.png", "dog/far twice.png", "dog/kept.png"]
    assert found.counts["links to folders met before, loops among them"] == 1
    assert found.counts["dead links"] == 1
    assert found.counts["links to images listed anyway"] == 3


def test_links_into_a_pool_beside_the_classes(tmp_path: Path) -> None:
    """What they lead to is in the root, but is not itself listed."""
    for k in range(3):
        pooled = write(tmp_path / "pool" / f"{k}.png", k)
        split = tmp_path / ("train" if k else "test") / "cat"
        split.mkdir(parents=True, exist_ok=True)
        (split / f"{k}.png").symlink_to(pooled)
    assert [path for path, _, _ in seen(list_images(tmp_path))] == [
        "test/cat/0.png",
        "train/cat/1.png",
        "train/cat/2.png",
    ]
    loose = write(tmp_path / "other" / "loose.png", 9)
    (tmp_path / "other" / "dog").mkdir()
    (tmp_path / "other" / "dog" / "1.png").symlink_to(loose)
    (tmp_path / "other" / "a link").symlink_to(tmp_path / "other" / "dog")  # sorts before what it leads to
    assert [path for path, _, _ in seen(list_images(tmp_path / "other"))] == ["dog/1.png"]


def test_every_image_of_a_folder_is_one_to_predict(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("deep/er/in.png", "loose.png", "train/cat/1.png")]
    for k, path in enumerate(paths):
        write(path, k)
    (tmp_path / "metadata.csv").write_text("file_name,label\nloose.png,a\n")
    assert sorted(list_files(tmp_path)) == paths
    assert list_files(tmp_path / "metadata.csv") == [tmp_path / "loose.png"]


def test_each_line_of_json_has_keys_of_its_own(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.png", k)
    lines = [{"path": "0.png", "label": "a"}, {"path": "1.png", "label": "b", "split": "test"}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [(label, split) for _, label, split in seen(list_images(tmp_path / "l.jsonl"))] == [
        ("a", UNDECIDED), ("b", TEST)
    ]  # fmt: skip
    (tmp_path / "l.jsonl").write_text(json.dumps({"path": "a\0b", "label": "a"}))
    with pytest.raises(ConfigError, match=r"line 1: .* cannot be a path"):
        list_images(tmp_path / "l.jsonl")
    write(tmp_path / "my cat.png", 5)
    (tmp_path / "one.csv").write_text("path\nmy cat.png\n")
    assert [path for path, _, _ in seen(list_images(tmp_path / "one.csv"))] == ["my cat.png"]


def test_names_in_any_bytes(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    composed, decomposed = "caf\u00e9".encode(), "cafe\u0301".encode()
    for name in (composed, decomposed, b"\xff\xfe odd", b"new\nline"):
        folder = os.path.join(root, name)  # noqa: PTH118
        os.mkdir(folder)  # noqa: PTH102
        write(Path(os.fsdecode(os.path.join(folder, b"a b.png"))), 0)  # noqa: PTH118
    found = list_images(tmp_path)
    assert len(found) == len(found.classes) == 4  # two forms of one name are two names
    assert json.loads(json.dumps(found.classes)) == list(found.classes)
    assert shown(composed) == shown(decomposed) == "caf\u00e9"
    assert shown(b"\xff\xfe odd") == "\\xff\\xfe odd"
    assert shown(b"new\nline") == "new\\x0aline"


HEADERS = [("path", "label"), ("image_path", "Class"), ("file_name", "category")]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "semicolons"])
def test_tables(tmp_path: Path, kind: str, header: tuple[str, str]) -> None:
    rows = [("in/1.png", "007"), ("./in/2.png", "b, c"), (str(tmp_path / "in" / "3.png"), "007")]
    for path, _ in rows:
        write(tmp_path / path, len(path))
    table = write_table(tmp_path, kind, [header, *rows])
    found = list_images(table)
    assert found.classes == ("007", "b, c")
    assert [label for _, label, _ in seen(found)] == ["007", "b, c", "007"]
    assert seen(found)[1][0] == "in/2.png"


def write_table(folder: Path, kind: str, lines: list[tuple[str, ...]]) -> Path:
    """A table of a header and rows."""
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        header, *rows = lines
        columns = {name: [row[k] for row in rows] for k, name in enumerate(header)}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "list.parquet")
        return folder / "list.parquet"
    if kind == "jsonl":
        text = "\n".join(json.dumps(dict(zip(lines[0], row, strict=True))) for row in lines[1:]) + "\n\n"
        (folder / "list.jsonl").write_text(text)
        return folder / "list.jsonl"
    delimiter = {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind]
    quoted = [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in line) for line in lines]
    path = folder / f"list.{'tsv' if kind == 'tsv' else 'csv'}"
    path.write_text("\ufeff" + "\r\n".join(quoted) + "\r\n")
    return path


def test_tables_with_splits_and_without_headers(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k}.png", k)
    table = tmp_path / "list.csv"
    table.write_text("path,label,split\n0.png,a,train\n1.png,b,valid\n2.png,a,train\n0.png,a,train\n")
    found = list_images(table)
    assert [split for _, _, split in seen(found)] == [TRAIN, TEST, TRAIN]
    assert found.counts == {"lines that repeat others": 1}
    table.write_text("0.png  1.0     mono\n1.png  0.0     poly\n")  # blanks, no header
    assert seen(list_images(table)) == [("0.png", "1.0", UNDECIDED), ("1.png", "0.0", UNDECIDED)]


def test_imagefolder_with_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "1.png", 0)
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n1.png,cat\n")
    assert seen(list_images(tmp_path)) == [("test/1.png", "cat", TEST), ("train/1.png", "cat", TRAIN)]
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/1.png,dog\n")
    assert seen(list_images(tmp_path)) == [("train/1.png", "dog", UNDECIDED)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,a\n1.png,b\n", r"line 3: 1.png has the label 'b' here and 'a' before; give each"),
        (
            "path,label\nx.png,a\ny.png,b\n",
            r"names 2 files, none of which exists \(looked for .*x.png\); paths",
        ),
        (
            "name,label\n1.png,a\n",
            r"has no column of paths; it has 'name', 'label', and one must be called path",
        ),
        ("path,label,split\n1.png,a,tset\n", r"line 2: split 'tset' is unknown; use one of train"),
        ("path,label\n1.png,a\n2.png,\n", r"1 images have no label, such as 2.png; give all of them one"),
        ("path,label\n,a\n", r"line 2 has no path"),
        ("path,label\n", r"names no image"),
        ("", r"names no image"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "1.png", 0)
    write(tmp_path / "2.png", 1)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list_images(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"PAR1 no"), ("a.jsonl", b"[1]\n"), ("a.jsonl", b"{")]
)
def test_damaged_tables(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} cannot be read as"):
        list_images(tmp_path / name)


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.svg").write_text("<svg/>")
    with pytest.raises(
        ConfigError, match=r"holds no image \(1 other files: .svg\); expected are ROOT/class/IMAGE"
    ):
        list_images(tmp_path)
    with pytest.raises(ConfigError, match="does not exist; give a folder of images, or a table"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is no table; give a folder of images, or one of .csv"):
        list_images(tmp_path / "cat" / "1.svg")


def test_a_fingerprint_tells_listings_apart(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 1})
    before = list_images(tmp_path).fingerprint()
    assert list_images(tmp_path).fingerprint() == before
    os.utime(tmp_path / "a" / "000.png", ns=(1, 1))
    changed = list_images(tmp_path).fingerprint()
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({before, changed, list_images(tmp_path).fingerprint()}) == 3


def test_names_of_data_sets(tmp_path: Path) -> None:
    (tmp_path / "My Photos (2)").mkdir()
    (tmp_path / "My Photos (2)" / "labels.csv").write_text("")
    (tmp_path / "birds.csv").write_text("")
    assert dataset_name(str(tmp_path / "My Photos (2)")) == "my_photos_2"
    assert dataset_name(f"{tmp_path}/My Photos (2)/") == "my_photos_2"
    assert dataset_name(str(tmp_path / "My Photos (2)" / "labels.csv")) == "my_photos_2"
    assert dataset_name(str(tmp_path / "birds.csv")) == "birds"
    assert dataset_name("cifar10") == "cifar10"
    (tmp_path / "cifar10").mkdir()
    assert dataset_name(str(tmp_path / "cifar10")) == "cifar10_images"
    assert dataset_name("prepared") == "prepared"
