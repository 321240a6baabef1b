"""torch.compile on the device: near the eager run, and continued to the bit, on a GPU by a new process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.four_blocks import NAME
from tests.gpu.runs import SMALL, Device, cuda_alone, differing
from tests.launched import ROOT, script


def losses(device: Device, stage: str, name: str) -> list[float]:
    lines = (device.folder / name / stage / "tiny" / "metrics.jsonl").read_text().splitlines()
    return [r["train/loss"] for r in map(json.loads, lines) if "train/loss" in r]


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
@pytest.mark.parametrize("precision", ["no", cuda_alone("bf16"), cuda_alone("fp16")])
def test_compiled_runs(stage, precision, device):
    """Kernels that a new process chooses by timing them could round otherwise; they must not be chosen so."""
    model = SMALL if device.type == "cuda" else NAME
    eager = ["--model", model, "--precision", precision, "--max-steps"]
    more = ["--model.compile", "true", *eager]
    whole = device.train(stage, "whole", *more, "12")
    device.train(stage, "parts", *more, "6")
    if device.type == "cuda":
        command = [sys.executable, *script(stage, device.words(stage, "parts", *more, "12"))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        parts = device.final(stage, "parts")
    else:
        parts = device.train(stage, "parts", *more, "12")
    assert differing(whole, parts) == []
    device.train(stage, "eager", *eager, "3")
    tolerance = 1e-3 if precision == "no" else 3e-2
    assert losses(device, stage, "whole")[:3] == pytest.approx(
        losses(device, stage, "eager"), rel=tolerance, abs=tolerance
    )
