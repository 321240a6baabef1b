"""Resampling against a slow loop of its formula and Pillow; blur against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from rmd_dist.data.render.pixels import gaussian_blur, round_planes
from rmd_dist.data.render.resample import resample_box

Array = np.ndarray
Box = tuple[float, float, float, float]  # top, left, height, width
SHAPES = [(1, 1), (1, 40), (40, 1), (7, 280), (32, 32), (75, 100), (301, 203), (5, 3), (400, 24)]


def noise(height: int, width: int) -> Array:
    """Read-only uint8 (H, W, 3)."""
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    image.flags.writeable = False
    return image


def resampled(image: Array, box: Box, size: int, *, cut: bool, flip: bool = False) -> Array:
    """Float planes (3, S * S)."""
    planes = np.full((3, size * size), np.nan, np.float32)
    resample_box(image, *(float(x) for x in box), cut, flip, size, planes)
    return planes


def rounded(planes: Array, size: int) -> Array:
    out = np.empty((size, size, 3), np.uint8)
    round_planes(planes, out)
    return out.astype(int)


def slow_axis(values: Array, start: float, length: float, size: int) -> Array:
    """(size, ...) of (n, ...): each output the mean of all values, weighted by the triangle around it."""
    scale = length / size
    out = []
    for i in range(size):
        distance = np.abs(np.arange(len(values)) + 0.5 - (start + (i + 0.5) * scale))
        weight = np.maximum(0, 1 - distance / max(scale, 1.0))
        out.append(np.tensordot(weight / weight.sum(), values, 1))
    return np.stack(out)


@pytest.mark.parametrize(("shape", "size"), [((23, 37), 16), ((9, 60), 16), ((1, 5), 4)])
@pytest.mark.parametrize("cut", [True, False])
def test_the_formula(shape: tuple[int, int], size: int, cut: bool) -> None:
    image = noise(*shape)
    box = (shape[0] // 4, shape[1] // 5, max(1, shape[0] // 2), shape[1] // 2)
    top, left, height, width = box
    values = image.astype(float)
    if cut:
        values, top, left = values[top : top + height, left : left + width], 0, 0
    down = slow_axis(values, top, height, size)
    expected = slow_axis(down.swapaxes(0, 1), left, width, size).transpose(2, 1, 0)
    ours = resampled(image, box, size, cut=cut).reshape(3, size, size)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    mirrored = resampled(image, box, size, cut=cut, flip=True).reshape(3, size, size)
    np.testing.assert_array_equal(mirrored, ours[:, :, ::-1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 32, 96])
def test_float_boxes_equal_pillows(shape: tuple[int, int], size: int) -> None:
    random = np.random.default_rng(size)
    image, (rows, columns) = noise(*shape), shape
    boxes: list[Box] = [(0, 0, rows, columns)]
    for _ in range(12):
        (height, width), place = random.uniform(0.02, 1, 2) * shape, random.uniform(0, 1, 2)
        boxes.append((place[0] * (rows - height), place[1] * (columns - width), height, width))
    for top, left, height, width in boxes:
        theirs = Image.fromarray(image).resize(
            (size, size), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
        )
        ours = rounded(resampled(image, (top, left, height, width), size, cut=False), size)
        assert np.abs(ours - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cut_boxes_equal_pillows_crop_and_resize(shape: tuple[int, int]) -> None:
    random, size = np.random.default_rng(1), 48
    image, (rows, columns) = noise(*shape), shape
    for _ in range(12):
        height, width = random.integers(1, rows + 1), random.integers(1, columns + 1)
        top, left = random.integers(rows - height + 1), random.integers(columns - width + 1)
        crop = Image.fromarray(image).crop((left, top, left + width, top + height))
        theirs = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
        for flip in (False, True):
            ours = rounded(resampled(image, (top, left, height, width), size, cut=True, flip=flip), size)
            assert np.abs(ours - (theirs[:, ::-1] if flip else theirs)).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_one_colour_stays_itself(value: int) -> None:
    image = np.full((61, 47, 3), value, np.uint8)
    image.flags.writeable = False
    assert (rounded(resampled(image, (0.3, 0.7, 55.1, 44.9), 96, cut=False), 96) == value).all()


@pytest.mark.parametrize(("size", "sigma"), [(32, 0.1), (32, 0.5), (33, 1.3), (96, 2.0), (8, 5.0), (2, 1.0)])
def test_blur_equals_torchvisions(size: int, sigma: float) -> None:
    start = torch.from_numpy(noise(size, size).astype(np.float32)).permute(2, 0, 1)
    radius = min(int(np.ceil(3 * sigma)), size - 1)
    theirs = tv.gaussian_blur(start, [2 * radius + 1] * 2, [sigma] * 2)
    planes = start.reshape(3, -1).contiguous().numpy().copy()
    gaussian_blur(planes, size, sigma, np.empty(size * size, np.float32))
    np.testing.assert_allclose(planes, theirs.reshape(3, -1).numpy(), atol=1e-2)


def test_an_image_of_one_pixel_cannot_be_blurred() -> None:
    planes = np.array([[1.0], [2.0], [3.0]], np.float32)
    gaussian_blur(planes, 1, 1.0, np.empty(1, np.float32))
    assert planes[:, 0].tolist() == [1.0, 2.0, 3.0]
