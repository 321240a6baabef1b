"""What is known of a configuration's field, told where it stands: its range, its names, what it decides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

_INF = float("inf")


@dataclass(frozen=True)
class Facts:
    """Of one field; its type says which choices it has."""

    low: float = -_INF
    """Least value of a number, or of each number in a tuple or mapping."""
    high: float = _INF
    """Greatest value."""
    short: str | None = None
    """Name on the command line beside the full one; a key's last part serves anyway where it is unique."""
    free: bool = False
    """Changes where, how fast or how often, never what is computed: a run may continue with another value."""
    reported: bool = False
    """Free, but it decides what a table shows of a run."""
    study: str | None = None
    """Key of a study that sets it, so that settings of runs in the study may not."""
    path: bool = False
    """A path: `~` and variables are put in."""
    in_names: bool = False
    """Text that default names of run folders are made from."""
    added_later: bool = False
    """There were runs before it, which computed what its default says; it does not tell them apart."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Callable[[], Any] | Any = dataclasses.MISSING,
    **facts: Any,
) -> Any:
    """A dataclass field with `Facts`."""
    metadata = {"facts": Facts(**facts)}
    if default_factory is not dataclasses.MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def facts_of(cls: type) -> dict[str, Facts]:
    """Dotted key -> facts, of every field that is not a group; a free group frees its own."""
    return _facts_of(cls)


@functools.cache
def _facts_of(cls: type) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        own: Facts = f.metadata.get("facts", Facts())
        kind = hints[f.name]
        if not is_dataclass(kind):
            found[f.name] = own
            continue
        assert isinstance(kind, type)
        for key, facts in _facts_of(kind).items():
            found[f"{f.name}.{key}"] = dataclasses.replace(facts, free=True) if own.free else facts
    return found


def groups_of(cls: type) -> dict[str, type]:
    """Name -> dataclass, of the fields that are groups of keys."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if is_dataclass(hints[f.name])}
