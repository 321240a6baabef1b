"""A review in a real browser: keys and clicks on the page, decisions downloaded, and read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from rmd_dist.audit.decisions import Decision, read_decisions
from rmd_dist.audit.page import write_page
from tests.audit.pages import CLASSES, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COUNT = 230  # two pages
REVIEW = Path(__file__).with_name("review.js")


def browse(file: Path, profile: Path) -> str:
    """The document at `file`, 500 pixels wide, when its scripts have ended."""
    assert BROWSER
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        *("--window-size=500,900", "--virtual-time-budget=20000", "--dump-dom", file.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("review")
    file = folder / "index.html"
    write_page(file, page(COUNT, more=3))
    html = file.read_text(encoding="utf-8")
    file.write_text(
        html.replace("</body>", f"<script type=module>{REVIEW.read_text()}</script></body>"), encoding="utf-8"
    )
    document = browse(file, folder / "profile")
    found = re.search(r'<pre id="outcome">(.*)</pre>', document, re.DOTALL)
    assert found, document[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_review_in_a_browser(outcome: dict[str, Any], tmp_path: Path) -> None:
    """Every decision by key, button and list; kept over a reload, filtered, and read back from the CSV."""
    assert not outcome["errors"]
    states = [outcome[state] for state in ("start", "restored", "relabelled", "pair", "next")]
    for state in states:
        assert state["images"], "a picture is broken or has no alternative text"
        assert state["width"] == 500
        assert state["wide"] <= 0, "the page scrolls sideways"
        assert state["title"] == "Audit <u>audit</u> & 'co'"
    assert [(state["range"], state["cards"]) for state in states] == [
        ("1 to 200 of 230", 200),
        ("1 to 200 of 230", 200),
        ("1 to 3 of 3", 3),
        ("1 to 8 of 8", 8),
        ("201 to 230 of 230", 30),
    ]
    assert sum((case.given, case.suggested) == (1, 2) for case in page(COUNT).cases) == 8

    # k, r, d, u go on; right, left; d, undone; r; Keep clicked on card 7; another label chosen, Enter.
    assert outcome["start"]["focus"] == 0
    assert outcome["focus"] == [1, 2, 3, 4, 5, 4, 5, 4, 5, 7, 8]
    assert outcome["pressed"] == 5
    assert outcome["chosenStays"]
    assert outcome["help"]

    assert outcome["start"]["progress"] == "0 of 230 decided"
    assert outcome["restored"]["progress"] == "7 of 230 decided"
    assert outcome["restored"]["kinds"] == "keep relabel drop unsure relabel  keep relabel"
    assert outcome["restoredFocus"] == 5
    assert outcome["next"]["focus"] == 200

    assert (outcome["warned"], outcome["warnedAgain"], outcome["warnedAfter"]) == (True, True, False)
    assert outcome["file"] == "decisions.csv"
    assert outcome["csv"].startswith("audit,index,path,decision,label\r\n0f3a,0,")
    file = tmp_path / outcome["file"]
    file.write_bytes(outcome["csv"].encode())
    assert read_decisions(file, "0f3a", CLASSES, 3 * COUNT) == [
        Decision(0, "keep", 0),
        Decision(3, "relabel", 2),
        Decision(6, "drop", -1),
        Decision(9, "unsure", 3),
        Decision(12, "relabel", 5),
        Decision(18, "keep", 0),
        Decision(21, "relabel", 0),
    ]
