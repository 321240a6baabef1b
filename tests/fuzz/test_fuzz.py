"""The short form of the fuzz, with the same inputs every time; the long one is `python -m tests.fuzz`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rmd_dist.errors import ConfigError
from tests.fuzz.bombs import BOMBS
from tests.fuzz.campaign import DEFECTS, lines, run

# Written in seconds, or the same as others that stay.
SLOW = (
    "500 MB",
    "3 GB",
    "6 GB",
    "30 million",
    "giga",
    "eva_",
    "meta: ",
    "a million tensors",
    "teacher's",
    "whole",
)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_input_does_more_than_raise_one_clear_error(tmp_path: Path) -> None:
    """No traceback, crash, hang or bomb, and no code is run; see tests/fuzz/bombs.py and mutate.py."""
    quick = [key for key in BOMBS if not any(part in key[1] for part in SLOW)]
    report = run(tmp_path, inputs=60, seed=0, bombs=quick)
    assert report.tried > 250
    assert not report.defects, "\n".join(lines(report))
    assert sum(counter["error"] for counter in report.counts.values()) > report.tried * 0.7


def _refuse(folder: Path) -> None:
    from rmd_dist.errors import ConfigError

    raise ConfigError((folder / "message").read_text())


def _run_code(folder: Path) -> None:
    (folder.resolve().parent / "canary").touch()


def _write_to_nowhere(_folder: Path) -> None:
    import ctypes

    ctypes.string_at(0)


def _take_memory(_folder: Path) -> None:
    from rmd_dist.errors import ConfigError

    try:
        bytearray(1 << 40)
    except Exception as error:
        raise ConfigError("damaged") from error


def _wait(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "fifo").read_bytes()


def _raise(_folder: Path) -> None:
    raise KeyError("x")


ENDS = {
    "error": _refuse,
    "code run": _run_code,
    "crash": _write_to_nowhere,
    "memory": _take_memory,
    "hang": _wait,
    "exception": _raise,
    "accepted": lambda _folder: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_the_fuzz_tells_the_ends_apart(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that crashes, hangs, takes all memory or runs code would be noticed."""
    from tests.fuzz import server

    monkeypatch.setattr(server, "SECONDS", 0.7)
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "message").write_text("one line")
    result = server._supervise(ENDS[end], tmp_path / "input", as_nobody=False)
    assert result.outcome == end, result


def test_an_error_of_two_lines_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sloppy(ConfigError):
        def __str__(self) -> str:
            return "two\nlines"

    from tests.fuzz import server

    def sloppy(_folder: Path) -> None:
        raise Sloppy("x")

    (tmp_path / "input").mkdir()
    result = server._supervise(sloppy, tmp_path / "input", as_nobody=False)
    assert result.outcome in DEFECTS and "not one plain line" in result.detail
