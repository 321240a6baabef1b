"""A review in a real browser: keys and clicks on the page, decisions downloaded, and read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmd_dist.audit.decisions import Decision, read_decisions
from rmd_dist.audit.page import write_page
from tests.audit.browser import BROWSER, Browser
from tests.audit.pages import CLASSES, page

COUNT = 230  # two pages
FOCUS = "Number(document.activeElement.closest('.card')?.dataset.position ?? -1)"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    write_page(tmp_path / "index.html", page(COUNT, more=3))
    with Browser(tmp_path) as browser:
        browser.open(tmp_path / "index.html")
        yield browser


def text(browser: Browser, element: str) -> str:
    found: str = browser.run(f"document.getElementById('{element}').textContent")
    return found


def kinds(browser: Browser) -> list[str]:
    """What is decided of the first ten cards that are shown."""
    shown = "[...document.querySelectorAll('.card')].slice(0, 10).map((card) => card.dataset.kind ?? '')"
    found: list[str] = browser.run(shown)
    return found


def show(browser: Browser, filter: str, value: str) -> list[Any]:
    """Set a filter; what the page says of its range, and how many cards there are."""
    browser.run(
        f"{{ const filter = document.getElementById('{filter}'); filter.value = '{value}';"
        "filter.dispatchEvent(new Event('change', { bubbles: true })); }"
    )
    return [text(browser, "range"), browser.run("document.querySelectorAll('.card').length")]


def decoded(browser: Browser, position: int) -> int:
    """How many pictures a card has when it is scrolled to; every one can be decoded, and is described."""
    found: int = browser.run(
        f"""(async () => {{
            cardOf({position}).scrollIntoView();
            const images = [...cardOf({position}).querySelectorAll("img")];
            while (!images.every((image) => image.src)) await new Promise(requestAnimationFrame);
            await Promise.all(images.map((image) => image.decode()));
            return images.filter((image) => image.naturalWidth > 1 && image.alt).length;
        }})()"""
    )
    return found


def file_of(folder: Path) -> Path:
    """decisions.csv, when it has come."""
    for _ in range(200):
        if (folder / "decisions.csv").is_file():
            break
        time.sleep(0.05)
    return folder / "decisions.csv"


def reload(browser: Browser, *, warned: bool) -> None:
    """Load the page again; `warned`: it must ask first whether decisions are to be left."""
    browser.events.clear()
    browser.send("Page.reload")
    if warned:
        assert browser.wait_for("Page.javascriptDialogOpening")["type"] == "beforeunload"
        browser.call("Page.handleJavaScriptDialog", accept=True)
    browser.wait_for("Page.loadEventFired")
    assert not [event for event in browser.events if event.get("method") == "Page.javascriptDialogOpening"]


def test_a_review(browser: Browser, tmp_path: Path) -> None:
    """Every decision by key, button and list; kept over a reload; read back from the file."""
    focus = [browser.run(FOCUS)]
    for key in ("k", "r", "d", "u", "ArrowRight", "ArrowLeft", "d"):
        browser.press(key)
        focus.append(browser.run(FOCUS))
    assert focus == [0, 1, 2, 3, 4, 5, 4, 5]
    assert text(browser, "progress") == "5 of 230 decided"
    browser.press("z")
    assert browser.run(FOCUS) == 4
    assert text(browser, "progress") == "4 of 230 decided"
    browser.press("r")

    browser.click('.card[data-position="6"] [data-kind="keep"]')
    assert browser.run(FOCUS) == 7
    browser.press("l")
    assert browser.run("document.activeElement.matches('select')")
    browser.press("ArrowDown", "Enter")
    browser.press("Enter")
    assert browser.run(FOCUS) == 8
    browser.press("ArrowLeft", "ArrowLeft", "ArrowLeft", "u")
    assert browser.run(FOCUS) == 8, "6 and 7 are decided"
    wanted = ["keep", "relabel", "drop", "unsure", "relabel", "unsure", "keep", "relabel", "", ""]
    assert kinds(browser) == wanted

    reload(browser, warned=True)
    assert kinds(browser) == wanted
    assert browser.run(FOCUS) == 8
    browser.click("#download")
    assert read_decisions(file_of(tmp_path), "0f3a", CLASSES, 3 * COUNT) == [
        Decision(0, "keep", 0),
        Decision(3, "relabel", 2),
        Decision(6, "drop", -1),
        Decision(9, "unsure", 3),
        Decision(12, "relabel", 5),
        Decision(15, "unsure", 5),
        Decision(18, "keep", 0),
        Decision(21, "relabel", 0),
    ]
    reload(browser, warned=False)
    assert text(browser, "progress") == "8 of 230 decided"


def test_what_is_shown(browser: Browser) -> None:
    """Two pages, filters, the list of keys; never wider than the window, and nothing is fetched."""
    browser.press("k", "r", "r")
    assert decoded(browser, 0) == 1
    assert decoded(browser, 5) == 3
    assert decoded(browser, 199) == 2
    assert show(browser, "kind", "") == ["1 to 200 of 230", 200]
    assert show(browser, "kind", "relabel") == ["1 to 2 of 2", 2]
    assert show(browser, "kind", "undecided") == ["1 to 200 of 227", 200]
    show(browser, "kind", "")
    pair = sum((case.given, case.suggested) == (1, 2) for case in page(COUNT).cases)
    assert show(browser, "pair", "1,2") == [f"1 to {pair} of {pair}", pair]
    show(browser, "pair", "")
    browser.click("#next")
    assert [text(browser, "range"), browser.run(FOCUS)] == ["201 to 230 of 230", 200]
    browser.press("?")
    assert browser.run("document.getElementById('keys').open")
    browser.press("Escape")
    assert not browser.run("document.getElementById('keys').open")

    assert browser.run("innerWidth") == 500
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.title") == "Audit <u>audit</u> & 'co'"
    sent = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert {event["request"]["url"].split(":")[0] for event in sent} <= {"file", "data"}
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]


def test_a_browser_that_keeps_nothing(browser: Browser) -> None:
    """It is said, and the review goes on."""
    assert browser.run("document.getElementById('unkept').hidden")
    browser.run("Storage.prototype.setItem = () => { throw new Error('refused'); }")
    browser.press("k")
    assert not browser.run("document.getElementById('unkept').hidden")
    assert text(browser, "progress") == "1 of 230 decided"
