"""The docs site: it builds without a warning, loads nothing from elsewhere, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the docs extra is not installed")

ROOT = Path(__file__).parents[1]
FROM_ELSEWHERE = re.compile(r"<(?:script|img|link)[^>]* (?:src|href)=\"?(?:https?:)?//[^>]*>")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = (tmp_path / "reference" / "losses" / "index.html").read_text()
    assert 'id="rmd_dist.losses.classification.build_loss"' in losses
    assert not [tag for page in tmp_path.rglob("*.html") for tag in FROM_ELSEWHERE.findall(page.read_text())]


@pytest.fixture(scope="module")
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "hook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_site(hook: Any, page: str, markdown: str) -> str:
    site: str = hook.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)))
    return site


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("index.md", "[r](docs/results.md#a)", "[r](results.md#a)"),
        ("index.md", "![p](docs/digits.png)", "![p](digits.png)"),
        ("index.md", "[c](CHANGELOG.md)", "[c](changelog.md)"),
        ("index.md", "[c](CITATION.cff), [t](tests)", "c, t"),
        ("gpu.md", "[r](../README.md) [n](nodes.md)", "[r](index.md) [n](nodes.md)"),
        ("gpu.md", "[up](#top) [web](https://example.org)", "[up](#top) [web](https://example.org)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    hook: Any, page: str, written: str, expected: str
) -> None:
    assert on_site(hook, page, written) == expected


@pytest.mark.parametrize("link", ["docs/nothing.md", "configs/nothing.yaml"])
def test_a_dead_link_ends_the_build(hook: Any, link: str) -> None:
    with pytest.raises(Exception, match=f"README.md links to {link}, which is not there"):
        on_site(hook, "index.md", f"[dead]({link})")
