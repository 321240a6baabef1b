"""The presets that come with the package, found by name: `configs/` of the repository, packed into it."""

from __future__ import annotations

import difflib
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.files import expanded

FOLDER = Path(__file__).parents[1] / "presets"
"""Where they are: in a checkout a link to `configs/`, in an installed package a folder of its own."""


def names() -> list[str]:
    """Every preset by name, such as `digits/distill`, in order."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file that `name` means: that on disk, else the preset so called, with or without `.yaml`.

    Raises ConfigError, one line with presets of similar names, where there is neither.
    """
    path, known = Path(expanded(name)), names()
    preset = name.removesuffix(".yaml")
    if _exists(path) and not (path.is_dir() and preset in known):
        return path
    if preset in known:
        return FOLDER / f"{preset}.yaml"
    near = difflib.get_close_matches(preset, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "rmd --presets lists them;"
    raise ConfigError(f"{name} is neither a file nor a preset; {hint} a path will do, too")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
