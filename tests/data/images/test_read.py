"""Any image file's bytes to RGB pixels: each case's pixels, sizes and notes; what is refused and how."""

from __future__ import annotations

import concurrent.futures
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from rmd_dist.data.images.read import FORMATS, MAX_PIXELS, NOTES, SUFFIXES, Unreadable, read_image

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[0:240:48j, 0:240:64j], 90.0), -1).astype(np.uint8)
PICTURE = Image.fromarray(NOISE)
RED, GREEN = (255, 0, 0), (0, 200, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows: np.ndarray, bits: int, colour: int, *chunks: bytes, width: int | None = None) -> bytes:
    """A PNG by hand, of rows of bytes or of 16-bit numbers."""
    raw = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width or rows.shape[1], rows.shape[0], bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def tiff(data: bytes, width: int, height: int, **tags: int) -> bytes:
    """An uncompressed TIFF of one strip by hand, little-endian, of one sample a pixel."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data)}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data


def on_white(colour: Any, alpha: Any) -> np.ndarray:
    return np.asarray(colour) * (np.asarray(alpha) / 255) + 255 * (1 - np.asarray(alpha) / 255)


def error(content: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        read_image(content)
    reason = str(caught.value)
    assert reason.isprintable() and 0 < len(reason) < 300
    return reason


# Formats


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})),
        *(("TIFF", {"compression": "tiff_adobe_deflate"}), ("WEBP", {"lossless": True}), ("GIF", {})),
    ],
)
def test_a_lossless_file_gives_its_pixels(kind: str, options: dict[str, Any]) -> None:
    read = read_image(encode(PICTURE, kind, **options))
    assert np.array_equal(read.pixels, NOISE)
    assert read.pixels.flags.c_contiguous and read.pixels.flags.writeable
    assert (read.width, read.height) == (9, 6)
    assert read.notes == (("palette",) if kind == "GIF" else ())


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_lossy_file_gives_nearly_its_pixels(kind: str, options: dict[str, Any]) -> None:
    read = read_image(encode(Image.fromarray(SMOOTH), kind, **options))
    assert np.abs(read.pixels.astype(int) - SMOOTH).max() <= 8


def test_suffixes_are_of_the_formats() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"} <= SUFFIXES
    assert not SUFFIXES & {".eps", ".ps", ".psd", ".pdf", ".svg", ".txt"}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)


# Depths


RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
RAMP_I = Image.fromarray(RAMP.astype(np.int32))
PGM = b"P5 32 32 65535 " + RAMP.astype(">u2").tobytes()
TWELVE = RAMP >> 4
PACKED = np.stack([TWELVE[:, ::2] >> 4, (TWELVE[:, ::2] & 15) << 4 | TWELVE[:, 1::2] >> 8, TWELVE[:, 1::2]])


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        pytest.param(png(RAMP, 16, 0), ("16-bit", "grey"), id="PNG"),
        pytest.param(encode(Image.fromarray(RAMP), "TIFF"), ("16-bit", "grey"), id="TIFF"),
        pytest.param(
            encode(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"), ("16-bit", "grey"), id="LZW"
        ),
        pytest.param(encode(Image.fromarray(RAMP.astype(">u2")), "TIFF"), ("16-bit", "grey"), id="TIFF, big"),
        pytest.param(
            tiff((65535 - RAMP).astype("<u2").tobytes(), 32, 32, t258=16, t262=0),
            ("16-bit", "grey"),
            id="TIFF, white is 0",
        ),
        pytest.param(
            tiff(np.moveaxis(PACKED, 0, -1).astype(np.uint8).tobytes(), 32, 32, t258=12),
            ("16-bit", "grey"),
            id="TIFF, 12 bits",
        ),
        pytest.param(PGM, ("16-bit", "grey"), id="PGM"),
        pytest.param(
            b"P5 32 32 4095 " + TWELVE.astype(">u2").tobytes(), ("16-bit", "grey"), id="PGM, 12 bits"
        ),
        pytest.param(b"P6 32 32 65535 " + RAMP.repeat(3).astype(">u2").tobytes(), (), id="PPM"),
        pytest.param(png(RAMP.repeat(3, 1), 16, 2, width=32), ("16-bit",), id="PNG, RGB"),
        pytest.param(
            png(np.stack([RAMP, RAMP | 65535], -1).reshape(32, 64), 16, 4, width=32),
            ("16-bit", "grey"),
            id="PNG, grey and alpha",
        ),
        pytest.param(
            png(np.stack([RAMP] * 3 + [RAMP | 65535], -1).reshape(32, 128), 16, 6, width=32),
            ("16-bit",),
            id="PNG, RGB and alpha",
        ),
    ],
)
def test_sixteen_bits_are_scaled(content: bytes, notes: tuple[str, ...]) -> None:
    """A ramp stays one; Pillow's own conversion of grey gives 255 nearly everywhere."""
    read = read_image(content)
    assert np.abs(read.pixels - RAMP[..., None] / 257).max() <= 1
    assert read.notes == notes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
        (b"PF 2 2 -1.0\n" + bytes(48), None),
        (b"Pf 2 2 -1.0\n" + bytes(16), "floating-point"),
        (encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32-bit or signed integers"),
        (tiff(bytes(32), 4, 4, t258=16, t339=2), "32-bit or signed integers"),
        (tiff(bytes(128), 4, 4, t258=64, t339=3), "TIFF: "),
    ],
)
def test_numbers_without_a_white_are_refused_by_name(content: bytes, reason: str | None) -> None:
    assert (reason or "") in error(content)


# Colours


def cmyk(red: int = 0) -> Image.Image:
    return Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (red, 255, 255, 0)])


PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([*RED, *GREEN])
PALETTE.putpixel((1, 0), 1)
BOTH = np.array([[RED, GREEN]])
LAB = Image.frombytes("LAB", (1, 1), bytes([138, 81, 70]))  # sRGB's red: 54, 81, 70


@pytest.mark.parametrize(
    ("content", "expected", "tolerance", "notes"),
    [
        pytest.param(encode(Image.new("1", (2, 1), 1)), [[(255,) * 3] * 2], 0, ("grey",), id="1"),
        pytest.param(encode(Image.new("L", (2, 1), 77)), [[(77,) * 3] * 2], 0, ("grey",), id="L"),
        pytest.param(
            png(np.array([[0b00011011]]), 2, 0, width=4),
            [[(0,) * 3, (85,) * 3, (170,) * 3, (255,) * 3]],
            0,
            ("grey",),
            id="L, 2 bits",
        ),
        pytest.param(encode(PALETTE), BOTH, 0, ("palette",), id="P"),
        pytest.param(encode(PALETTE, "GIF"), BOTH, 0, ("palette",), id="P, GIF"),
        pytest.param(encode(cmyk(), "JPEG"), [[RED] * 8] * 8, 3, ("cmyk",), id="CMYK, JPEG"),
        pytest.param(encode(cmyk(), "TIFF"), [[RED] * 8] * 8, 0, ("cmyk",), id="CMYK, TIFF"),
        pytest.param(
            encode(Image.new("RGB", (1, 1), RED).convert("YCbCr"), "TIFF"), [[RED]], 2, (), id="YCbCr"
        ),
        pytest.param(encode(LAB, "TIFF"), [[RED]], 6, (), id="LAB"),
        pytest.param(
            encode(Image.new("RGBX", (1, 1), (*RED, 9)), "TIFF"), [[RED]], 0, (), id="RGBX"
        ),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(
    content: bytes, expected: Any, tolerance: int, notes: tuple[str, ...]
) -> None:
    read = read_image(content)
    read_as, wanted = read.pixels.astype(int), np.asarray(expected)
    assert read_as.shape == wanted.shape
    assert np.abs(read_as - wanted).max() <= tolerance
    assert set(read.notes) - {"thin"} == set(notes)


RGBA = np.array([[(*RED, 255), (*RED, 128), (*GREEN, 64), (*GREEN, 0)]] * 2, dtype=np.uint8)
COMPOSED = on_white(RGBA[..., :3], RGBA[..., 3:])
GREYS = np.array([[10, 99, 10, 200]] * 2, dtype=np.uint8)
GREY_COMPOSED = np.where(GREYS == 10, 255, GREYS)[..., None].repeat(3, -1)
PREMULTIPLIED = Image.frombytes("RGBA", (4, 2), Image.fromarray(RGBA).convert("RGBa").tobytes())
STRAIGHT = struct.pack("<HHII", 338, 3, 1, 2)  # TIFF's tag of an alpha that is not multiplied in


def with_alpha(mode: str) -> Image.Image:
    grey = Image.fromarray(GREYS).convert(mode)
    grey.putalpha(Image.fromarray(np.where(GREYS == 10, 0, 255).astype(np.uint8)))
    return grey


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encode(Image.fromarray(RGBA)), COMPOSED, id="RGBA, PNG"),
        pytest.param(encode(Image.fromarray(RGBA), "TIFF"), COMPOSED, id="RGBA, TIFF"),
        pytest.param(
            encode(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), COMPOSED, id="RGBA, WebP"
        ),
        pytest.param(
            encode(PREMULTIPLIED, "TIFF").replace(STRAIGHT, STRAIGHT[:-4] + b"\1\0\0\0"),
            COMPOSED,
            id="RGBa, TIFF",
        ),
        pytest.param(encode(with_alpha("L")), GREY_COMPOSED, id="LA"),
        pytest.param(encode(with_alpha("L"), "TIFF"), GREY_COMPOSED, id="LA, TIFF"),
        pytest.param(encode(PALETTE, transparency=1), [[RED, (255,) * 3]], id="P, index"),
        pytest.param(encode(PALETTE, "GIF", transparency=1), [[RED, (255,) * 3]], id="P, GIF"),
        pytest.param(
            encode(PALETTE, transparency=bytes([128, 64])), on_white(BOTH, [[[128], [64]]]), id="P, bytes"
        ),
        pytest.param(png(GREYS, 8, 0, chunk(b"tRNS", b"\0\x0a")), GREY_COMPOSED, id="L and tRNS"),
        pytest.param(
            png(np.array([[0b00011011]]), 2, 0, chunk(b"tRNS", b"\0\x01"), width=4),
            [[(0,) * 3, (255,) * 3, (170,) * 3, (255,) * 3]],
            id="L of 2 bits and tRNS",
        ),
        pytest.param(
            png(np.array([[0b10000000]]), 1, 0, chunk(b"tRNS", b"\0\0"), width=2), [[(255,) * 3] * 2], id="1"
        ),
        pytest.param(
            png(np.array([[*RED, *GREEN]]), 8, 2, chunk(b"tRNS", bytes([0, 255, 0, 0, 0, 0])), width=2),
            [[(255,) * 3, GREEN]],
            id="RGB and tRNS",
        ),
        pytest.param(
            png(
                np.array([[65280, 0, 0, 0, 51400, 0]]),
                16,
                2,
                chunk(b"tRNS", bytes([255, 0, 0, 0, 0, 0])),
                width=2,
            ),
            [[(255,) * 3, GREEN]],
            id="RGB of 16 bits and tRNS",
        ),
        pytest.param(
            png(np.array([[2560, 2561, 25700]]), 16, 0, chunk(b"tRNS", struct.pack(">H", 2560))),
            [[(255,) * 3, (10,) * 3, (100,) * 3]],
            id="16-bit grey and tRNS",
        ),
    ],
)
def test_what_is_transparent_lies_on_white(content: bytes, expected: Any) -> None:
    read = read_image(content)
    assert np.abs(read.pixels - np.asarray(expected)).max() <= 1
    assert "transparent" in read.notes


def test_the_background_can_be_chosen() -> None:
    read = read_image(encode(Image.fromarray(RGBA)), background=(0, 0, 100))
    alpha = RGBA[..., 3:] / 255
    assert np.abs(read.pixels - (RGBA[..., :3] * alpha + np.array([0, 0, 100]) * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_opaque_alpha_is_not_noted(kind: str) -> None:
    opaque = PICTURE.copy()
    opaque.putalpha(255)
    read = read_image(encode(opaque, kind))
    assert read.notes == ()
    assert np.array_equal(read.pixels, NOISE)


def test_clear_pixels_do_not_bleed_when_made_smaller() -> None:
    """Of what is transparent the colour does not count, also not beside what is opaque."""
    rgba = np.zeros((512, 512, 4), np.uint8)
    rgba[:, 256:] = 255
    assert read_image(encode(Image.fromarray(rgba))).pixels.min() == 255


# Orientation


TURNED = {
    1: NOISE,
    2: NOISE[:, ::-1],
    3: NOISE[::-1, ::-1],
    4: NOISE[::-1],
    5: NOISE.transpose(1, 0, 2),
    6: np.rot90(NOISE, -1),
    7: np.rot90(NOISE.transpose(1, 0, 2), 2),
    8: np.rot90(NOISE),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_exif_orientation_is_applied(orientation: int, kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(encode(PICTURE, kind, exif=exif, **options))
    expected = TURNED[orientation]
    assert np.array_equal(read.pixels, expected)
    assert (read.height, read.width) == expected.shape[:2]
    assert read.notes == (() if orientation == 1 else ("rotated",))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photo_is_turned_too(orientation: int) -> None:
    """By its EXIF, though the JPEG is decoded at a fraction of its size."""
    photo = Image.fromarray(SMOOTH).resize((1200, 1050))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = (read_image(encode(photo, "JPEG", quality=95, exif=e)) for e in (b"", exif))
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    assert np.array_equal(undo(turned.pixels), plain.pixels)
    assert (turned.width, turned.height) == ((1050, 1200) if orientation >= 5 else (1200, 1050))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_spoils_no_pixel(exif: bytes) -> None:
    read = read_image(encode(Image.fromarray(SMOOTH), "JPEG", exif=exif))
    assert read.notes == ()
    assert read.pixels.shape == SMOOTH.shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(encode(PICTURE, exif=exif)).pixels, NOISE)


# Frames


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_of_an_animation_the_first_frame_is_taken(kind: str, options: dict[str, Any]) -> None:
    others = [Image.fromarray(NOISE[::-1]), Image.fromarray(NOISE[:, ::-1])]
    read = read_image(encode(PICTURE, kind, save_all=True, append_images=others, **options))
    assert np.array_equal(read.pixels, NOISE)
    assert "animation" in read.notes


def test_a_jpeg_of_several_pictures_is_no_animation() -> None:
    """As telephones write them: the second is another view or a depth."""
    photo = Image.fromarray(SMOOTH)
    read = read_image(encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)], quality=95))
    assert read.notes == ()
    assert np.abs(read.pixels.astype(int) - SMOOTH).max() <= 8


# Sizes


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((100, 60), {}, (100, 60)),
        ((256, 256), {}, (256, 256)),
        ((257, 256), {}, (257, 256)),
        ((512, 257), {}, (510, 256)),
        ((600, 300), {}, (512, 256)),
        ((300, 600), {}, (256, 512)),
        ((3000, 300), {}, (1024, 102)),
        ((1, 1), {}, (1, 1)),
        ((1, 5000), {}, (1, 1024)),
        ((9000, 2), {}, (1024, 1)),
        ((9000, 2), {"shorter": None}, (9000, 2)),
        ((600, 300), {"shorter": 100}, (200, 100)),
        ((600, 300), {"shorter": 100, "longer": 150}, (150, 75)),
        ((600, 300), {"shorter": None, "longer": 150}, (600, 300)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_sizes(kind: str, size: tuple[int, int], limits: dict[str, Any], expected: tuple[int, int]) -> None:
    read = read_image(encode(Image.new("RGB", size, GREEN), kind), **limits)
    assert read.pixels.shape == (expected[1], expected[0], 3)
    assert (read.width, read.height) == size
    assert np.abs(read.pixels.astype(int) - GREEN).max() <= 3
    short, long = sorted(size)
    assert read.notes == (("thin",) if short == 1 or long > 10 * short else ())


def test_smaller_is_antialiased() -> None:
    """A fine checkerboard becomes grey, and not one of its squares."""
    board = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    read = read_image(encode(Image.fromarray(board)))
    assert np.abs(read.pixels.astype(int) - 127).max() <= 12


def test_a_draft_keeps_the_quality() -> None:
    """Decoded at a fraction of its size, a JPEG is nearly what it is when decoded whole, and not moved."""
    rough = Image.fromarray(RANDOM.integers(0, 256, (188, 250, 3), dtype=np.uint8)).resize((2003, 1501))
    content = encode(rough, "JPEG", quality=95)
    whole = Image.fromarray(read_image(content, shorter=None).pixels)
    drafted = read_image(content).pixels
    expected = np.asarray(whole.resize((342, 256), Image.Resampling.BICUBIC)).astype(float)
    assert np.sqrt(((drafted - expected) ** 2).mean()) < 4
    shifted = np.roll(expected, 1, axis=1)
    assert np.sqrt(((drafted - shifted) ** 2).mean()) > 20


# What is broken


def _lying_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0", "not an image of BMP, GIF, JPEG"),
        (b"<html>404</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"8BPS" + bytes(40), "not an image"),
        (b"\xff\xd8\xff", "JPEG: "),
        (b"\x89PNG\r\n\x1a\n", "PNG: "),
        (b"II*\0", "TIFF: "),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP: "),
        (b"BM" + bytes(60), "BMP: "),
        (_lying_png(9000, 9000), "9000 x 9000 pixels are too many, the limit is 64 megapixels"),
        (_lying_png(2**31 - 1, 2**31 - 1), "the limit is 64 megapixels"),
        (_lying_png(MAX_PIXELS, 1), "PNG: "),
        (_lying_png(0, 5), "PNG: "),
        (png(GREYS, 8, 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))), "PNG: "),
        (png(GREYS, 8, 0, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 24)))), ""),
        (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",", "GIF: "),
        (b"P6 99999999 99999999 255 ", "the limit is 64 megapixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(content: bytes, reason: str) -> None:
    assert reason in error(content)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("PNG", {}), ("JPEG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {})),
        *(("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {"progressive": True})),
    ],
)
def test_a_cut_file_is_not_read(kind: str, options: dict[str, Any]) -> None:
    content = encode(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind, **options)
    for share in (0.1, 0.5, 0.8):
        assert error(content[: int(len(content) * share)])


def test_a_progressive_jpeg_of_countless_scans_is_refused() -> None:
    """A few bytes each, and every one passes over all pixels."""
    content = encode(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    start = content.rfind(b"\xff\xda")
    scan = content[start:-2]
    assert "would take too long" in error(content[:start] + scan * 1000 + content[-2:])
    assert read_image(content).pixels.shape == (256, 256, 3)


def test_the_limit_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller has set there stops no image, and is left alone; two plugins have it built in."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in set(FORMATS) - {"TIFF", "WEBP"}:
        assert read_image(encode(PICTURE, kind)).width == 9
    assert "exceeds limit of 20 pixels" in error(encode(PICTURE, "WEBP"))
    assert Image.MAX_IMAGE_PIXELS == 10


def test_an_interrupt_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_image: ImageFile.ImageFile) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_image(encode(PICTURE, "BMP"))


def test_lack_of_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_image: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    assert "memory" in error(encode(PICTURE, "BMP"))


# Beside it


def test_pillow_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither by warnings, in threads or as errors, nor by logging, nor from C."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\xff\xff\xff\x7f\xff\xff\xff\x7f\0\0\0\0"
    corrupt = encode(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    broken = bytearray(encode(Image.fromarray(SMOOTH), "TIFF", compression="tiff_lzw"))
    broken[100:300] = b"\xff" * 200
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(corrupt)).getexif()
        assert caught, "Pillow warns of this"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(read_image, [corrupt] * 40))) == 40
        error(bytes(broken))
        assert not caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(corrupt).pixels.shape == SMOOTH.shape
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_threads_read_the_same() -> None:
    contents = [encode(Image.fromarray(SMOOTH), kind) for kind in FORMATS] * 4
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read_image, contents))
    assert all(
        np.array_equal(read_image(c).pixels, r.pixels) for c, r in zip(contents, together, strict=True)
    )


def test_notes_are_explained() -> None:
    assert list(NOTES) == sorted(NOTES)
    assert {"animation", "transparent", "cmyk", "grey", "palette", "16-bit", "rotated", "thin"} <= set(NOTES)
