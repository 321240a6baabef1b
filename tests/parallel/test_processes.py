"""The processes of a launch: how many were asked for, what each gets, and one decision for all."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from rmd_dist import SPIN_COUNT
from rmd_dist.errors import ConfigError
from rmd_dist.parallel import collectives as dist
from rmd_dist.parallel.processes import (
    as_fault,
    from_main,
    refuse_separate_runs,
    set_torch_threads,
    workers_per_rank,
)
from tests.launched import ROOT
from tests.test_imports import imported

ALONE = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION")
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def set_only(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Of what launchers set, exactly `values`."""
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_plain_launch_of_several_processes_on_cpus_is_refused(monkeypatch, tmp_path):
    """By what accelerate really sets: with --num_processes 2 it starts ONE process all the same."""
    set_only(monkeypatch)
    (tmp_path / "script.py").write_text(SHOW)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    started = [
        subprocess.Popen(
            [*launch, "--mixed_precision", "no", "--num_processes", n, str(tmp_path / "script.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for n in "12"
    ]
    alone, several = (json.loads(process.communicate(timeout=100)[0]) for process in started)
    for environment, refused in ((alone, False), (several, True)):
        set_only(monkeypatch, **{name: environment[name] for name in ALONE if name in environment})
        with pytest.raises(ConfigError, match=r"several .*cpu2\.yaml") if refused else nullcontext():
            refuse_separate_runs(1)


def test_ranks_that_are_not_in_one_group_are_refused(monkeypatch):
    set_only(monkeypatch)
    refuse_separate_runs(1)
    set_only(monkeypatch, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", ACCELERATE_MIXED_PRECISION="no")
    refuse_separate_runs(2)
    with pytest.raises(ConfigError, match=r"2 processes were asked for.* in a group of 1.*cpu2\.yaml"):
        refuse_separate_runs(1)


def test_the_accelerator_asks(monkeypatch):
    from accelerate.state import AcceleratorState

    from rmd_dist.parallel.accelerator import make_accelerator

    AcceleratorState._reset_state(reset_partial_state=True)
    set_only(monkeypatch, MASTER_ADDR="127.0.0.1", ACCELERATE_MIXED_PRECISION="no")
    with pytest.raises(ConfigError, match=r"they would be separate runs.*your shell .*unset MASTER_ADDR$"):
        make_accelerator(cpu=True)


@pytest.mark.parametrize(
    ("cores", "local_ranks", "expected"), [(8, None, 8), (8, 3, 2), (8, 8, 1), (2, 5, 1)]
)
def test_ranks_of_a_machine_share_its_cores(cores, local_ranks, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_ranks))
    assert workers_per_rank(0) == expected
    assert workers_per_rank(5) == 5


def _decide(mistake: str) -> tuple[str, list[int]]:
    """What this rank gets of an action, and where the action ran."""
    ran: list[int] = []

    def action() -> str:
        ran.append(dist.rank())
        if mistake:
            raise ConfigError(mistake)
        return f"decided by {dist.rank()}"

    try:
        outcome = from_main(action)
    except ConfigError as error:
        outcome = f"refused: {error}"
    dist.barrier()  # nobody is left behind in another collective
    return outcome, ran


@pytest.mark.parametrize("world", [1, 3])
def test_the_first_rank_decides_for_all(ranks, world):
    for mistake, expected in (("", "decided by 0"), ("no such thing", "refused: no such thing")):
        answers = ranks(world).run(_decide, mistake)
        assert [outcome for outcome, _ in answers] == [expected] * world
        assert [ran for _, ran in answers] == [[0]] + [[]] * (world - 1)


@pytest.mark.parametrize(
    ("launched", "asked", "threads"), [(True, 0, 3), (True, 2, 2), (False, 0, 1), (False, 2, 2)]
)
def test_torch_gets_the_ranks_share_of_the_cores(launched, asked, threads, monkeypatch):
    """accelerate launch sets one thread; without it, what the user or torch set stays."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        set_torch_threads(asked)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_what_gloo_says_is_told_apart():
    """A peer that is gone, a network that cannot be used, a bug."""
    lost = as_fault(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29"))
    assert "another rank has ended" in str(lost) and "closed by peer" in str(lost)
    network = as_fault(RuntimeError("[enforce fail at gloo/transport/tcp/device.cc:84] no address for: eth9"))
    assert "cannot talk" in str(network) and "eth9" in str(network) and "docs/nodes.md" in str(network)
    assert as_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.parametrize(
    ("own", "count"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["default", "a count", "a policy"],
)
def test_waiting_threads_soon_sleep(own, count):
    """By what torch's OpenMP says it has read; a setting of the user's own goes before ours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", "import rmd_dist, torch"]
    told = subprocess.run(
        command, env=kept | own | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=100, check=True,
    ).stderr  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{count}'" in told


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "launch").glob("*.py")), ROOT / "rmd_dist" / "__main__.py"],
    ids=lambda path: path.name,
)
def test_every_command_loads_the_package_before_torch(path):
    """Else torch's OpenMP would not see how long its threads shall spin."""
    loaded = [name.split(".")[0] for name in imported(ast.parse(path.read_text()), "rmd_dist")]
    assert set(loaded) <= {"rmd_dist", *sys.stdlib_module_names}
