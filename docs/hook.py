"""What mkdocs.yml cannot say: pages from the repository's root, and one API page for each room of rmd_dist.

Links are written as the code host reads them, relative to the file they stand in. On the site a link to a
document goes to its page, and a link to any other file of the repository becomes plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rmd_dist"
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PAGE_OF = {page: name for name, page in FROM_ROOT.items()}
LINK = re.compile(r"\[([^][]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def rooms() -> list[str]:
    """Modules and packages directly under rmd_dist that are an interface: neither presets nor commands."""
    names = {path.stem for path in PACKAGE.iterdir() if re.fullmatch(r"[a-z]+(\.py)?", path.name)}
    return sorted(names - {"commands", "presets"})


def reference(room: str) -> str:
    """A page on a room: its own docstring, then every module in it."""
    modules = sorted(path.relative_to(ROOT).with_suffix("") for path in (PACKAGE / room).rglob("*.py"))
    names = [".".join(path.parts) for path in modules if not path.name.startswith("_")]
    if not names:
        return f"::: rmd_dist.{room}\n"
    parts = [f"::: {name}\n    options: {{heading_level: 2}}\n" for name in names]
    return "\n".join([f"::: rmd_dist.{room}\n    options: {{members: false}}\n", *parts])


def on_config(config: MkDocsConfig) -> None:
    """The API reference ends the navigation."""
    assert config.nav is not None
    config.nav.append({"API reference": [{f"rmd_dist.{room}": f"reference/{room}.md"} for room in rooms()]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Pages that do not lie in docs/."""
    pages = {page: (ROOT / name).read_text() for name, page in FROM_ROOT.items()}
    pages |= {f"reference/{room}.md": reference(room) for room in rooms()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they are on the site; a link to a file that is not there ends the build."""
    written_in = PAGE_OF.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(written_in), target))
        if not (ROOT / place).exists():
            raise PluginError(f"{written_in} links to {target}, which is not there")
        if place not in FROM_ROOT and not place.startswith("docs/"):
            return text
        there = FROM_ROOT.get(place) or place.removeprefix("docs/")
        return f"[{text}]({os.path.relpath(there, page.file.src_uri + '/..')}{anchor})"

    return LINK.sub(on_site, markdown)
