"""The device that these tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.runs import Device


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    """--device, else the GPU; without one the test is skipped."""
    named = request.config.getoption("--device")
    if named is None and not torch.cuda.is_available():
        pytest.skip("no CUDA device; --device cpu runs what has a CPU form")
    return Device(named or "cuda", tmp_path)


@pytest.fixture
def cuda(device: Device) -> Device:
    """A CUDA device, for what has no CPU form."""
    if device.type != "cuda":
        pytest.skip("has no CPU form")
    return device
