"""Files are whole or absent, readable as the umask says, and read within limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rmd_dist.errors import ConfigError
from rmd_dist.files import (
    atomic_path,
    check_output,
    expanded,
    read_json,
    remove_debris,
    sha256,
    write_json,
)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_block_replaces_the_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old" and temporary.parent == tmp_path
    assert listing(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [{}, {"a": b"old"}], ids=["no file", "an old file"])
def test_an_exception_leaves_what_was_there(error, old, tmp_path):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert listing(tmp_path) == old


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_modes_follow_the_umask(umask, tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_bytes(b"x")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_debris_is_removed_by_the_name_of_its_file(tmp_path):
    for name in (".a.beton.12.tmp", ".a.json.12.tmp", ".b.json.12.tmp", "a.beton", ".lock"):
        (tmp_path / name).write_bytes(b"")
    remove_debris(tmp_path, "a")
    assert sorted(listing(tmp_path)) == [".b.json.12.tmp", ".lock", "a.beton"]
    remove_debris(tmp_path)
    assert sorted(listing(tmp_path)) == [".lock", "a.beton"]


def test_json_that_is_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json", missing_ok=True) == {"x": 1}
    for path in (tmp_path / "b.json", tmp_path / "a.json" / "c"):
        assert read_json(path, missing_ok=True) == {}
        with pytest.raises(OSError):
            read_json(path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="list instead of an object"):
        read_json(tmp_path / "a.json", missing_ok=True)


def test_json_has_no_nan(tmp_path):
    value = {"a": [float("nan"), 1.5, (float("inf"), np.float64("-inf"))], "b": {"c": 2, "d": None, "e": "x"}}
    write_json(tmp_path / "a.json", value)

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, 1.5, [None, None]], "b": {"c": 2, "d": None, "e": "x"}}


def test_nobody_else_writes_json():
    """All that goes to a file passes through `to_json`; what stays is no file, or has no floats."""
    root = Path(__file__).parents[1]
    allowed = {
        "files.py",
        "weights.py",
        "folder.py",
        "cells.py",
        "graph.py",
        "loader.py",
        "gpu.py",
    }
    found = [
        path.name
        for folder in ("rmd_dist", "launch", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if re.search(r"json\.dumps?\(", path.read_text())
    ]
    assert set(found) <= allowed


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    check_output(tmp_path / "new" / "folder" / "a.json")
    assert listing(tmp_path / "new" / "folder") == {}
    (tmp_path / "file").write_text("old")
    check_output(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    for path, said in {
        tmp_path / "new": "is a folder; give the name of a file",
        tmp_path / "fifo": "is no regular file",
        tmp_path / "file" / "a.json": "cannot write to",
        Path("/proc/a.json"): "cannot write to",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            check_output(path)
        assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_here_can_run_code():
    """No pickle and no torch.load in the package: tensors are safetensors, the rest is JSON.

    data/sources/archive.py is left out: CIFAR's archives are pickles, and it is what reads them without
    running them, but for those whose checksum is a published one.
    """
    package = Path(__file__).parents[1] / "rmd_dist"
    pattern = (
        r"torch\.load\((?!.*weights_only=True)|^\s*(import|from) (pickle|dill|joblib)\b|"
        r"np\.load\((?!.*allow_pickle=False)"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "archive.py"
        for line in path.read_text().splitlines()
        if re.search(pattern, line)
    ]
    assert found == []


def test_paths_are_taken_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/people/ann")
    monkeypatch.setenv("PHOTOS", "/disks/photos")
    for text, path in {
        "~/runs": "/people/ann/runs",
        "~": "/people/ann",
        "$PHOTOS/a": "/disks/photos/a",
        "${PHOTOS}": "/disks/photos",
        "data/../runs": "data/../runs",
        "a~b": "a~b",
        "": "",
    }.items():
        assert expanded(text) == path
    (tmp_path / "cash$").mkdir()
    (tmp_path / "$PHOTOS").mkdir()
    assert (expanded("cash$"), expanded("$PHOTOS"), expanded("./~")) == ("cash$", "$PHOTOS", "./~")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$NOT_SET/x", r"\$NOT_SET is not known"),
        ("${NOT_SET}", r"\$\{NOT_SET\} is not known"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name is not known"),
        ("x" * 300, r"'x{60}\.\.\.' cannot be a path: File name too long"),
        ("y/" * 3000, "cannot be a path: File name too long"),
        ("a\0b", "cannot be a path"),
    ],
)
def test_what_cannot_be_a_path_is_told(text, said):
    with pytest.raises(ConfigError, match=said):
        expanded(text)
