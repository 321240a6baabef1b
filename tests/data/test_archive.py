"""Reading pickles and tars from outside: what is admitted, and that nothing is run or extracted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmd_dist.data.sources import archive
from rmd_dist.data.sources.archive import load_pickled_dict, read_members
from rmd_dist.errors import ConfigError

from .archives import dumps, write_tar


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("dtype", ["uint8", "<i8", ">i4"])
def test_arrays_survive(protocol: int, dtype: str) -> None:
    array = np.arange(12).astype(dtype).reshape(3, 4)
    value = {"c": array, "f": np.asfortranarray(array), "n": [1, 2], "s": "text"}
    read = load_pickled_dict(pickle.dumps(value, protocol=protocol), "x")
    assert read["c"].dtype == array.dtype
    np.testing.assert_array_equal(read["c"], array)
    np.testing.assert_array_equal(read["f"], array)
    assert read["n"] == [1, 2]


def test_python_2_strings_stay_bytes() -> None:
    read = load_pickled_dict(dumps({b"data": np.zeros((2, 3), np.uint8), b"name": b"\xff"}), "x")
    assert read["data"].shape == (2, 3)
    assert read["name"] == b"\xff"


class Touch:
    """Leaves a file behind when unpickled."""

    def __init__(self, how: Any, *args: Any) -> None:
        self.how, self.args = how, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    for evil in (Touch(os.system, f"touch {trace}"), Touch(eval, f"open({str(trace)!r}, 'w')")):
        payload = pickle.dumps({"data": evil}, protocol=protocol)
        with pytest.raises(ConfigError, match=r"x is damaged .*(system|eval)"):
            load_pickled_dict(payload, "x")
        assert not trace.exists()
        pickle.loads(payload)  # the payload does work
        assert trace.exists()
        trace.unlink()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "getattr"),
        ("functools", "partial"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("rmd_dist.data.sources.archive", "_Array"),
        ("numpy", "ndarray.tofile"),
        ("_codecs", "decode"),
    ],
)
def test_other_names_are_refused(module: str, name: str) -> None:
    payload = b"\x80\x04}\x8c\x01a" + _text(module) + _text(name) + b"\x93s."
    with pytest.raises(ConfigError, match="no numpy array needs"):
        load_pickled_dict(payload, "x")


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=float),
    ],
)
def test_only_integer_arrays(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="not of integers"):
        load_pickled_dict(pickle.dumps({"a": array}, protocol=2), "x")


def test_an_array_must_have_its_bytes() -> None:
    payload = dumps({b"a": np.zeros(7, np.uint8)})
    with pytest.raises(ConfigError, match="wrong number of bytes"):
        load_pickled_dict(payload.replace(b"K\x07", b"K\x08"), "x")


def test_damaged_pickles_give_one_error() -> None:
    payload = dumps({b"data": np.arange(60, dtype=np.uint8), b"labels": list(range(20))})
    random = np.random.default_rng(0)
    for cut in range(len(payload)):
        with pytest.raises(ConfigError):
            load_pickled_dict(payload[:cut], "x")
    for _ in range(500):
        spoilt = bytearray(payload)
        spoilt[random.integers(len(payload))] ^= 1 << int(random.integers(8))
        with contextlib.suppress(ConfigError):
            load_pickled_dict(bytes(spoilt), "x")


def test_a_memo_bomb_is_refused() -> None:
    """One wrong bit turns BINPUT into LONG_BINPUT 681074693, and Python then allocates 11 GB."""
    for bomb in (b"\x80\x02}r\xff\xff\xff\x7f.", b"}p2147483647\n."):
        with pytest.raises(ConfigError, match="numbers an object 2147483647 after"):
            load_pickled_dict(bomb, "x")


def test_a_pickle_of_something_else() -> None:
    with pytest.raises(ConfigError, match="holds a list instead of a dict"):
        load_pickled_dict(pickle.dumps([1]), "x")


MEMBERS = {"folder/a": b"a" * 3000, "folder/b": b"b" * 5000}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_are_read(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"./folder/c": b"c", "other": b"", **MEMBERS}, mode)
    assert read_members(path, ["folder/a", "folder/c", "absent"]) == {
        "folder/a": MEMBERS["folder/a"],
        "folder/c": b"c",
    }


def test_hostile_members_write_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    names = ["../escaped", "/tmp/escaped", "folder/../../escaped"]
    path = write_tar(work / "x.tar", {**dict.fromkeys(names, b"evil"), **MEMBERS}, "w")
    with tarfile.open(path, "a") as tar:
        for name, kind in (("folder/link", tarfile.SYMTYPE), ("folder/hard", tarfile.LNKTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    before = sorted(tmp_path.rglob("*"))
    assert read_members(path, ["folder/a", "folder/link", "folder/hard"]) == {"folder/a": MEMBERS["folder/a"]}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_too_large_is_not_read(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("folder/a")
    entry.size = 1 << 40
    (tmp_path / "x.tar").write_bytes(entry.tobuf() + bytes(10_240))
    with pytest.raises(ConfigError, match="1099511627776 bytes"):
        read_members(tmp_path / "x.tar", ["folder/a"])


def test_cut_archives_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = write_tar(tmp_path / "x", {"folder/a": random.bytes(4000)}).read_bytes()
    for cut in (0, 1, 10, 100, len(content) // 2, len(content) - 9, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(ConfigError, match="empty, cut short or damaged"):
            read_members(tmp_path / "cut", ["folder/a"])


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    """gzip's checksum stands behind the last member as well; only its header has bits that mean nothing."""
    random = np.random.default_rng(0)
    content = write_tar(tmp_path / "x", {"folder/a": random.bytes(4000)}).read_bytes()
    for place in random.integers(20, len(content), size=200):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << int(random.integers(8))
        (tmp_path / "spoilt").write_bytes(spoilt)
        with pytest.raises(ConfigError, match="empty, cut short or damaged"):
            read_members(tmp_path / "spoilt", ["folder/a"])


def test_not_an_archive(tmp_path: Path) -> None:
    damaged = "empty, cut short or damaged"
    for content, said in {
        b"PK\x03\x04" + bytes(600): damaged,
        b"\x1f\x8b": damaged,
        b"": damaged,
        b"\n<!DOCTYPE html>" * 100: "is an HTML page instead of an archive; get the file itself",
        b"version https://git-lfs.github.com/spec/v1\n" * 20: "is a Git LFS pointer .*git lfs pull",
        b"\x28\xb5\x2f\xfd" + bytes(600): "is packed by zstd .*unpack it",
        b"\x80\x02}q\x00." + bytes(600): "is a Python pickle",
    }.items():
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ConfigError, match=said) as caught:
            read_members(tmp_path / "x", ["folder/a"])
        assert "\n" not in str(caught.value)


PACKED = {"tar": "w", "gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "zip": ""}


def write_packed(path: Path, members: dict[str, bytes], packing: str) -> Path:
    if packing != "zip":
        return write_tar(path, members, PACKED[packing])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("folder", ["folder/", "./folder/", "", "deep/down/folder/"])
def test_any_packing_and_any_folder_give_the_same_members(tmp_path: Path, packing: str, folder: str) -> None:
    members = {f"{folder}{name}": name.encode() * 3000 for name in "ab"}
    path = write_packed(tmp_path / "no-suffix", {"else/readme": b"x", **members}, packing)
    assert read_members(path, ["folder/a", "folder/b"]) == {"folder/a": b"a" * 3000, "folder/b": b"b" * 3000}


@pytest.mark.parametrize("packing", PACKED)
def test_what_cannot_be_told_apart_is_refused_and_what_is_there_is_said(tmp_path: Path, packing: str) -> None:
    path = write_packed(tmp_path / "x", {"one/a": b"1", "two/b": b"2"}, packing)
    with pytest.raises(ConfigError, match=r"a or b in several folders \(one, two\), none of which is folder"):
        read_members(path, ["folder/a", "folder/b"])
    assert read_members(path, ["two/a", "two/b"]) == {"two/b": b"2"}  # its own folder goes before others
    with pytest.raises(
        ConfigError, match=r"intact, but holds one/a, two/b .*\(2 files\) instead of folder/c"
    ):
        read_members(path, ["folder/c"])


@pytest.mark.parametrize("packing", PACKED)
def test_cut_and_flipped_archives_of_any_packing_are_refused(tmp_path: Path, packing: str) -> None:
    random = np.random.default_rng(0)
    content = write_packed(tmp_path / "x", {"folder/a": random.bytes(4000)}, packing).read_bytes()
    half = min(len(content) // 2, 3000)
    for cut in (10, 100, half):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(ConfigError, match="empty, cut short or damaged"):
            read_members(tmp_path / "cut", ["folder/a"])
    if packing != "tar":  # which has no checksum
        (tmp_path / "cut").write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
        with pytest.raises(ConfigError, match="empty, cut short or damaged"):
            read_members(tmp_path / "cut", ["folder/a"])


@pytest.mark.parametrize("packing", ["bz2", "xz", "zip"])
def test_bombs_of_any_packing_are_refused(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_packed(tmp_path / "x", {"folder/a": bytes(30_000), "folder/b": bytes(30_000)}, packing)
    assert path.stat().st_size < 2000
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 20_000)
    with pytest.raises(ConfigError, match="its member folder/a has 30000 bytes"):
        read_members(path, ["folder/a", "folder/b"])
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 40_000)
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 40_000)
    with pytest.raises(ConfigError, match="unpacks to more than"):
        read_members(path, ["folder/a", "folder/b"])


def test_an_xz_file_that_asks_for_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x", MEMBERS, "w:xz")
    monkeypatch.setattr(archive, "MAX_XZ_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match="Memory usage limit exceeded"):
        read_members(path, ["folder/a"])


def test_a_published_pickle_goes_straight_through() -> None:
    """By its MD5 and nothing else: one other byte, and it is read by the restricted reader again."""
    payload = dumps({b"data": np.zeros(2), b"labels": [1, 2]})  # no array of integers
    trusted = {hashlib.md5(payload).hexdigest()}
    read = load_pickled_dict(payload, "x", trusted)
    assert read["labels"] == [1, 2] and read["data"].dtype == np.float64
    for other in (payload, payload + b"\0"):
        with pytest.raises(ConfigError, match="not of integers"):
            load_pickled_dict(other, "x", trusted if other is not payload else ())
