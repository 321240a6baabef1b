"""Antialiased bilinear resampling of a part of an image of any size to a square of planes.

The filter is Pillow's BILINEAR and torchvision's with antialias=True: a triangle that reaches one pixel
to both sides, or where the image shrinks as many source pixels as one output pixel covers. Between the
two passes nothing is rounded, so results stay within 1/255 of Pillow's, which rounds. On loops and
indices see `pixels`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmd_dist.data.render.jit import kernel
from rmd_dist.data.render.pixels import Bytes, Floats, U

Taps = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], Floats]

_ZERO = np.float32(0)


@kernel
def triangle_taps(start: float, length: float, low: int, high: int, size: int, flip: bool) -> Taps:
    """What each of `size` output pixels is made of, along one axis of a box from `start` on.

    Returns (first, count, weights): output pixel i is the sum of source pixels first[i] and the following,
    count[i] of them, times the next weights. Source pixels are those in [low, high); pixel centres lie at
    half integers. Mirrored if `flip`.
    """
    scale = length / size
    reach = max(scale, 1.0)
    first, count = np.empty(size, np.uint64), np.empty(size, np.uint64)
    weights = np.empty(size * (int(2.0 * reach) + 2), np.float32)
    at = 0
    for i in range(size):
        centre = start + ((size - 1 - i if flip else i) + 0.5) * scale
        begin = max(int(centre - reach + 0.5), low)
        end = min(int(centre + reach + 0.5), high)
        total = 0.0
        for j in range(begin, end):
            total += max(0.0, 1.0 - abs(j + 0.5 - centre) / reach)
        for j in range(begin, end):
            weights[at] = max(0.0, 1.0 - abs(j + 0.5 - centre) / reach) / total
            at += 1
        first[i], count[i] = begin, end - begin
    return first, count, weights


@kernel
def resample_box(
    image: Bytes, top: float, left: float, height: float, width: float,
    cut: bool, flip: bool, size: int, planes: Floats,
) -> None:  # fmt: skip
    """A box of `image` (H, W, 3), resampled to S x S, mirrored if `flip`, into `planes` (3, S * S).

    The box lies inside the image. With `cut` its corners are integers and the filter ends at its border,
    as when the image is cropped first; else the filter reaches across it, as when the whole image is
    resized and then cropped.
    """
    rows, columns = image.shape[0], image.shape[1]
    y_low, y_high, x_low, x_high = 0, rows, 0, columns
    if cut:
        y_low, y_high, x_low, x_high = int(top), int(top + height), int(left), int(left + width)
    y_first, y_count, y_weights = triangle_taps(top, height, y_low, y_high, size, False)
    x_first, x_count, x_weights = triangle_taps(left, width, x_low, x_high, size, flip)
    begin, end = x_first.min(), (x_first + x_count).max()
    source = image.reshape(rows * columns * 3)
    line, corner = U(3 * columns), U(3) * begin
    row = np.empty(U(3) * (end - begin), np.float32)
    at, tap = U(0), U(0)
    for y in range(U(size)):
        _sum_rows(source, corner + y_first[y] * line, line, y_weights[tap : tap + y_count[y]], row)
        tap += y_count[y]
        _sum_columns(row, x_first, x_count, x_weights, begin, planes, at)
        at += U(size)


@kernel
def _sum_rows(source: Bytes, start: np.uint64, line: np.uint64, weights: Floats, row: Floats) -> None:
    """row (n,) = the weighted sum of rows of `source` that begin at `start` and every `line` bytes on."""
    w = weights[0]
    for k in range(U(row.size)):
        row[k] = w * np.float32(source[start + k])
    for j in range(1, weights.size):
        start += line
        w = weights[j]
        for k in range(U(row.size)):
            row[k] += w * np.float32(source[start + k])


@kernel
def _sum_columns(
    row: Floats, first: npt.NDArray[np.uint64], count: npt.NDArray[np.uint64], weights: Floats,
    begin: np.uint64, planes: Floats, at: np.uint64,
) -> None:  # fmt: skip
    """One row of each plane, from `at` on, of `row`, whose first pixel is column `begin`."""
    red, green, blue = planes[0], planes[1], planes[2]
    tap = U(0)
    for x in range(U(first.size)):
        i = U(3) * (first[x] - begin)
        r, g, b = _ZERO, _ZERO, _ZERO
        for _ in range(count[x]):
            w = weights[tap]
            r += w * row[i]
            g += w * row[i + U(1)]
            b += w * row[i + U(2)]
            i += U(3)
            tap += U(1)
        red[at + x], green[at + x], blue[at + x] = r, g, b
