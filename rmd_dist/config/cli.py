"""Files, flags and sections of studies into typed configurations; errors in one line.

All three become dotted keys of the schema with the values that were given; jsonargparse makes types of them.
"""

from __future__ import annotations

import difflib
import functools
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rmd_dist import __version__
from rmd_dist.config.checks import validate
from rmd_dist.config.convert import to_dict
from rmd_dist.config.fields import facts_of, groups_of
from rmd_dist.config.measuring import AuditConfig, EvaluateConfig
from rmd_dist.config.presets import find
from rmd_dist.config.schema import AnyConfig
from rmd_dist.config.text import MAX_CHARACTERS, parse_yaml
from rmd_dist.errors import ConfigError

Config = TypeVar("Config", bound=AnyConfig | AuditConfig | EvaluateConfig)

CONFIG, PRINT = "config", "print_config"  # flags that are no keys


def parse(cls: type[Config], argv: Sequence[str] | None = None, positional: str | None = None) -> Config:
    """Parse `argv` (default: the process's) into a validated `cls`.

    The defaults, then each `--config` in turn, then the flags. `positional` names a key whose value may also
    stand without its flag. Raises ConfigError, one line, for an unknown key or flag, a bad value or an
    unreadable file.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if asked := [word for word in words if word in ("-h", "--help", "--version")]:
        _parser(cls).parse_args(asked[:1])  # prints, and ends the process
    flags = _flags(words, cls, positional)
    values: dict[str, Any] = {}
    for key, name in flags:
        if key == CONFIG:
            values |= _read(name, cls)
    config: Config = validate(_typed(cls, values | _folded(flags, values, cls), ""))
    if any(key == PRINT for key, _ in flags):
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        sys.exit(0)
    return config


def from_dict(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """A typed `cls` of its defaults and nested `values`, ranges unchecked.

    Raises ConfigError, one line that begins with `where`, for an unknown key or a value of another type.
    """
    return _typed(cls, _dotted(values, cls, f"{where}: "), f"{where}: ")


def _flags(words: Sequence[str], cls: type, positional: str | None) -> list[tuple[str, str]]:
    """(full key, text) of each `--key value`, `--key=value` and switch; dashes in keys are underscores."""
    switches, short = {key for key, kind in _types(cls).items() if kind is bool}, _short_names(cls)
    flags: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--([A-Za-z][\w.-]*)(?:=(.*))?", word, flags=re.DOTALL)
        if match is None:
            if positional is None or word.startswith("-") or any(key == positional for key, _ in flags):
                raise _unknown(word, cls)
            flags.append((positional, word))
            continue
        name = match[1].replace("-", "_")
        key = short.get(name, name)
        if key not in (CONFIG, PRINT) and not _is_key(key, cls):
            raise _unknown(name, cls)
        value = match[2]
        if value is None and key != PRINT and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        elif value is None and key not in (PRINT, *switches):
            raise ConfigError(f"--{name} needs a value")
        flags.append((key, "true" if value is None else value))
    return flags


def _folded(flags: Sequence[tuple[str, str]], base: dict[str, Any], cls: type) -> dict[str, Any]:
    """Dotted key -> what the flags give it together: the last counts, but lists and mappings grow."""
    kinds, values = _types(cls), dict[str, Any]()
    for key, text in flags:
        if key in (CONFIG, PRINT):
            continue
        if key not in kinds:
            if (field := key.rsplit(".", 1)[0]) in kinds:  # a key of a mapping
                before = values.get(field, base.get(field))
                values[field] = (before if isinstance(before, dict) else {}) | {key.rsplit(".", 1)[1]: text}
            else:
                values |= _dotted({key: parse_yaml(text)}, cls, "")
        elif get_origin(kinds[key]) is tuple and not text.startswith("["):
            before = values.get(key)
            values[key] = [*(before if isinstance(before, list) else []), *text.split(",")]
        else:
            values[key] = _worded(key, text, cls, "")
    return values


def _read(name: str, cls: type) -> dict[str, Any]:
    """Dotted key -> value of a configuration file, given by its path or as a preset.

    Below /dev/fd are the pipes of a shell's `<(...)`, which end; an ordinary FIFO may never.
    """
    path = find(name)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not name.startswith("/dev/fd/"):
        raise ConfigError(f"{name} is not a regular file; give a YAML file to --config")
    if status.st_size > MAX_CHARACTERS:
        raise ConfigError(f"{name} has {status.st_size} bytes, a configuration at most {MAX_CHARACTERS}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML passes on whatever hostile text makes its parts raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be read as a configuration: {reason}") from error
    if values is None:  # nothing, or comments alone
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is not a configuration: give keys such as optim: {{lr: 0.1}}")
    return _dotted(values, cls, f"{name}: ")


def _dotted(values: dict[Any, Any], cls: type, where: str) -> dict[str, Any]:
    """Nested keys as dotted ones of fields. Raises ConfigError for an unknown key, or a value for a group."""

    def leaves(values: dict[Any, Any], kind: type, prefix: str) -> dict[str, Any]:
        groups, hints, found = groups_of(kind), get_type_hints(kind), dict[str, Any]()
        for name, value in values.items():
            head, dot, tail = str(name).partition(".")
            key = f"{prefix}{name}"
            if head in groups and (dot or isinstance(value, dict)):
                found |= leaves({tail: value} if dot else value, groups[head], f"{prefix}{head}.")
            elif head not in hints or dot:
                raise _unknown(key, cls, where)
            elif head in groups or (get_origin(hints[head]) is dict and not isinstance(value, dict)):
                raise ConfigError(f"{where}{key} = {value!r} must be a group of keys, such as {key}: {{...}}")
            else:
                found[key] = _worded(key, value, cls, where)
        return found

    return leaves(values, cls, "")


def _typed(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """A `cls` of its defaults and dotted `values`. Raises ConfigError for a value of another type."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    _use_our_yaml()
    parser = _kept_parser(cls)  # type: ignore[arg-type]  # mypy takes classes of dataclasses for unhashable
    try:
        namespace = parser.parse_object(nested)
        _refuse_null(namespace, cls, where)
        parsed = parser.instantiate(namespace)
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse passes on whatever hostile text makes its parts raise
        reason = " ".join(str(error).split())
        bad = re.match(r'Parser key "([\w.]+)"', reason)
        if bad is None or bad[1] not in values:
            raise ConfigError(f"{where}cannot be read as a configuration: {reason}") from error
        raise _not_valid(bad[1], values[bad[1]], cls, where) from error
    return cls(**{f.name: getattr(parsed, f.name) for f in fields(cls)})


_SWITCHED = {"yes": True, "on": True, "no": False, "off": False}


def _worded(key: str, value: Any, cls: type, where: str) -> Any:
    """`value`; of a switch `yes` as true, of a name 7 as text.

    Raises ConfigError for text that may have lost its form, such as 1.50, of which 1.5 is known.
    """
    kind = _types(cls).get(key)
    if kind is bool and isinstance(value, str):
        return _SWITCHED.get(value.lower(), value)
    if kind in (str, str | None) and isinstance(value, bool | float):
        name = key.split(".")[-1]
        raise ConfigError(f"{where}{key} = {value!r} is not text; write it in quotes, as {name}: '...'")
    return str(value) if kind in (str, str | None) and isinstance(value, int) else value


@functools.cache
def _kept_parser(cls: type) -> Any:
    """The same for all values: it reads the sources of all classes, a quarter of a second."""
    return _parser(cls)


def _parser(cls: type[Any]) -> Any:
    """jsonargparse's parser of a config dataclass; its usage names the program as it is called now."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False,
        description=(cls.__doc__ or "").splitlines()[0],
        epilog="Short names: "
        + ", ".join(f"--{s} = --{full}" for s, full in sorted(_short_names(cls).items())),
        version=__version__,
    )
    parser.add_argument(f"--{CONFIG}", help="YAML file of deltas, or a preset; may be given repeatedly")
    parser.add_argument(f"--{PRINT}", action="store_true", help="print the configuration and exit")
    parser.add_class_arguments(cls)
    return parser


@functools.cache
def _use_our_yaml() -> None:
    """Have jsonargparse read values that are text as files are read."""
    import yaml
    from jsonargparse import set_loader

    set_loader("yaml", parse_yaml, (yaml.YAMLError,))


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    """Dotted key -> type, of every field that is not a group."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        below = _types(kind).items() if isinstance(kind, type) and is_dataclass(kind) else ()
        found |= {f"{name}.{key}": k for key, k in below} or {name: kind}
    return found


def _is_key(key: str, cls: type) -> bool:
    """Whether a dotted key is a field, a group, or below a mapping."""
    kinds = _types(cls)
    below = get_origin(kinds.get(key.rpartition(".")[0])) is dict
    return key in kinds or below or any(known.startswith(f"{key}.") for known in kinds)


def _short_names(cls: type) -> dict[str, str]:
    """Short -> full: a key's last part where only one key ends in it, and the fields' own short names."""
    facts = facts_of(cls)
    leaves = [key.split(".")[-1] for key in facts]
    unique = {leaf: key for leaf, key in zip(leaves, facts, strict=True) if leaves.count(leaf) == 1}
    given = {fact.short: key for key, fact in facts.items() if fact.short}
    return {short: key for short, key in (unique | given).items() if short not in facts}


def _refuse_null(values: Any, cls: type, where: str) -> None:
    """ConfigError for a null where none is meant: jsonargparse lets it pass."""
    for key, kind in _types(cls).items():
        if values[key] is None and type(None) not in get_args(kind):
            raise _not_valid(key, None, cls, where)


def _unknown(name: str, cls: type, where: str = "") -> ConfigError:
    """Of a key or flag that there is not, with the nearest names that exist."""
    keys, last = list(facts_of(cls)), name.split(".")[-1]
    near = difflib.get_close_matches(name, [*keys, *_short_names(cls)], n=3, cutoff=0.6)
    near += [key for key in keys if key.split(".")[-1] == last and key not in near]
    near = near or [key for key in keys if "." in name and key.split(".")[0] == name.split(".")[0]]
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all"
    return ConfigError(f"{where}unknown option {name!r}; {hint}")


def _not_valid(key: str, value: Any, cls: type, where: str) -> ConfigError:
    """Of a value of another type, with what is allowed."""
    kind = _types(cls)[key]
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    text = text.replace("typing.", "").replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"Literal\[(.*)\]", r"\1", text).replace("'", "")
    shown = "null" if value is None else repr(value)
    return ConfigError(f"{where}{key} = {shown} is not valid; allowed: {text}")
