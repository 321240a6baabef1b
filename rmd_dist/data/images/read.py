"""Any image file's bytes to RGB pixels, by Pillow; what cannot be read says why in one line.

Colours are converted by formula, profiles are not applied. Safe in threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin, _imaging

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read: what every Pillow has. Others start programs (EPS) or are read by little-tested code."""

SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
"""Ends of the names of image files, as `.jpg`, in lower case."""

MAX_PIXELS = 64_000_000
"""Larger images are refused by their header: decoded they would take a gigabyte."""

NOTES = {
    "16-bit": "16 bits a colour, scaled to 8",
    "animation": "of several frames, of which the first is taken",
    "cmyk": "converted from CMYK",
    "grey": "grey or black and white",
    "palette": "of a palette's colours",
    "rotated": "turned or mirrored as its EXIF orientation says",
    "thin": "1 pixel wide or high, or longer than 10 times its width",
    "transparent": "transparent somewhere, composited on the background",
}
"""Cases worth a count: name and meaning."""

_MOST_SCANS = 30  # at MAX_PIXELS, of a progressive JPEG: seconds, for a few bytes each
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr
with contextlib.suppress(
    AttributeError, OSError
):  # libtiff writes to stderr itself; it may be linked statically
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class ReadImage:
    """An image as it was read."""

    pixels: npt.NDArray[np.uint8]
    """(H, W, 3), C-contiguous RGB, at most the asked size."""

    width: int
    """Of the file's image, upright, before it was made smaller."""

    height: int

    notes: tuple[str, ...]
    """Sorted names of the cases it is, of NOTES."""


class Unreadable(Exception):
    """The bytes are no image that can be read; the message is the reason, one short plain line."""


def read_image(
    content: bytes,
    *,
    shorter: int | None = 256,
    longer: int = 1024,
    background: tuple[int, int, int] = (255, 255, 255),
) -> ReadImage:
    """The first frame of an image file's bytes, upright, as RGB on `background`.

    The shorter side gets at most `shorter` pixels and the longer at most `longer`, by antialiased bicubic
    resizing, never enlarged; `shorter` None leaves the size as it is. Raises Unreadable for what is broken,
    of none of FORMATS, of more than MAX_PIXELS, or of numbers whose black and white are unknown.
    """
    _silence()
    name = _format_of(content)
    try:
        # Not by Image.open: it loses a plugin's reason, and its limit on pixels is the caller's to set. The
        # plugins of TIFF and WebP have that limit too; as Pillow has it, it is above ours.
        factory, _ = Image.OPEN[name]
        image = factory(io.BytesIO(content), "")
        _refuse_bombs(image, content)
        notes, mode = _notes(image, name), _raw_mode(image)
        whole, drafted, turned = image.size, None, 1
        if name == "JPEG":  # decoded at 1/2, 1/4 or 1/8 where that is at least twice what is wanted
            wanted = _fit(whole, shorter, longer)
            drafted = image.draft(None, (2 * wanted[0], 2 * wanted[1]))
        if name == "TIFF":  # which Pillow itself turns while it loads
            turned = _orientation(image)
        image.load()
        whole = image.size if name == "TIFF" else whole
        orientation = _orientation(image)
        image.fp = None  # a WebP's holds all pixels once more
        rgb, transparent = _to_rgb(image, name, mode, background)
        rgb = _resized(rgb, _fit(whole, shorter, longer), drafted[1] if drafted else None)
        if orientation > 1:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        pixels = np.array(rgb)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        limit = f"the limit is {MAX_PIXELS // 10**6} megapixels"
        raise Unreadable(f"too many pixels, {limit} ({_reason(name, error)})") from error
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise Unreadable(_reason(name, error)) from error
    width, height = whole if orientation < 5 else whole[::-1]
    notes |= {"rotated"} if max(turned, orientation) > 1 else set()
    notes |= {"transparent"} if transparent else set()
    return ReadImage(pixels, width, height, tuple(sorted(notes)))


def _silence() -> None:
    """Warnings of Pillow are of files that are broken in part, not of the program: nobody can act on them.

    Said at every call, as a caller's `catch_warnings` forgets it; itself it would not be safe in threads.
    """
    if _QUIET not in warnings.filters[:1]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _format_of(content: bytes) -> str:
    """The one of FORMATS that the first bytes are of."""
    if not content:
        raise Unreadable("the file is empty")
    for name in FORMATS:
        _, accept = Image.OPEN[name]
        if accept is not None and accept(content[:16]) is True:
            return name
    raise Unreadable(f"not an image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _refuse_bombs(image: ImageFile.ImageFile, content: bytes) -> None:
    """Raise Unreadable if the header promises more than can be decoded in decent memory and time."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        limit = f"the limit is {MAX_PIXELS // 10**6} megapixels"
        raise Unreadable(f"{width} x {height} pixels are too many, {limit}")
    scans = content.count(b"\xff\xda") if image.info.get("progressive") else 0
    if scans * width * height > _MOST_SCANS * MAX_PIXELS:
        raise Unreadable(f"{scans} scans of {width} x {height} pixels would take too long")


def _fit(size: tuple[int, int], shorter: int | None, longer: int) -> tuple[int, int]:
    """(width, height) of the same aspect within the limits; no side becomes 0."""
    if shorter is None:
        return size
    scale = min(1.0, shorter / min(size), longer / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the file's own pixels, such as `RGB;16B`; empty where it has none."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _notes(image: ImageFile.ImageFile, name: str) -> set[str]:
    """What is known before the pixels are."""
    short, long = sorted(image.size)
    known = {
        "16-bit": ";16" in _raw_mode(image) or image.mode.startswith("I"),
        # A JPEG's further images are other views or depths of the same.
        "animation": name != "JPEG" and getattr(image, "is_animated", False),
        "cmyk": image.mode == "CMYK",
        "grey": image.mode[0] in "1I" or image.mode in ("L", "LA", "La") or _raw_mode(image) == "LA;16B",
        "palette": image.mode in ("P", "PA"),
        "thin": short == 1 or long > 10 * short,
    }
    return {note for note, is_so in known.items() if is_so}


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or EXIF is broken, which spoils no pixel."""
    try:
        value = image.getexif().get(0x0112)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _to_rgb(
    image: ImageFile.ImageFile, name: str, raw_mode: str, background: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    """(the image in mode RGB, whether it was transparent somewhere)."""
    if image.mode == "F":
        raise Unreadable(f"{name}: floating-point pixels, whose black and white are unknown")
    if image.mode == "I" and name == "TIFF":
        raise Unreadable(f"{name}: pixels of 32-bit or signed integers, whose black and white are unknown")
    if image.mode.startswith("I"):
        flat: Image.Image = _eight_bits(image, raw_mode)
    else:
        flat = image
        _mend_transparency(flat, raw_mode)
    if not flat.has_transparency_data:
        return flat.convert("RGB"), False
    flat = flat if flat.mode == "RGBA" else flat.convert("RGBA")  # convert copies always
    lowest, _ = flat.getchannel("A").getextrema()
    if lowest == 255:
        return flat.convert("RGB"), False
    canvas = Image.new("RGB", flat.size, background)
    canvas.paste(flat, mask=flat)
    return canvas, True


def _eight_bits(image: ImageFile.ImageFile, raw_mode: str) -> Image.Image:
    """16-bit grey as L, or LA if one grey is transparent; Pillow's own conversion clips at 255."""
    bits = 12 if raw_mode == "I;12" else 16
    values = np.asarray(image)
    values = np.clip(values, 0, (1 << bits) - 1)
    scaled = np.rint(np.arange(1 << bits) * (255 / ((1 << bits) - 1))).astype(np.uint8)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:  # white is zero
        scaled = scaled[::-1]
    grey = Image.fromarray(scaled[values])
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _mend_transparency(image: Image.Image, raw_mode: str) -> None:
    """The transparent colour of a PNG is in the file's bits, and Pillow's pixels have 8."""
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and ";16" in raw_mode:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif isinstance(clear, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw_mode] & 255


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None
) -> Image.Image:
    """`image`, or its part `box`, made `size`.

    Bicubic: resized again to a model's 224, photographs are 2.1 grey levels (rms) from those resized once,
    2.9 by bilinear, 1.9 by Lanczos at 1.4 times the time. The gap halves the time and costs 0.1.
    """
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2.0)


def _reason(name: str, error: Exception) -> str:
    """One short plain line."""
    if isinstance(error, MemoryError):
        return f"{name}: more memory is needed than there is"
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"{name}: {text[:200]}"
