"""`benchmarks/gpu.py`, which must stand ready for the day a GPU is at hand, in its form for a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.data.archives import cifar10, write_folder
from tests.launched import ROOT

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]


@pytest.mark.timeout(900)
def test_every_part_runs_and_its_tables_are_printed(tmp_path):
    """Of tests/gpu some, which all run by themselves, too."""
    images = write_folder(tmp_path, cifar10(train=200, test=100))
    options = ["--device", "cpu", "--out", str(tmp_path / "out"), "--data", str(images), "--minutes", "13"]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=840)
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{json.dumps(parts, indent=1)}"
    assert list(parts) == [
        *("environment", "tests", "steps", "digits", "graph", "sharing", "loader", "cifar10"),
    ]
    assert not [name for name, part in parts.items() if {"error", "left_out"} & part.keys()]
    groups = parts["tests"]["groups"].values()
    assert all(group["passed"] for group in groups) and not any(group["failed"] for group in groups)
    for name in ("steps", "digits", "graph", "sharing", "loader", "cifar10"):
        assert parts[name]["rows"], name
    assert {row["stage"] for row in parts["steps"]["rows"]} == {"pretrain", "distill"}
    assert all(row["accuracy"] > 0 for row in parts["digits"]["rows"])
    file = str(tmp_path / "out" / "gpu.json")
    printed = subprocess.run([*COMMAND, "--summary", file], capture_output=True, text=True, check=True).stdout
    assert [line.split(",")[0] for line in printed.splitlines() if line.startswith("### ")] == [
        f"### {name.capitalize()}" for name in parts
    ]
    assert "| no waiting | " in printed and "| two-views | 1 | " in printed


def test_a_part_that_fails_costs_itself_alone(tmp_path):
    """Here there is no GPU: the command says so of each part, writes down the rest, and fails."""
    if torch_sees_a_gpu():
        pytest.skip("there is a GPU")
    options = ["--out", str(tmp_path), "--parts", "environment", "loader", "cifar10", "--minutes", "5"]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "exit code 1" in parts["environment"]["error"] and "exit code 1" in parts["loader"]["error"]
    assert parts["cifar10"]["left_out"] == "no --data"
    printed = subprocess.run(
        [*COMMAND, "--summary", str(tmp_path / "gpu.json")], capture_output=True, text=True, check=True
    ).stdout
    assert "### Loader" in printed and "exit code 1" in printed


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
