"""The device that these tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.runs import Device

HERE = Path(__file__).parent


def device_type(config: pytest.Config) -> str:
    """--device, else cuda where there is a GPU."""
    named: str | None = config.getoption("--device")
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a CPU run the first case of each test: the others' code runs in tests of its own."""
    if device_type(config) == "cuda":
        return
    kept, seen = [], set()
    for item in items:
        test = item.nodeid.split("[")[0]
        if HERE in item.path.parents and (test in seen or item.get_closest_marker("cuda_alone")):
            continue
        kept.append(item)
        seen.add(test)
    items[:] = kept


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("slow")


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    """The device, with a folder for runs."""
    return Device(device_type(request.config), tmp_path)


@pytest.fixture
def cuda(device: Device) -> Device:
    """A CUDA device, for what has no CPU form."""
    if device.type != "cuda":
        pytest.skip("has no CPU form")
    return device
