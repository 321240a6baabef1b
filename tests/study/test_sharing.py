"""The service that has cells share a GPU, by a stand-in that writes down how it is called."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmd_dist.commands.study import arguments
from rmd_dist.errors import ConfigError
from rmd_dist.study import commands
from rmd_dist.study.cells import plan
from rmd_dist.study.folder import study_of
from rmd_dist.study.sharing import CONTROL, shared_gpus
from tests.launched import is_alive
from tests.study.small import STAND_IN, StandIn, spec

# A daemon that lives until it is told to quit, and the client that asks it.
STAND_IN_CONTROL = """#!/bin/sh
pipes=$CUDA_MPS_PIPE_DIRECTORY
if [ "$1" = -f ]; then
    if [ -n "$BROKEN" ]; then echo "no device"; exit 1; fi
    echo "start ${CUDA_VISIBLE_DEVICES-unset}" >> "$CALLS"
    echo $$ > "$CALLS.pid"; cp "$CALLS.pid" "$pipes/running"
    while [ -e "$pipes/running" ]; do sleep 0.05; done
    exit 0
fi
read asked
[ -e "$pipes/running" ] || { echo "cannot find the daemon"; exit 1; }
if [ "$asked" = quit ]; then echo quit >> "$CALLS"; rm "$pipes/running"; fi
if [ "$asked" = get_server_list ]; then echo "$SERVERS"; fi
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Where the stand-in writes its calls."""
    program = tmp_path / "bin" / CONTROL
    program.parent.mkdir()
    program.write_text(STAND_IN_CONTROL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    return tmp_path / "calls"


def test_it_runs_as_long_as_the_context(calls, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setenv("SERVERS", "4711")
    with shared_gpus(tmp_path / "logs", said.append) as environment:
        pipes = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
        assert pipes.is_dir() and environment["CUDA_MPS_LOG_DIRECTORY"] == str(tmp_path / "logs")
        assert calls.read_text().splitlines() == ["start unset"]  # it numbers GPUs as its clients do
        pid = int(Path(f"{calls}.pid").read_text())
        assert is_alive(pid)
    assert calls.read_text().splitlines() == ["start unset", "quit"]
    assert not is_alive(pid) and not pipes.exists() and said == []


def test_it_ends_with_a_study_that_fails(calls, tmp_path):
    with pytest.raises(KeyboardInterrupt), shared_gpus(tmp_path / "logs", print):
        raise KeyboardInterrupt
    assert calls.read_text().splitlines() == ["start unset", "quit"]


def test_it_ends_with_a_process_that_is_killed(calls, tmp_path):
    code = (
        "import pathlib, time; from rmd_dist.study.sharing import shared_gpus\n"
        f"with shared_gpus(pathlib.Path({str(tmp_path)!r}), print): print('runs', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGKILL)
    pid, deadline = int(Path(f"{calls}.pid").read_text()), time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_one_that_no_process_has_found_is_told(calls, tmp_path):
    said: list[str] = []
    with shared_gpus(tmp_path / "logs", said.append):
        pass
    assert said == [f"--mps: no cell found the service, all took turns; see {tmp_path / 'logs'}"]


def test_one_that_cannot_start_is_told(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    told = r"did not start \(no device\); leave --mps out"
    with pytest.raises(ConfigError, match=told), shared_gpus(tmp_path, print):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to"), shared_gpus(tmp_path / "file" / "logs", print):
        pass
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=f"--mps needs {CONTROL}"), shared_gpus(tmp_path, print):
        pass


class Telling(StandIn):
    """Cells that write down where they look for the service, and which GPU they are to use."""

    def command(self, stage: str, config: Path) -> list[str]:
        names = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_VISIBLE_DEVICES"
        told = (
            f"open(os.environ['CALLS'], 'a').write('cell {{}} {{}}\\n'.format(*map(os.environ.get, {names})))"
        )
        return [sys.executable, "-c", f"import os\n{told}\n{STAND_IN}", "--config", str(config), stage]


def test_the_cells_of_a_study_find_it(calls, tmp_path, monkeypatch):
    """All of them, while it runs."""
    monkeypatch.setattr(commands, "_gpus", lambda: ["0"])
    monkeypatch.setattr(commands, "Topology", Telling)
    monkeypatch.setenv("SERVERS", "4711")
    spec(tmp_path)
    words = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "study"), "--workers", "2", "--mps"]
    args = arguments().parse_args(words)
    args.specs = [tmp_path / "small.yaml"]
    assert commands.study(args) == 0
    first, *cells, last = calls.read_text().splitlines()
    found = study_of(tmp_path / "study", *plan([spec(tmp_path)]))
    assert {status.state for status in found.status.values()} == {"finished"}
    assert (first, last, len(cells)) == ("start unset", "quit", len(found.cells))
    ((kind, pipes, gpu),) = {tuple(line.split()) for line in cells}
    assert kind == "cell" and "rmd-mps-" in pipes and gpu == "0"


@pytest.mark.parametrize(
    ("gpus", "words"),
    [(1, "--mps"), (2, "--mps --workers 2"), (0, "--mps --workers 2"), (1, "--mps --workers 2 --cpu")],
)
def test_it_is_for_workers_that_share_a_gpu(gpus, words, monkeypatch):
    monkeypatch.setattr(commands, "_gpus", lambda: [str(i) for i in range(gpus)])
    with pytest.raises(ConfigError, match="--mps is for more --workers than there are GPUs"):
        commands._topologies(arguments().parse_args(["some.yaml", *words.split()]))
