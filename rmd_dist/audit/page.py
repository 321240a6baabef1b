"""The page on which a person reviews an audit: one HTML file with its pictures, style and script in it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from rmd_dist.errors import writing
from rmd_dist.files import atomic_path
from rmd_dist.templates import environment

SIDE = 96
"""Pixels of the longer side of a picture in the page, at most."""

ENLARGED = 48
"""Pictures whose longer side is at most this are enlarged with their pixels visible."""

QUALITY = 85  # of JPEG; 95 for small pictures, whose every pixel is looked at
CONFUSIONS = 8
LARGEST_TABLE = 20  # classes; a larger noise matrix is no longer read as a table


@dataclass(frozen=True)
class Case:
    """An image whose label is doubted."""

    index: int
    """Number of the image in the audit."""
    path: str
    """Of its file; "" where images have none, as CIFAR."""
    given: int
    """Class number of its label."""
    suggested: int
    """Class number that it should have."""
    p_given: float
    """Probability that the given label is right."""
    p_suggested: float
    """Probability that the suggested one is."""
    picture: int
    """Key of the image in `Page.pictures`."""
    examples: tuple[int, ...]
    """Keys of the nearest rightly labelled images of the suggested class."""
    duplicate_of: str = ""
    """Name of the first image of equal content, "" if there is none."""
    conflict: bool = False
    """Images of equal content have different labels."""


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    name: str
    """Of the audit."""
    audit_id: str
    """Hexadecimal; stands in decisions.csv, so that the decisions of another audit are refused."""
    classes: tuple[str, ...]
    """Names, by class number."""
    cases: Sequence[Case]
    """Worst first."""
    pictures: Mapping[int, NDArray[np.uint8]]
    """RGB pixels (H, W, 3) of any size; each one that a case names is looked up once, no other is."""
    summary: Sequence[tuple[str, str]]
    """Lines of a small table: what, value."""
    matrix: NDArray[np.float64]
    """(C, C): share of the images of true class c that are labelled j."""
    more: int = 0
    """Flagged images that are not among the cases."""


def write_page(path: Path, page: Page) -> None:
    """Write the page as one file that needs no other, and no network; whole or not at all.

    Raises Fault if it cannot be written.
    """
    html = (
        environment(__package__)
        .get_template("page.html")
        .render(page=page, data=_data(page), confusions=_confusions(page), table=_table(page))
    )
    with writing(path), atomic_path(path) as temporary:
        # Bytes of a name that are no UTF-8 cannot be shown; they become question marks.
        temporary.write_bytes(html.encode("utf-8", "replace"))


def _data(page: Page) -> dict[str, Any]:
    """What the script works on."""
    pictures = dict(_pictures(page))
    return {
        "audit": page.audit_id,
        "classes": page.classes,
        "cases": [_plain(case) for case in page.cases],
        "pictures": {key: base64.b64encode(_jpeg(pixels)).decode() for key, pixels in pictures.items()},
        "enlarged": [key for key, pixels in pictures.items() if max(pixels.shape[:2]) <= ENLARGED],
    }


def _plain(case: Case) -> dict[str, Any]:
    """A case in Python's own numbers, as JSON wants them; it may hold NumPy's."""
    return {
        "index": int(case.index),
        "path": case.path,
        "given": int(case.given),
        "suggested": int(case.suggested),
        "p_given": float(case.p_given),
        "p_suggested": float(case.p_suggested),
        "picture": int(case.picture),
        "examples": [int(key) for key in case.examples],
        "duplicate_of": case.duplicate_of,
        "conflict": bool(case.conflict),
    }


def _pictures(page: Page) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(key, pixels) of each picture that is shown, reduced to SIDE."""
    for key in dict.fromkeys(int(key) for case in page.cases for key in (case.picture, *case.examples)):
        pixels = page.pictures[key]
        if max(pixels.shape[:2]) > SIDE:
            image = Image.fromarray(pixels)
            image.thumbnail((SIDE, SIDE))
            pixels = np.asarray(image)
        yield key, np.ascontiguousarray(pixels)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    small = max(pixels.shape[:2]) <= ENLARGED
    quality, colours = (95, "444") if small else (QUALITY, "420")
    file: bytes = simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=colours)
    return file


def _confusions(page: Page) -> list[dict[str, Any]]:
    """The largest shares of a class that are labelled as another, and how many cases there are of each."""
    count = len(page.classes)
    shares = np.nan_to_num(page.matrix)
    np.fill_diagonal(shares, 0.0)
    largest = np.argpartition(-shares, min(CONFUSIONS, shares.size - 1), axis=None)[:CONFUSIONS]
    cases = Counter((int(case.given), int(case.suggested)) for case in page.cases)
    confusions = []
    for place in sorted(largest.tolist(), key=lambda place: -shares.flat[place]):
        true, labelled = divmod(place, count)
        share = float(shares[true, labelled])
        if share >= 0.001:
            names = {"true": page.classes[true], "labelled": page.classes[labelled]}
            found = {"pair": f"{labelled},{true}", "cases": cases[labelled, true], "share": share}
            confusions.append(names | found)
    return confusions


def _table(page: Page) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows (true class, cells) of the noise matrix; none if it is too large to be read.

    The heat of a cell off the diagonal is relative to the largest of those, which are far below the diagonal.
    """
    if len(page.classes) > LARGEST_TABLE:
        return []
    shares = np.nan_to_num(page.matrix)
    off = shares[~np.eye(len(shares), dtype=bool)]
    largest = max(float(off.max(initial=0.0)), 0.01)
    return [
        (
            name,
            [
                {
                    "percent": 100 * float(share),
                    "heat": float(share) if labelled == true else float(share) / largest,
                    "right": labelled == true,
                    "label": page.classes[labelled],
                }
                for labelled, share in enumerate(row)
            ],
        )
        for true, (name, row) in enumerate(zip(page.classes, shares, strict=True))
    ]
