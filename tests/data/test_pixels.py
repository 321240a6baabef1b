"""Each pixel operation against torchvision's functional one with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from rmd_dist.data.render import pixels

Image = np.ndarray
SIZES = (16, 32)


def sample_images(size: int) -> list[Image]:
    """Noise, a smooth picture, saturated colours, grey, near-black: uint8 (S, S, 3)."""
    random = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / (size - 1.0)
    smooth = np.stack([255 * x, 255 * y, 127 * (1 + np.sin(6 * x * y))], axis=-1)
    corners = 255 * random.integers(0, 2, (size, size, 3))
    grey = np.repeat(random.integers(0, 256, (size, size, 1)), 3, axis=2)
    dark = random.integers(0, 4, (size, size, 3))
    noise = random.integers(0, 256, (size, size, 3))
    return [np.ascontiguousarray(image).astype(np.uint8) for image in (noise, smooth, corners, grey, dark)]


def tensor(image: Image) -> torch.Tensor:
    """uint8 (3, S, S)."""
    return torch.from_numpy(image).permute(2, 0, 1)


def difference(ours: Image, theirs: torch.Tensor) -> int:
    """Greatest difference of any value, of 255."""
    return int(np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int)).max())


def planes_of(image: Image) -> Image:
    return np.ascontiguousarray(image.reshape(-1, 3).T).astype(np.float32)


def rounded(planes: Image) -> Image:
    size = round(planes.shape[1] ** 0.5)
    out = np.empty((size, size, 3), np.uint8)
    pixels.round_planes(planes, out)
    return out


def test_rounding_is_to_nearest_and_keeps_the_ends() -> None:
    planes = np.tile(np.array([0.0, 0.49, 0.51, 254.6], np.float32), (3, 1))
    assert rounded(planes).reshape(4, 3).tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3]
    image = sample_images(32)[0]
    np.testing.assert_array_equal(rounded(planes_of(image)), image)


@pytest.mark.parametrize("size", SIZES)
def test_resized_crop(size: int) -> None:
    random = np.random.default_rng(1)
    boxes = [(0, 0, size, size), (0, 0, 1, 1), (size - 1, 0, 1, size), (3, 5, size // 2, size // 2)]
    for _ in range(30):
        height, width = random.integers(1, size + 1, 2)
        boxes.append((random.integers(size - height + 1), random.integers(size - width + 1), height, width))
    scratch = pixels.make_scratch(size)
    for image in sample_images(size):
        for top, left, height, width in (tuple(int(x) for x in box) for box in boxes):
            theirs = tv.resized_crop(tensor(image), top, left, height, width, [size, size], antialias=True)
            for flip in (False, True):
                pixels.resized_crop(image, top, left, height, width, flip, scratch)
                expected = tv.horizontal_flip(theirs) if flip else theirs
                assert difference(rounded(scratch[0]), expected) <= 1


FACTORS = (0.0, 0.2, 0.6, 0.85, 1.0, 1.3, 1.4, 2.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_colour_factors(name: str, size: int) -> None:
    for image in sample_images(size):
        for factor in FACTORS:
            planes = planes_of(image)
            getattr(pixels, name)(planes, factor)
            assert difference(rounded(planes), getattr(tv, name)(tensor(image), factor)) <= 2
            exact = getattr(tv, name)(tensor(image) / 255.0, factor) * 255.0
            assert np.abs(planes - exact.reshape(3, -1).numpy()).max() < 1e-2


@pytest.mark.parametrize("size", SIZES)
def test_hue(size: int) -> None:
    for image in sample_images(size):
        for shift in (-0.5, -0.31, -0.1, -0.02, 0.0, 0.05, 0.1, 0.4, 0.5):
            planes = planes_of(image)
            pixels.adjust_hue(planes, shift)
            assert difference(rounded(planes), tv.adjust_hue(tensor(image), shift)) <= 3
            exact = tv.adjust_hue(tensor(image) / 255.0, shift) * 255.0
            assert np.abs(planes - exact.reshape(3, -1).numpy()).max() < 1e-2


@pytest.mark.parametrize("size", SIZES)
def test_grayscale(size: int) -> None:
    for image in sample_images(size):
        planes = planes_of(image)
        pixels.to_grayscale(planes)
        theirs = tv.rgb_to_grayscale(tensor(image), num_output_channels=3)
        assert difference(rounded(planes), theirs) <= 1


@pytest.mark.parametrize(("size", "padding"), [(16, 2), (32, 4), (16, 0), (4, 4)])
def test_shifted_crop_is_exact(size: int, padding: int) -> None:
    image = sample_images(size)[0]
    padded = tv.pad(tensor(image), [padding] * 4)
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            cut = tv.crop(padded, top, left, size, size)
            for flip in (False, True):
                out = np.full_like(image, 77)
                pixels.shifted_crop(image, top, left, padding, flip, out)
                assert difference(out, tv.horizontal_flip(cut) if flip else cut) == 0
