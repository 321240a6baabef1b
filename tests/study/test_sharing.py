"""The service that has cells share a GPU, by a stand-in that writes down how it is called."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rmd_dist.commands.study import arguments
from rmd_dist.errors import ConfigError
from rmd_dist.study import commands
from rmd_dist.study.cells import plan
from rmd_dist.study.runner import Data, Topology, start
from rmd_dist.study.sharing import CONTROL, shared_gpus
from tests.study.small import StandIn, cells, spec

CALLS = """#!/bin/sh
echo "$1 $(test -z "$1" && cat) $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-unset}" >> "$CALLS"
echo "$1" ; exit ${CODE-0}
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Where the stand-in writes its calls."""
    program = tmp_path / "bin" / CONTROL
    program.parent.mkdir()
    program.write_text(CALLS)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    return tmp_path / "calls"


def test_it_runs_as_long_as_the_study(calls, tmp_path):
    with shared_gpus(tmp_path / "logs") as variables:
        pipes = variables["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipes).is_dir() and variables["CUDA_MPS_LOG_DIRECTORY"] == str(tmp_path / "logs")
        assert calls.read_text().splitlines() == [f"-d  {pipes} unset"]
    assert calls.read_text().splitlines()[1:] == [f" quit {pipes} unset"]
    assert not Path(pipes).exists()


def test_it_ends_with_a_study_that_fails(calls, tmp_path):
    with pytest.raises(KeyboardInterrupt), shared_gpus(tmp_path / "logs"):
        raise KeyboardInterrupt
    assert "quit" in calls.read_text().splitlines()[1]


def test_one_that_cannot_start_is_told(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(ConfigError, match=r"did not start \(-d\); leave --mps out"), shared_gpus(tmp_path):
        pass
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=f"--mps needs {CONTROL}"), shared_gpus(tmp_path):
        pass


def test_cells_find_it(tmp_path):
    """By the variables of their environment, beside the GPU that they are to use."""

    class Telling(StandIn):
        def command(self, stage, config):
            found = "os.environ['CUDA_MPS_PIPE_DIRECTORY'], os.environ['CUDA_VISIBLE_DEVICES']"
            return [super().command(stage, config)[0], "-c", f"import os; print(*({found}))"]

    cell = cells(tmp_path)[0]
    topology = Telling(devices="0", variables={"CUDA_MPS_PIPE_DIRECTORY": "here"})
    with start(tmp_path, cell, topology, Data()) as running:
        running.process.wait(60)
    assert running.log.read_text().strip() == "here 0"
    assert Topology().variables == {}


def test_a_study_has_it_where_it_is_asked_for(calls, tmp_path, monkeypatch):
    """All of its cells run in between."""
    monkeypatch.setattr(commands, "_gpus", lambda: ["0"])
    monkeypatch.setattr("rmd_dist.study.commands.Topology", StandIn)
    spec(tmp_path)
    words = [str(tmp_path / "small.yaml"), "--out", str(tmp_path / "study"), "--workers", "2"]
    args = arguments().parse_args([*words, "--mps"])
    args.specs = [tmp_path / "small.yaml"]
    assert commands.study(args) == 0
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["-d", "quit"]
    found = commands.study_of(tmp_path / "study", *plan([spec(tmp_path)]))
    assert {status.state for status in found.status.values()} == {"finished"}


def test_it_is_for_workers_that_share_a_gpu(monkeypatch):
    monkeypatch.setattr(commands, "_gpus", lambda: ["0"])
    for words in ("--mps", "--mps --workers 2 --cpu"):
        with pytest.raises(ConfigError, match="--mps is for several --workers that share a GPU"):
            commands._topologies(arguments().parse_args(["some.yaml", *words.split()]))
