"""What becomes of standard output and error does not end a command, and is told where it was the result."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A command that prints much, is told to by the words of its line, and leaves the file `done` when it ends.
COMMAND = """
import os, sys, threading, warnings
from pathlib import Path
from rmd_dist.commands import screen
from rmd_dist.commands.entry import run
from rmd_dist.errors import ConfigError

def main():
    if "spared" in sys.argv:
        screen.spare()
    opened = os.open("made", os.O_CREAT)
    print(sys.argv[-1], flush=True)
    threads = [threading.Thread(target=print, args=("x" * 70000,)) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    warnings.warn("careful")
    Path("done").write_text(f"{opened > 2} {sys.argv[-1]}", encoding="utf-8")
    if "wrong" in sys.argv:
        raise ConfigError("a mistake")

run(main)
"""


def command(folder: Path, *words: str, redirect: str = "", **variables: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of COMMAND, with a redirection of the shell."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, "-c", COMMAND, *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def done(folder: Path) -> str:
    return (folder / "done").read_text(encoding="utf-8") if (folder / "done").exists() else ""


GONE = "| head -1; exit ${PIPESTATUS[0]}"
REDIRECTIONS = [GONE, ">/dev/full", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "1</dev/null"]


@pytest.mark.parametrize("redirect", REDIRECTIONS)
def test_what_is_spared_goes_on_without_its_screen(redirect, tmp_path):
    """The file it opens gets none of the numbers 0, 1, 2, to which torch and others write."""
    code, _, err = command(tmp_path, "spared", "word", redirect=redirect)
    assert (code, done(tmp_path)) == (0, "True word")
    assert "Traceback" not in err and "Exception ignored" not in err and "error" not in err
    assert (tmp_path / "made").read_bytes() == b""


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        (GONE, (141, "")),
        (">/dev/full", (1, "error: cannot write to standard output: No space left on device\n")),
        (">&-", (0, "")),  # as the shell was told
    ],
)
def test_a_command_that_is_about_its_output_says_that_it_was_lost(redirect, expected, tmp_path):
    code, _, err = command(tmp_path, "word", redirect=redirect, PYTHONWARNINGS="ignore")
    assert (code, err) == expected


def test_a_launcher_hears_of_no_failure_where_a_reader_had_enough(tmp_path):
    assert command(tmp_path, "word", redirect=GONE, ACCELERATE_MIXED_PRECISION="no")[0] == 0


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", f"2>&1 {GONE}"])
def test_the_exit_code_of_a_mistake_stays(redirect, tmp_path):
    assert command(tmp_path, "wrong", "word", redirect=redirect)[0] == 2


def test_help_is_output_too(tmp_path):
    for redirect, code in ((">/dev/full", 1), ("", 0)):
        done = subprocess.run(
            f"{sys.executable} -m rmd_dist compare --help {redirect}", shell=True, capture_output=True,
            cwd=ROOT, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "na\\xefve"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "naïve"),
        ({"PYTHONIOENCODING": "utf-8"}, "naïve"),
    ],
)
def test_a_letter_that_a_terminal_has_not_is_written_otherwise(variables, shown, tmp_path):
    code, out, err = command(tmp_path, "naïve", **variables)
    assert (code, out.splitlines()[0]) == (0, shown), err
    assert done(tmp_path) == "True naïve"


def test_a_pipe_that_another_program_made_non_blocking(tmp_path):
    """Nothing is lost: it is waited for, as for any other."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "word"], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=writer,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        read = pipe.read()
    assert process.wait(60) == 0 and len(read) == 2 * 70001 + len("word\n")
    assert process.stderr
    process.stderr.close()


BAR = """
import sys, time
from pathlib import Path
from rmd_dist.commands import screen
from rmd_dist.commands.entry import run
from rmd_dist.runs.console import Screen

def main():
    screen.spare()
    shown = Screen("a run", 100)
    shown.progress(1, 1.0, 0.1, 5.0)
    sys.stdin.read(1)
    for step in range(2, 6):
        shown.progress(step, 1.0, 0.1, 5.0)
        shown.line("a message")
        time.sleep(0.3)  # rich draws by a thread of its own
    shown.close()
    Path("done").write_text("to the end")

run(main)
"""


def test_a_bar_outlives_its_terminal(tmp_path):
    """One whose other end is closed: every write gives EIO."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], cwd=tmp_path, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "CI": ""},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"a run 1/100" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    process.communicate(b"x", timeout=60)
    assert (process.returncode, done(tmp_path)) == (0, "to the end")
