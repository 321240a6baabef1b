"""Workers over a study of stand-ins: order, failures, interruption, pruning; and one study of real runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rmd_dist.commands.study import arguments
from rmd_dist.config.presets import FOLDER
from rmd_dist.errors import ConfigError, Stopped
from rmd_dist.study import commands, worker
from rmd_dist.study.cells import Cell, plan
from rmd_dist.study.folder import curve_so_far, read_study, write_specs
from rmd_dist.study.outlook import step_seconds
from rmd_dist.study.runner import Data, Topology, complete
from rmd_dist.study.spec import load_spec
from rmd_dist.study.status import retry
from rmd_dist.study.worker import Tally, Worker, duration, work
from tests.study.small import SPEC, StandIn, cells, named, spec

ROOT = Path(__file__).parents[2]


def _workers(tmp_path: Path, lines: list[str], count: int = 1, **watch: object) -> list[Worker]:
    folder, grid = tmp_path / "study", cells(tmp_path)
    folder.mkdir(exist_ok=True)
    write_specs(folder, [spec(tmp_path)])
    return [Worker(folder, grid, StandIn(), Data(), lines.append, **watch) for _ in range(count)]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.1)


def _starts(tmp_path: Path) -> dict[str, int]:
    return {p.parent.name: len(p.read_text().split()) for p in tmp_path.glob("study/runs/*/*/starts")}


def _plan(tmp_path: Path, **todo: object) -> None:
    (tmp_path / "study").mkdir(exist_ok=True)
    (tmp_path / "study/plan.json").write_text(json.dumps(todo))


def test_every_cell_runs_once_and_the_teacher_first(tmp_path):
    lines: list[str] = []
    tally = work(_workers(tmp_path, lines, count=2))
    keys = [cell.key for cell in cells(tmp_path)]
    assert sorted(tally.finished) == sorted(keys)
    assert _starts(tmp_path) == dict.fromkeys(keys, 1)
    taught = [key for key in keys if "-K1-" in key or "-K0.5-" in key]
    teacher = named(keys, "digits-simsiam-seed0")
    order = [line.split(": ")[0] for line in lines if " % after " in line]
    assert all(order.index(teacher) < order.index(key) for key in taught)
    study = read_study(tmp_path / "study")
    assert study.accuracy(taught[0]) == 0.5
    assert step_seconds(study.run(taught[0]), 64) == pytest.approx(0.1)
    assert study.curve(taught[0], "test/accuracy") == ([22, 44, 66], [0.5] * 3)
    assert study.teacher("digits", study.tables[0]) == study.run(teacher)
    assert work(_workers(tmp_path, lines)) == Tally()  # nothing is left


def test_a_failed_cell_is_named_with_its_reason_and_the_others_go_on(tmp_path):
    _plan(tmp_path, **{"digits-ce-symmetric0.4-K0-seed0": {"fails": True}})
    tally = work(_workers(tmp_path, []))
    key = named(tally.failed, "digits-ce-symmetric0.4-K0-seed0")
    assert tally.failed == {key: "error: it was told to fail"}
    assert len(tally.finished) == len(cells(tmp_path)) - 1


def test_cells_wait_where_their_teacher_failed(tmp_path):
    _plan(tmp_path, **{"digits-simsiam-seed0": {"fails": True}})
    tally = work(_workers(tmp_path, []))
    status = read_study(tmp_path / "study").status
    assert {key for key, s in status.items() if s.state == "waiting"} == {
        cell.key for cell in cells(tmp_path) if cell.needs
    }
    assert [named(tally.failed, "digits-simsiam-seed0")] == list(tally.failed)


def test_a_hopeless_cell_is_stopped_early(tmp_path):
    slow = {"accuracy": 0.1, "seconds": 0.6}
    _plan(tmp_path, **{"digits-ce-symmetric0.4-K0-seed0": slow})
    folder, wanted = tmp_path / "study", "digits-ce-symmetric0.4-K0-seed0"

    def pruner(cell: Cell) -> str | None:
        begun = curve_so_far(cell.run_folder(folder), "test/accuracy")[1]
        return "step 22, 10.00 %" if begun and cell.key.startswith(wanted) else None

    (key,) = work(_workers(tmp_path, [], pruner=pruner)).pruned
    study = read_study(folder)
    status = study.status[named([key], wanted)]
    assert (status.state, status.why) == ("pruned", "stopped early at step 22, 10.00 %")
    assert 66 not in study.curve(key, "test/accuracy")[0]
    assert work(_workers(tmp_path, [])) == Tally()  # nor is it taken up again


def test_asked_to_stop_it_saves_the_cell_and_goes_on_from_there_the_next_time(tmp_path):
    _plan(tmp_path, **{"digits-simsiam-seed0": {"seconds": 5.0}})
    lines: list[str] = []
    (lone,) = _workers(tmp_path, lines)
    start = worker.start

    def interrupted(*args: object) -> object:
        running = start(*args)
        deadline = time.monotonic() + 120
        while not curve_so_far(running.folder, "eval/knn_accuracy")[0] and time.monotonic() < deadline:
            time.sleep(0.02)
        lone.ask_to_stop()
        return running

    worker.start = interrupted
    try:
        assert work([lone]) == Tally()
    finally:
        worker.start = start
    key, _, said = lines[-1].partition(": ")
    assert (key, said) == (cells(tmp_path)[0].key, "saved, to be continued")
    _plan(tmp_path)
    assert len(work(_workers(tmp_path, lines)).finished) == len(cells(tmp_path))
    assert _starts(tmp_path)[key] == 2


def test_a_worker_s_own_error_reaches_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "start", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work(_workers(tmp_path, []))
    assert {status.state for status in read_study(tmp_path / "study").status.values()} == {"waiting"}


def test_a_damaged_manifest_fails_its_cell_and_no_other(tmp_path):
    _plan(tmp_path, **{"digits-ce-symmetric0.4-K0-seed0": {"damaged": True}})
    tally = work(_workers(tmp_path, []))
    (key,) = tally.failed
    assert "is damaged" in tally.failed[key] and "-ce-symmetric0.4-K0-seed0" in key
    assert len(tally.finished) == 10


def test_a_cell_that_somebody_else_stopped_is_given_back(tmp_path):
    """A batch system signals every process of a job, the cell perhaps before the study."""
    _plan(tmp_path, **{"digits-ce-symmetric0.4-K0-seed0": {"stops": 1}})
    tally = work(_workers(tmp_path, []))
    assert tally.failed == {}
    assert len(tally.finished) == 11


def test_why_a_cell_failed_is_not_what_an_earlier_attempt_said(tmp_path):
    _plan(tmp_path, **{"digits-simsiam-seed0": {"fails": True}})
    assert work(_workers(tmp_path, [])).failed
    _plan(tmp_path, **{"digits-simsiam-seed0": {"killed": True}})
    assert work(_workers(tmp_path, [])) == Tally()  # a failed cell is left alone
    assert retry(tmp_path / "study", cells(tmp_path)) == [cells(tmp_path)[0].key]
    assert list(work(_workers(tmp_path, [])).failed.values()) == ["killed by SIGKILL"]


def _interrupt(tmp_path: Path, times: int = 1) -> threading.Thread:
    """Ctrl-C, so many times, as soon as a cell has measured something."""

    def press() -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("study/runs/*/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.0)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_a_second_signal_ends_cells_at_once(tmp_path):
    _plan(tmp_path, **{"digits-simsiam-seed0": {"seconds": 60.0, "deaf": True}})
    workers = _workers(tmp_path, [])
    keys = _interrupt(tmp_path, times=2)
    began = time.monotonic()
    with pytest.raises(Stopped):
        work(workers)
    assert time.monotonic() - began < worker.GRACE_SECONDS / 2
    keys.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_how_a_cell_is_started():
    config = Path("c.yaml")
    lone = Topology().command("distill", config)
    assert lone[1:] == ["-m", "rmd_dist", "distill", "--config", "c.yaml"]
    two = Topology(processes=2).command("distill", config)
    # accelerate's own default_config.yaml must not decide: it may ask for FSDP, or for four machines.
    assert two[3:7] == ["--config_file", str(FOLDER / "accelerate/cpu2.yaml"), "--num_processes", "2"]
    given = Topology(launch_config=Path("gpu8.yaml")).command("pretrain", config)
    assert given[3:5] == ["--config_file", "gpu8.yaml"]


def test_a_cell_is_told_where_its_run_its_data_and_its_teacher_are(tmp_path):
    grid = cells(tmp_path)
    cell = next(c for c in grid if c.needs)
    config = complete(tmp_path / "s", cell, Topology(threads=3), Data(root="d", loader="memory", cpu=True))
    assert (config.run.root, config.run.name) == (str(tmp_path / "s/runs"), cell.key)
    assert config.teacher == str(tmp_path / "s/runs/pretrain" / grid[0].key / "model.safetensors")
    assert config.run.resume_allow == ()
    assert (config.data.root, config.data.loader, config.run.cpu, config.run.threads) == (
        "d",
        "memory",
        True,
        3,
    )
    assert cell.config.run.name is None  # the plan's own stays as it was


@pytest.mark.parametrize(
    ("gpus", "words", "expected"),
    [
        ("", "--workers 3", [None] * 3),
        ("0,1,2,3", "--workers 2", ["0", "1"]),
        ("0,1", "--workers 5", ["0", "1", "0", "1", "0"]),
        ("4,5,7", "--workers 4 --processes 2", ["4,5"] * 4),
        ("0,1,2,3", "--workers 3 --processes 2", ["0,1", "2,3", "0,1"]),
        ("0", "--workers 2", ["0", "0"]),
        ("0,1", "--workers 2 --cpu", [None] * 2),
    ],
)
def test_workers_spread_over_the_gpus_there_are(gpus, words, expected, monkeypatch):
    monkeypatch.setattr(commands, "_gpus", lambda: gpus.split(",") if gpus else [])
    args = arguments().parse_args(["some.yaml", *words.split()])
    assert [topology.devices for topology in commands._topologies(args)] == expected


def test_a_cell_of_more_processes_than_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(commands, "_gpus", lambda: ["0"])
    args = arguments().parse_args("some.yaml --workers 2 --processes 2".split())
    with pytest.raises(ConfigError, match=r"2 processes needs as many GPUs, and 1 can be seen; .*--cpu"):
        commands._topologies(args)


def test_durations_are_readable():
    assert [duration(s) for s in (4, 240, 9000)] == ["4 s", "4 min", "2.5 h"]


TINY = "model: {name: resnet18_cifar_w16_s2}, eval: {every_epochs: 0, train_samples: 96}, run: {log_every: 5}"
DATA = "data: {batch_size: 48, train_samples: 480, test_samples: 96}"
REAL = f"""
# Two students and their teacher, a few steps each.
datasets: [digits]
clean: false
noise: {{symmetric: [0.4]}}
seeds: [0]
pretrain: {{{DATA}, {TINY}, simsiam: {{dim: 32, hidden_dim: 16}}, optim: {{epochs: 9, lr: 0.05}}}}
distill: {{{DATA}, {TINY}, optim: {{epochs: 1, lr: 0.05}}}}
"""


def _study(path: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "launch/study.py"), str(path), "--out", str(out), "--threads", "1"]
    return subprocess.Popen(
        [*command, "--loader", "memory", "--cpu", *more], cwd=path.parent, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_runs_killed_and_continued_by_the_same_command(tmp_path):
    path, out = tmp_path / "real.yaml", tmp_path / "study"
    path.write_text(REAL)
    first = _study(path, out)
    (key,) = (cell.key for cell in plan([load_spec(path)])[0] if cell.stage == "pretrain")
    teacher = out / "runs/pretrain" / key / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (teacher.exists() and '"step": 20' in teacher.read_text()) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()  # no handler runs; its cell is told by the kernel, and saves
    second = _study(path, out)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert re.search(rf"{key}: \d+ steps, again \(its worker is gone\)", said), said
    study = read_study(out)
    assert {key: s.state for key, s in study.status.items()} == dict.fromkeys(study.cells, "finished")
    assert len(study.cells) == 3
    assert "continuing at step" in (out / "logs" / f"{key}.log").read_text()


def test_a_signal_stops_the_workers_and_their_cells_wait_again(tmp_path):
    _plan(tmp_path, **{"digits-simsiam-seed0": {"seconds": 20.0}})
    lines: list[str] = []
    workers = _workers(tmp_path, lines)
    _interrupt(tmp_path)
    with pytest.raises(Stopped, match="the same command continues"):
        work(workers)
    key = cells(tmp_path)[0].key
    assert lines[-1] == f"{key}: saved, to be continued"
    assert read_study(tmp_path / "study").status[key].state == "waiting"


def test_commands_refuse_what_cannot_work(tmp_path):
    (tmp_path / "s.yaml").write_text(SPEC)
    parse = arguments().parse_args
    for words, told in (
        (["--workers", "0"], "--workers and --processes must be 1 or more"),
        (["--launch-config", "absent.yaml"], "is not a file; see configs/accelerate/"),
        (["--dry-run", "--step-seconds", "x"], "is not valid; give seconds such as 0.02"),
    ):
        with pytest.raises(ConfigError, match=told):
            commands.study(parse([str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), *words]))
    assert not (tmp_path / "o").exists()


def test_a_dry_run_counts_steps_and_hours(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(SPEC)
    words = [str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), "--dry-run", "--list"]
    grid = plan([spec(tmp_path)])[0]
    assert commands.study(arguments().parse_args([*words, "--step-seconds", "pretrain=90,distill=30"])) == 0
    said = capsys.readouterr().out
    steps = {stage: sum(c.steps for c in grid if c.stage == stage) for stage in ("pretrain", "distill")}
    hours = (90 * steps["pretrain"] + 30 * steps["distill"]) / 3600
    assert f"11 cells, {sum(steps.values())} steps left, {hours:.1f} hours on one device" in said
    assert said.count("digits-gce-symmetric0.4-K0.5-seed") == 2
    commands.study(arguments().parse_args(words))
    assert "hours unknown: give --step-seconds" in capsys.readouterr().out
