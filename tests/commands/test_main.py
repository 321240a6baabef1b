"""`rmd` itself: help, version, presets, and a command that there is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rmd_dist import __version__
from rmd_dist.__main__ import COMMANDS, main
from rmd_dist.config.presets import FOLDER

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rmd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of `rmd ...`, as the installed script calls it."""

    def call(*words: str, program: str = "/some/bin/rmd") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())  # type: ignore[return-value]

    return call


def test_help_names_every_command(rmd):
    code, out, _ = rmd("--help")
    assert code == 0 and out.startswith("usage: rmd COMMAND")
    assert all(f"  {name} " in out for name in COMMANDS)
    assert rmd() == rmd("-h") == (0, out, "")
    assert rmd("--version")[1] == f"{__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("distil", "did you mean distill?"),
        ("xyz", "it has prepare, pretrain,"),
        ("--bogus", "it has prepare,"),
    ],
)
def test_an_unknown_command_is_one_line(rmd, word, hint):
    code, out, err = rmd(word, "--K", "1")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: rmd has no command {word!r}; {hint}") and err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("program", "shown"), [("/some/bin/rmd", "rmd"), (f"{ROOT}/rmd_dist/__main__.py", "python -m rmd_dist")]
)
def test_usage_says_how_it_was_called(rmd, name, program, shown):
    code, out, _ = rmd(name, "--help", program=program)
    assert code == 0 and out.startswith(f"usage: {shown} {name} ")


def test_presets_are_listed_and_their_files_named(rmd):
    lines = rmd("--presets")[1].splitlines()
    assert lines[0] == f"{FOLDER}:" and "accelerate/cpu2" in lines and "paper/reduced/table1" in lines
    assert rmd("--presets", "accelerate/cpu2") == (0, f"{FOLDER / 'accelerate/cpu2.yaml'}\n", "")
    code, _, err = rmd("--presets", "accelerate/cpu")
    assert code == 2 and "did you mean accelerate/cpu2" in err


def test_ctrl_c_is_one_line(rmd, monkeypatch):
    def interrupted(_argv: object = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rmd_dist.commands.report.main", interrupted)
    code, _, err = rmd("report", "x")
    assert code == 130 and err.startswith("interrupted: ") and err.count("\n") == 1


def test_help_needs_no_torch():
    code = """
import sys
from rmd_dist.__main__ import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print("torch" in sys.modules, "jsonargparse" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")
