"""The one JPEG codec: Pillow's pixels, whatever holds the bytes, and damaged files in one line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rmd_dist.data.render.jpeg import DECODER, decode_jpeg, encode_jpeg


def picture(height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): smooth colours, some noise."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([250 * x, 250 * y, 125 * (1 + np.sin(9 * x * y))], axis=-1)
    return (smooth + np.random.default_rng(0).uniform(0, 5, smooth.shape)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (17, 33), (120, 160)], ids=str)
def test_decoded_pixels_are_pillows(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    content = encode_jpeg(image)
    pixels = decode_jpeg(content)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(content))))
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (*shape, 3), True)
    assert np.abs(pixels.astype(int) - image).mean() < 4
    mapped = np.frombuffer(content, np.uint8)  # read-only, as a mapped file is
    for same in (mapped, memoryview(content)):
        np.testing.assert_array_equal(decode_jpeg(same), pixels)


def test_quality_costs_bytes() -> None:
    image = picture(120, 160)
    assert len(encode_jpeg(image, quality=60)) < len(encode_jpeg(image)) < image.nbytes


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_kinds_of_jpeg_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (20, 10)).save(file, "JPEG")
    assert decode_jpeg(file.getvalue()).shape == (10, 20, 3)


def test_what_is_no_whole_jpeg_is_refused() -> None:
    content = encode_jpeg(picture(50, 60))
    for bad in (b"", b"GIF89a", content[:100], content[: len(content) // 2]):
        with pytest.raises(ValueError, match=f"{len(bad)} bytes are no JPEG file, or a damaged one"):
            decode_jpeg(bad)


def test_the_decoder_is_named_with_its_version() -> None:
    assert DECODER.split()[1][0].isdigit()
