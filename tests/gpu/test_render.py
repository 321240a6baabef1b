"""Views rendered on the device: the bytes of the CPU's kernels, and nothing waits for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.device import DeviceAugmenter
from tests.data.test_device import CONFIGS, assert_bytes_are_the_kernels, pictures
from tests.gpu.runs import cuda_alone
from tests.gpu.test_step import nothing_waits


@pytest.mark.parametrize("size", [32, cuda_alone(33), cuda_alone(64)])
def test_bytes(size, device):
    for config in CONFIGS:
        assert_bytes_are_the_kernels(config, size, 500, device.type)


@pytest.mark.parametrize("config", [ViewConfig(), CropFlipConfig()])
def test_nothing_waits(config, device, monkeypatch):
    images = torch.from_numpy(pictures(20, 32)["noise"]).to(device.type)
    augmenter = DeviceAugmenter(images, config, seed=5, pinned=device.type == "cuda")
    drawn, index = augmenter.draw(np.arange(20), 0), torch.arange(20, device=device.type)
    assert drawn.is_pinned() == (device.type == "cuda")
    augmenter.render(index, drawn.to(device.type))
    with nothing_waits(device, monkeypatch):
        augmenter.render(index, drawn.to(device.type, non_blocking=True))
