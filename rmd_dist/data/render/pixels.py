"""Pixel operations of the augmentations: pure functions of an image and given parameters.

They follow torchvision.transforms.v2.functional on float images. Between the crop and the end an image
is `planes`, float32 (3, H * W) in [0, 255], changed in place: operations that follow one another do
not round in between, as they do on uint8 images there, so both stay within 2/255 per operation.
Channels come first here, and indices are unsigned, because only such loops become vector instructions:
numba tests every signed index for being negative, as Python means that from the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmd_dist.data.render.jit import kernel

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Scratch = tuple[Floats, Floats, npt.NDArray[np.uint64], npt.NDArray[np.uint64], Floats]

U = np.uint64
_ZERO, _ONE, _TWO, _FOUR, _SIX = (np.float32(x) for x in (0, 1, 2, 4, 6))
_HALF, _TOP = np.float32(0.5), np.float32(255)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # torchvision's luma


@kernel
def _clamp(x: np.float32) -> np.float32:
    return min(max(x, _ZERO), _TOP)


@kernel
def make_scratch(size: int) -> Scratch:
    """Room for one S x S image: planes (3, S * S), row (3 * S), taps low, high and weight, each (2, S)."""
    return (
        np.empty((3, size * size), np.float32),
        np.empty(3 * size, np.float32),
        np.empty((2, size), np.uint64),
        np.empty((2, size), np.uint64),
        np.empty((2, size), np.float32),
    )


@kernel
def resized_crop(
    image: Bytes, top: int, left: int, height: int, width: int, flip: bool, scratch: Scratch
) -> None:
    """Cut `image` (S, S, 3) to height x width, stretch to S x S bilinearly, mirror if `flip`, into planes.

    Output i is (1 - w) in[low] + w in[high], on rows (axis 0) and columns (axis 1). Pixel centres are at
    half integers and the border is repeated. Antialiasing widens the filter only where an image
    shrinks; a crop is never larger than the output, so it would change nothing here.
    """
    planes, row, low, high, weight = scratch
    size = image.shape[0]
    for axis in range(2):
        length = width if axis == 1 else height
        for i in range(size):
            centre = max((i + 0.5) * length / size - 0.5, 0.0)
            at = size - 1 - i if axis == 1 and flip else i
            low[axis, at] = int(centre)
            high[axis, at] = min(int(centre) + 1, length - 1)
            weight[axis, at] = centre - int(centre)
    source, red, green, blue = image.reshape(3 * size * size), planes[0], planes[1], planes[2]
    line, corner, at = U(3 * size), U(3 * (top * size + left)), U(0)
    for y in range(U(size)):
        above, below = corner + low[0, y] * line, corner + high[0, y] * line
        w = weight[0, y]
        for k in range(U(3 * width)):
            a = np.float32(source[above + k])
            row[k] = a + w * (np.float32(source[below + k]) - a)
        for x in range(U(size)):
            i, j, w = U(3) * low[1, x], U(3) * high[1, x], weight[1, x]
            red[at] = row[i] + w * (row[j] - row[i])
            green[at] = row[i + U(1)] + w * (row[j + U(1)] - row[i + U(1)])
            blue[at] = row[i + U(2)] + w * (row[j + U(2)] - row[i + U(2)])
            at += U(1)


@kernel
def adjust_brightness(planes: Floats, factor: float) -> None:
    """planes * factor, clamped."""
    f = np.float32(factor)
    for c in range(3):
        plane = planes[c]
        for i in range(plane.size):
            plane[i] = _clamp(plane[i] * f)


@kernel
def adjust_contrast(planes: Floats, factor: float) -> None:
    """Blend with the mean grey of the image: factor * planes + (1 - factor) * mean, clamped."""
    red, green, blue = planes[0], planes[1], planes[2]
    total = 0.0
    for i in range(red.size):
        total += RED * red[i] + GREEN * green[i] + BLUE * blue[i]
    f = np.float32(factor)
    grey = np.float32(total / red.size * (1.0 - factor))
    for c in range(3):
        plane = planes[c]
        for i in range(plane.size):
            plane[i] = _clamp(plane[i] * f + grey)


@kernel
def adjust_saturation(planes: Floats, factor: float) -> None:
    """Blend each pixel with its grey: factor * planes + (1 - factor) * grey, clamped."""
    red, green, blue = planes[0], planes[1], planes[2]
    f = np.float32(factor)
    for i in range(red.size):
        grey = (RED * red[i] + GREEN * green[i] + BLUE * blue[i]) * (_ONE - f)
        red[i] = _clamp(red[i] * f + grey)
        green[i] = _clamp(green[i] * f + grey)
        blue[i] = _clamp(blue[i] * f + grey)


@kernel
def _sector(k: np.float32, value: np.float32, chroma: np.float32) -> np.float32:
    """One channel of HSV to RGB: V - C max(0, min(k, 4 - k, 1)), k in [0, 12) taken modulo 6."""
    k = k - _SIX if k >= _SIX else k
    return value - chroma * max(_ZERO, min(k, _FOUR - k, _ONE))


@kernel
def adjust_hue(planes: Floats, shift: float) -> None:
    """Turn the hue of HSV by `shift` in [-0.5, 0.5] of a full circle; value and chroma stay."""
    red, green, blue = planes[0], planes[1], planes[2]
    turn = np.float32(6.0 * (shift - np.floor(shift)))
    for i in range(red.size):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, g, b)
        chroma = value - min(r, g, b)
        scale = _ONE / (chroma if chroma > _ZERO else _ONE)
        # Sextant of the hue, in [-1, 5]; a grey pixel keeps its colour whatever comes out here.
        hue = (
            (g - b) * scale
            if value == r
            else _TWO + (b - r) * scale
            if value == g
            else _FOUR + (r - g) * scale
        )
        hue += turn
        hue = hue + _SIX if hue < _ZERO else hue
        hue = hue - _SIX if hue >= _SIX else hue
        red[i] = _sector(hue + np.float32(5), value, chroma)
        green[i] = _sector(hue + np.float32(3), value, chroma)
        blue[i] = _sector(hue + np.float32(1), value, chroma)


@kernel
def to_grayscale(planes: Floats) -> None:
    """Replace the three channels by the grey."""
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.size):
        grey = RED * red[i] + GREEN * green[i] + BLUE * blue[i]
        red[i] = grey
        green[i] = grey
        blue[i] = grey


@kernel
def round_planes(planes: Floats, out: Bytes) -> None:
    """Planes to the nearest uint8 values, interleaved into `out` (S, S, 3)."""
    red, green, blue = planes[0], planes[1], planes[2]
    pixels = out.reshape(out.size)
    for i in range(U(red.size)):
        pixels[U(3) * i] = np.uint8(red[i] + _HALF)
        pixels[U(3) * i + U(1)] = np.uint8(green[i] + _HALF)
        pixels[U(3) * i + U(2)] = np.uint8(blue[i] + _HALF)


@kernel
def shifted_crop(image: Bytes, top: int, left: int, padding: int, flip: bool, out: Bytes) -> None:
    """The S x S window at (top, left) of `image` (S, S, 3) with `padding` zero pixels around it.

    top and left are in [0, 2 * padding]; mirrored if `flip`; into `out` (S, S, 3).
    """
    size = image.shape[0]
    source, target = image.reshape(3 * size * size), out.reshape(3 * size * size)
    for k in range(U(target.size)):
        target[k] = 0
    down, right = top - padding, left - padding  # the window's corner in the image
    count = U(3 * max(0, size - abs(right)))  # bytes of a row that are inside both
    first = max(0, right) if flip else max(0, -right)
    for y in range(max(0, -down), min(size, size - down)):
        start, at = U(3 * ((y + down) * size + max(0, right))), U(3 * (y * size + first))
        if flip:
            last = at + count - U(3)
            for k in range(U(0), count, U(3)):
                target[last - k] = source[start + k]
                target[last - k + U(1)] = source[start + k + U(1)]
                target[last - k + U(2)] = source[start + k + U(2)]
        else:
            for k in range(count):
                target[at + k] = source[start + k]


@kernel
def gaussian_blur(planes: Floats, size: int, sigma: float, room: Floats) -> None:
    """Blur S x S planes with a Gaussian of standard deviation `sigma` pixels, cut at 3 sigma.

    The border is reflected, its pixels not repeated. `room` is (S * S,), overwritten.
    """
    radius = min(int(np.ceil(3.0 * sigma)), size - 1)
    weights = np.empty(radius + 1, np.float32)
    for k in range(radius + 1):
        weights[k] = np.exp(-0.5 * (k / sigma) ** 2)
    total = 2.0 * weights.sum() - weights[0]
    for k in range(radius + 1):
        weights[k] /= total
    line = np.empty(size + 2 * radius, np.float32)
    n, middle = U(size), U(radius)
    for c in range(3):
        plane = planes[c]
        for y in range(size):
            start = U(y * size)
            for x in range(n):
                line[middle + x] = plane[start + x]
            for k in range(1, radius + 1):
                line[radius - k], line[radius + size - 1 + k] = line[radius + k], line[radius + size - 1 - k]
            for x in range(n):
                room[start + x] = weights[0] * line[middle + x]
            for k in range(1, radius + 1):
                low, high, w = U(radius - k), U(radius + k), weights[k]
                for x in range(n):
                    room[start + x] += w * (line[low + x] + line[high + x])
        for y in range(size):
            start = U(y * size)
            for x in range(n):
                plane[start + x] = weights[0] * room[start + x]
            for k in range(1, radius + 1):
                low, high = U(_reflected(y - k, size) * size), U(_reflected(y + k, size) * size)
                w = weights[k]
                for x in range(n):
                    plane[start + x] += w * (room[low + x] + room[high + x])


@kernel
def _reflected(i: int, size: int) -> int:
    """Index of the pixel that stands at i, in (-size, 2 * size - 1), beyond a row of `size`."""
    i = -i if i < 0 else i
    return 2 * (size - 1) - i if i >= size else i
