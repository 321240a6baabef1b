"""The scripts of examples/, run as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARES = re.compile(r"accuracy (\d+\.\d)%")


def accuracies(name: str, *arguments: str, cwd: Path) -> list[float]:
    """The accuracies in % that an example prints, started from an empty folder on one core."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(cwd.iterdir())
    return [float(share) for share in SHARES.findall(done.stdout)]


def test_a_robust_loss_withstands_wrong_labels(tmp_path: Path) -> None:
    ce, gce = accuracies("noisy_labels.py", cwd=tmp_path)
    assert 50 < ce < gce


def test_the_relation_graph_helps_any_training_loop(tmp_path: Path) -> None:
    without, graph = accuracies("relation_loss.py", cwd=tmp_path)
    assert 30 < without < graph


def test_timm_loads_an_exported_model(tmp_path: Path) -> None:
    [accuracy] = accuracies("timm_model.py", cwd=tmp_path)
    assert accuracy > 70


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
