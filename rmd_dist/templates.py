"""Jinja as every page and report here uses it."""

from __future__ import annotations

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rmd_dist.files import to_json


@functools.cache
def environment(package: str) -> Environment:
    """Of `package`'s templates/: what goes into HTML is escaped, and a name that is not given is an error.

    Markdown has the filter `plain` instead; `tojson` writes JSON as every file here does.
    """
    made = Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["plain"] = plain
    made.policies["json.dumps_function"] = to_json
    made.policies["json.dumps_kwargs"] = {}
    return made


def plain(text: str) -> str:
    """`text` as one line that Markdown shows as it stands."""
    line = " ".join(text.split())
    for character in "\\`*|<>":
        line = line.replace(character, f"\\{character}")
    return line
