"""YAML from anywhere, looked at before it is built: small, shallow, without aliases.

PyYAML's C loader overflows the stack on deep nesting, and ten lines of aliases can stand for more than any
memory holds ("billion laughs").
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rmd_dist.files import read_bytes

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20  # configurations have groups of keys, some with lists: 3

_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def guarded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """`load` (text -> value) that raises yaml.YAMLError for all that is wrong with the text."""

    def checked(text: str) -> Any:
        _check(text)
        try:
            return load(text)
        except ValueError as error:  # a number of thousands of digits
            raise yaml.YAMLError(f"it has a value that cannot be read: {error}") from error

    return checked


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, looked at as `guarded` does. Raises OSError, ValueError or yaml.YAMLError."""
    return guarded(yaml.safe_load)(read_bytes(path, MAX_CHARACTERS).decode())


def _check(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it has the alias *{event.anchor}; write the value out")
