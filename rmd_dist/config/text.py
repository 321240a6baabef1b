"""YAML from anywhere, looked at before it is built: small, shallow, without aliases.

PyYAML's C loader overflows the stack on deep nesting, and ten lines of aliases can stand for more than any
memory holds ("billion laughs"). Words mean what they do in YAML 1.2: `no` and `off` are text, as are `007`
and `12:30`, which PyYAML takes for false, 7 and 750.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rmd_dist.files import read_bytes

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20  # configurations have groups of keys, some with lists: 3

_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - not those of YAML 1.1


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def parse_yaml(text: str) -> Any:
    """The value of a text. Raises yaml.YAMLError for all that is wrong with it."""
    _check(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(f"it has a value that cannot be read: {error}") from error


def read_yaml(path: Path) -> Any:
    """The value of a file. Raises OSError, ValueError or yaml.YAMLError."""
    return parse_yaml(read_bytes(path, MAX_CHARACTERS).decode())


def _check(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    depth = 0
    for event in yaml.parse(text, Loader=_SAFE):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it has the alias *{event.anchor}; write the value out")
