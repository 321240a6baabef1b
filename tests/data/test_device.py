"""Views that a device renders, here the CPU as one: the bytes of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rmd_dist.data.loader as loader_module
from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.augment import Augmenter
from rmd_dist.data.render.device import DeviceAugmenter
from rmd_dist.errors import ConfigError
from tests.data.batches import COUNT, GLOBAL, KINDS, assert_equal, pixels, read

STRONG = ViewConfig(brightness=1.5, contrast=2.0, saturation=3.0, hue=0.5, jitter_p=1.0, count=4)
CONFIGS: list[Any] = [
    ViewConfig(),
    STRONG,
    ViewConfig(grayscale_p=1.0, jitter_p=0.0, flip_p=1.0),
    CropFlipConfig(),
    CropFlipConfig(padding=3, flip_p=1.0, count=3),
    CropFlipConfig(padding=0, flip_p=0.0),
]


def pictures(n: int, size: int) -> dict[str, np.ndarray]:
    """uint8 (n, size, size, 3): noise, areas of one colour, greys (which have no hue), black and white."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, size // 8 + 1, size // 8 + 1, 3), np.uint8)
    noise = random.integers(0, 256, (n, size, size, 3), np.uint8)
    return {
        "noise": noise,
        "areas": coarse.repeat(8, 1).repeat(8, 2)[:, :size, :size].copy(),
        "grey": noise[..., :1].repeat(3, 3),
        "extremes": noise // 128 * 255,
    }


def assert_bytes_are_the_kernels(config: Any, size: int, count: int, device: str) -> None:
    """Of `count` pictures of each kind, rendered on a device."""
    samples = np.random.default_rng(1).permutation(count)
    kernels = Augmenter(config, size=size, seed=5)
    for name, images in pictures(count, size).items():
        data = images.reshape(-1)
        data.flags.writeable = False
        expected = kernels.render(data, samples * images[0].size, samples, 7)
        augmenter = DeviceAugmenter(torch.from_numpy(images.copy()).to(device), config, seed=5)
        drawn = augmenter.draw(samples, 7).to(device)
        ours = augmenter.render(torch.from_numpy(samples).to(device), drawn)
        assert len(ours) == len(expected)
        other = int((torch.stack(ours).cpu() != expected).sum())
        assert other == 0, f"{other} of {expected.numel()} bytes of {name} are others, {config}"
        assert all(view.is_contiguous() for view in ours)


@pytest.mark.parametrize("size", [8, 32, 33])
@pytest.mark.parametrize("config", CONFIGS)
def test_its_bytes_are_the_kernels(config: Any, size: int) -> None:
    assert_bytes_are_the_kernels(config, size, 60, "cpu")


@pytest.mark.parametrize("augment", [ViewConfig(), CropFlipConfig()], ids=["views", "crop"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_loaders_threads(
    build: Any, kind: str, augment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From either source, from any batch on, of a subset, of a rank."""
    monkeypatch.setattr(loader_module, "RESIDENT_BATCH", 40)  # images are read in three batches
    for where in ({}, {"indices": np.arange(COUNT)[::-2], "rank": 1, "world_size": 3, "batch_size": 10}):
        usual = build(kind=kind, augment=augment, **where)
        loader = build(kind=kind, augment=augment, device=torch.device("cpu"), **where)
        for epoch, start in ((0, 0), (3, 2)):
            batches = read(loader, epoch, start)
            assert all(batch.views == () and batch.drawn is not None for batch in batches)
            assert_equal([loader.rendered(batch) for batch in batches], read(usual, epoch, start))


def test_batches_that_have_their_views_are_left_alone(build: Any) -> None:
    loader = build(kind="memory", augment=ViewConfig())
    (first, *_) = read(loader)
    assert loader.rendered(first) is first


def test_what_it_does_not_render_is_refused(build: Any) -> None:
    device = torch.device("cpu")
    for options in ({"augment": None}, {"augment": ViewConfig(), "sizes": (48,)}):
        with pytest.raises(ConfigError, match=r"data\.render = device makes random views of images of one"):
            build(kind="memory", device=device, **options)
    with pytest.raises(ConfigError, match="are not blurred"):
        build(kind="memory", device=device, augment=ViewConfig(blur_p=0.5))
    with pytest.raises(ConfigError, match="padding is 33"):
        build(kind="memory", device=device, augment=CropFlipConfig(padding=33))


def test_views_change_with_the_epoch_and_the_seed(build: Any) -> None:
    where = {"kind": "memory", "augment": ViewConfig(), "device": torch.device("cpu"), "batch_size": GLOBAL}
    one, other = build(**where), build(**where | {"seed": 8})
    seen = [
        pixels([loader.rendered(batch) for batch in read(loader, epoch)])
        for loader, epoch in ((one, 0), (one, 0), (one, 1), (other, 0))
    ]
    common = set.intersection(*(set(images) for images in seen))
    first, again, later, reseeded = ([images[i] for i in sorted(common)] for images in seen)
    assert first == again
    assert all(a != b for a, b in zip(first, later, strict=True))
    assert all(a != b for a, b in zip(first, reseeded, strict=True))
