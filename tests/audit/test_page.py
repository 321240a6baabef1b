"""The page of an audit as a file: everything is in it, nothing in it is taken for markup."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from rmd_dist.audit.page import SIDE, write_page
from rmd_dist.errors import Fault
from tests.audit.pages import CLASSES, page


class Elements(HTMLParser):
    """Every element with its attributes, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("audit") / "index.html"
    write_page(file, page(40, more=7))
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(html).scripts[0])
    return found


def test_every_case_is_in_it(data: dict[str, Any]) -> None:
    """As it was given, but for a probability that is no number."""
    wanted = [dataclasses.asdict(case) | {"examples": list(case.examples)} for case in page(40).cases]
    wanted[1]["p_suggested"] = None
    assert data["cases"] == wanted
    assert data["classes"] == list(CLASSES)
    assert data["audit"] == "0f3a"


def test_names_are_text(html: str) -> None:
    """Neither names of classes nor paths nor the summary add an element or end the JSON."""
    elements = Elements(html)
    assert elements.count("script") == 2
    assert not {"b", "i"} & {tag for tag, _ in elements.found}
    assert not [attributes for tag, attributes in elements.found if tag == "img" and "src" in attributes]
    assert html.count("</script>") == 2
    assert "\u2028" not in elements.scripts[0]
    assert "&lt;u&gt;audit&lt;/u&gt;" in html


def test_pictures_are_small_and_each_is_stored_once(data: dict[str, Any]) -> None:
    """Reduced to SIDE with their shape kept; those of CIFAR stay as they are, within the loss of JPEG."""
    given = page(40).pictures
    files = {int(key): base64.b64decode(text) for key, text in data["pictures"].items()}
    stored = {key: simplejpeg.decode_jpeg(file) for key, file in files.items()}
    assert set(stored) == set(range(30))
    assert {pixels.shape[:2] for pixels in stored.values()} == {(32, 32), (SIDE, 13), (29, SIDE)}
    assert data["enlarged"] == [key for key in data["enlarged"] if given[key].shape[0] == 32] != []
    error = np.abs(stored[0].astype(float) - given[0])
    assert error.mean() < 10  # of 255, on noise


def test_only_pictures_that_are_shown_are_looked_up(tmp_path: Path) -> None:
    """Once each: a mapping may decode them on the way."""
    asked: list[int] = []

    class Lazy(dict[int, Any]):
        def __getitem__(self, key: int) -> Any:
            asked.append(key)
            return np.zeros((8, 8, 3), np.uint8)

    write_page(tmp_path / "index.html", dataclasses.replace(page(3), pictures=Lazy()))
    assert sorted(asked) == [0, 1, 2]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """Scores come from arrays."""
    case = dataclasses.replace(
        page(1).cases[0],
        index=np.int64(5),  # type: ignore[arg-type]
        p_given=np.float32(0.25),  # type: ignore[arg-type]
        conflict=np.bool_(True),  # type: ignore[arg-type]
    )
    write_page(tmp_path / "index.html", dataclasses.replace(page(1), cases=[case]))
    [stored] = json.loads(Elements((tmp_path / "index.html").read_text()).scripts[0])["cases"]
    assert (stored["index"], stored["p_given"], stored["conflict"]) == (5, 0.25, True)


def test_confusions_and_matrix(html: str) -> None:
    """The strongest confusion comes first, with the cases that are of it; a cell says its share."""
    first = html.index('class="share"')
    assert html[first:].startswith('class="share">7.0 %')
    button = re.search(r'data-pair="1,0" aria-label="Review the (\d+) ', html)
    assert button
    assert int(button[1]) == sum((case.given, case.suggested) == (1, 0) for case in page(40).cases)
    assert html.count('class="right"') == len(CLASSES)
    assert "7 more flagged images are not on this page" in html


def test_many_classes_have_no_table(tmp_path: Path) -> None:
    """Beyond 20 the matrix cannot be read; the confusions stay."""
    names = tuple(f"class {number}" for number in range(300))
    matrix = np.eye(300)
    matrix[17, 280] = 0.4
    many = dataclasses.replace(page(2), classes=names, matrix=matrix)
    write_page(tmp_path / "index.html", many)
    html = (tmp_path / "index.html").read_text()
    assert "Noise matrix" not in html
    assert html.count('class="share"') == 1
    assert "class 280" in html[html.index('class="share">40.0 %') :][:400]


def test_nothing_is_fetched(html: str) -> None:
    """No address is in the page, and its policy allows none."""
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """One line, and no half page."""
    with pytest.raises(Fault, match=r"cannot write .*index\.html"):
        write_page(tmp_path / "none" / "index.html", page(1))


def test_the_page_needs_no_torch() -> None:
    """It may be written again where only NumPy is loaded."""
    code = "import sys, rmd_dist.audit.page, rmd_dist.audit.decisions; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False", done.stderr
