"""Command line of the launch scripts: YAML deltas, then flags, into one typed config; errors in one line."""

from __future__ import annotations

import difflib
import faulthandler
import functools
import json
import os
import re
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from rmd_dist import __version__
from rmd_dist.config import SHORT_NAMES, ConfigError, DistillConfig, EvaluateConfig, PretrainConfig
from rmd_dist.config_check import validate
from rmd_dist.config_text import MAX_CHARACTERS, guarded
from rmd_dist.faults import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_MISTAKE, EXIT_STOPPED, Fault, Stopped

_FIRST_SECONDS = 2.0  # that a machine's first rank has to say what another one would say too

Config = TypeVar("Config", PretrainConfig, DistillConfig, EvaluateConfig)


def parse(cls: type[Config], argv: Sequence[str] | None = None, positional: str | None = None) -> Config:
    """Parse `argv` (default: the process's) into a validated `cls`.

    `positional` names a key whose value may also stand first or last, without its flag.
    Raises ConfigError, one line, for an unknown key or flag, a bad value or an unreadable file.
    """
    from argparse import ArgumentError

    _guard_yaml()
    parser = _parser(cls)
    words = sys.argv[1:] if argv is None else list(argv)
    if positional:
        words = _with_flag(words, positional)
    files = [following for word, following in pairwise(words) if word == "--config"]
    try:
        _check_files(files)
        namespace = parser.parse_args(_joined(_expand(words, cls), cls))
    except ArgumentError as error:
        problem = _one_line(str(error), cls)
        in_file = problem.startswith(("Problems parsing", "Unexpected config")) and files
        raise ConfigError(f"{', '.join(files)}: {problem}" if in_file else problem) from None
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse passes on whatever hostile text makes its parts raise
        where = f"{', '.join(files)}: " if files else ""
        raise ConfigError(
            f"{where}cannot be read as a configuration: {_one_line(str(error), cls)}"
        ) from error
    for key, kind in get_type_hints(cls).items():
        if is_dataclass(kind) and not hasattr(getattr(namespace, key), "__dict__"):
            raise ConfigError(
                f"{key} = {getattr(namespace, key)!r} must be a group of keys, such as {key}: {{...}}"
            )
    _refuse_null(namespace, cls)
    config: Config = parser.instantiate(namespace)  # type: ignore[no-untyped-call, unused-ignore]
    return validate(cls(**{f.name: getattr(config, f.name) for f in fields(cls)}))


def from_dict(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """A typed `cls` of its defaults and nested `values`, ranges unchecked.

    Raises ConfigError, one line that begins with `where`, for an unknown key or a value of another type.
    """
    from argparse import ArgumentError

    parser = _parser(cls)
    try:
        namespace = parser.parse_object(values)
        _refuse_null(namespace, cls)
        parsed = parser.instantiate(namespace)
    except (ArgumentError, ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {_one_line(str(error), cls)}") from None
    return cls(**{f.name: getattr(parsed, f.name) for f in fields(cls)})


def _parser(cls: type[Any]) -> Any:
    """jsonargparse's parser of a config dataclass."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False,
        description=(cls.__doc__ or "").splitlines()[0],
        epilog="Short names: "
        + ", ".join(f"--{s} = --{full}" for s, full in sorted(_short_names(cls).items())),
        version=__version__,
    )
    parser.add_argument("--config", action="config", help="YAML file of deltas; may be given repeatedly")
    parser.add_class_arguments(cls)
    return parser


def _refuse_null(values: Any, cls: type, prefix: str = "") -> None:
    """ConfigError for a null where none is meant: jsonargparse lets it pass."""
    for key, kind in get_type_hints(cls).items():
        value = getattr(values, key)
        if is_dataclass(kind):
            assert isinstance(kind, type)
            _refuse_null(value, kind, f"{prefix}{key}.")
        elif value is None and type(None) not in get_args(kind):
            raise ConfigError(f"{prefix}{key} = null is not valid; allowed: {_wanted(cls, key)}")


@functools.cache
def _guard_yaml() -> None:
    """Have jsonargparse read YAML, of files and of the command line, through the guard."""
    import yaml
    from jsonargparse import get_loader, set_loader

    stages = (PretrainConfig, DistillConfig)
    groups = {key for cls in stages for key, kind in get_type_hints(cls).items() if is_dataclass(kind)}
    load = guarded(get_loader("yaml"), frozenset(groups | {"config"}))
    set_loader("yaml", load, (yaml.YAMLError,))


def _check_files(names: Sequence[str]) -> None:
    """ConfigError for a configuration file that is too large or no file; a missing one is named later.

    Below /dev/fd are the pipes of a shell's `<(...)`, which end; an ordinary FIFO may never.
    """
    for name in names:
        try:
            status = Path(name).stat()
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(status.st_mode) and not name.startswith("/dev/fd/"):
            raise ConfigError(f"{name} is not a regular file; give a YAML file to --config")
        if status.st_size > MAX_CHARACTERS:
            raise ConfigError(f"{name} has {status.st_size} bytes, a configuration at most {MAX_CHARACTERS}")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a launch script's `main` and exit; what ended it is one line on stderr and a code (faults.py)."""
    if sys.__stderr__:
        faulthandler.enable(sys.__stderr__)  # what ends a process by SIGSEGV or SIGBUS says where it was
    threading.excepthook = functools.partial(_tell_of_thread, threading.excepthook)
    try:
        code = main() or 0
    except ConfigError as error:
        code = _tell(f"error: {error}", EXIT_MISTAKE)
    except Fault as error:
        code = _tell(f"error: {error}", EXIT_FAULT)
    except Stopped as stop:
        code = _tell(f"stopped: {stop}", EXIT_STOPPED)
    except KeyboardInterrupt:
        code = _tell("interrupted: the same command continues from the newest checkpoint", EXIT_INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        code = _tell(f"error: {type(error).__name__} (a bug, see the traceback): {error}", EXIT_FAULT)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)  # an orderly exit would wait for ranks that may not come, or abort in gloo's threads
    sys.exit(code)


def _tell_of_thread(
    usual: Callable[[threading.ExceptHookArgs], object], what: threading.ExceptHookArgs
) -> None:
    """A traceback for what ended a thread, but for TensorBoard's: its next call raises that."""
    if not type(what.thread).__module__.startswith("tensorboard."):
        usual(what)


def _tell(line: str, code: int) -> int:
    """Print `line` once a machine: its first rank does, another one if the first has nothing to say."""
    local_rank, first = int(os.environ.get("LOCAL_RANK", "0")), True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "rmd_dist.dist" in sys.modules:
        from rmd_dist import dist

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it when the first rank has ended
        dist.tell_failure(line)
        first = local_rank == 0 or (
            dist.world_size() > 1 and not dist.told_failure(dist.rank() - local_rank, _FIRST_SECONDS)
        )
        line = line if local_rank == 0 else f"{line} (rank {dist.rank()})"
    elif local_rank:
        first = False
    if first:
        print(line, file=sys.stderr, flush=True)
    return code


def full_keys(cls: type) -> list[str]:
    """Every dotted key of a config dataclass, such as `optim.lr`."""
    keys = []
    hints = get_type_hints(cls)
    for f in fields(cls):
        nested = hints[f.name]
        if is_dataclass(nested):
            assert isinstance(nested, type)
            keys += [f"{f.name}.{key}" for key in full_keys(nested)]
        else:
            keys.append(f.name)
    return keys


def _short_names(cls: type) -> dict[str, str]:
    """Short -> full: a key's last part where only one key ends in it, and SHORT_NAMES."""
    keys = full_keys(cls)
    leaves = [key.split(".")[-1] for key in keys]
    unique = {leaf: key for leaf, key in zip(leaves, keys, strict=True) if leaves.count(leaf) == 1}
    return {s: full for s, full in (unique | SHORT_NAMES).items() if full in keys and s not in keys}


def _with_flag(words: list[str], key: str) -> list[str]:
    """`PATH --a 1` and `--a 1 PATH` as `--key PATH --a 1`."""
    if words and not words[0].startswith("-"):
        return [f"--{key}", *words]
    bare = len(words) > 2 and not words[-1].startswith("-") and not words[-2].startswith("-")
    return [f"--{key}", words[-1], *words[:-1]] if bare else words


def _switches(cls: type, prefix: str = "") -> set[str]:
    """Full keys of booleans: `--cpu` alone means `--cpu true`."""
    keys: set[str] = set()
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            assert isinstance(kind, type)
            keys |= _switches(kind, f"{prefix}{name}.")
        elif kind is bool:
            keys.add(prefix + name)
    return keys


def _expand(words: Sequence[str], cls: type) -> list[str]:
    """`--max-steps=3` -> `--run.max_steps=3`: dashes become underscores, short names full ones."""
    short, switches = _short_names(cls), _switches(cls)
    expanded = []
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        match = re.match(r"--([A-Za-z][\w.-]*)(=.*)?$", word, flags=re.DOTALL)
        if match:
            name = match[1].replace("-", "_")
            key = short.get(name, name)
            switched_on = key in switches and not match[2] and following.startswith("--")
            word = f"--{key}{'=true' if switched_on else match[2] or ''}"
        expanded.append(word)
    return expanded


def _joined(words: list[str], cls: type) -> list[str]:
    """`--key a,b --key c` of a key that holds names as one `--key=["a", "b", "c"]`."""
    rest: list[str] = []
    names: dict[str, list[str]] = {}
    waiting: str | None = None
    for word in words:
        key, equals, value = word.partition("=")
        if waiting is not None:
            names[waiting] += word.split(",")
            waiting = None
        elif _is_names(cls, key.removeprefix("--")) and not value.startswith("["):
            names.setdefault(key, [])
            waiting = None if equals else key
            names[key] += value.split(",") if equals else []
        else:
            rest.append(word)
    return [*rest, *(f"{key}={json.dumps(given)}" for key, given in names.items() if given)]


def _is_names(cls: Any, key: str) -> bool:
    """Whether a dotted key is a tuple of strings."""
    kind: Any = cls
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return bool(kind == tuple[str, ...])


def _one_line(message: str, cls: type) -> str:
    """jsonargparse's several lines as one, with what is allowed and the nearest names that exist."""
    flat = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: (\S+)", flat) or re.search(
        r"(?:does not accept option|[Kk]ey|Option) '([\w.]+)'", flat
    )
    if unknown and ("unrecognized" in flat or "not accept" in flat or "not expected" in flat):
        group = re.search(r"Group '([\w.]+)'", flat)
        name = unknown[1].lstrip("-").split("=")[0]
        name = f"{group[1]}.{name}" if group else name
        keys = full_keys(cls)
        near = difflib.get_close_matches(name, [*keys, *_short_names(cls)], n=3, cutoff=0.6)
        near += [key for key in keys if key.split(".")[-1] == name.split(".")[-1] and key not in near]
        near = near or [key for key in keys if "." in name and key.split(".")[0] == name.split(".")[0]]
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all"
        return f"unknown option {name!r}; {hint}"
    bad = re.match(r'Parser key "([\w.]+)": (.*)', flat)
    if bad:
        given = re.search(r"(?:Given value: |Got value: )(.*)$", flat)
        wanted = _wanted(cls, bad[1])
        if given and wanted:
            return f"{bad[1]} = {given[1].strip()!r} is not valid; allowed: {wanted}"
        return f"{bad[1]}: {bad[2]}"
    return flat


def _wanted(cls: type, key: str) -> str:
    kind: Any = cls
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    if kind is None:
        return ""
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    text = text.replace("typing.", "").replace("NoneType", "null").replace("None", "null")
    return re.sub(r"Literal\[(.*)\]", r"\1", text).replace("'", "")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config (or nested dict) as {dotted key: plain value}."""
    items = (
        {f.name: getattr(config, f.name) for f in fields(config)} if is_dataclass(config) else dict(config)
    )
    flat: dict[str, Any] = {}
    for name, value in items.items():
        if is_dataclass(value) or (isinstance(value, dict) and value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def to_dict(config: Any) -> Any:
    """A config as plain nested dicts and lists, fit for YAML and JSON."""
    if is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def save_yaml(config: Any, path: Path) -> None:
    """Write a config so that `--config PATH` gives it back."""
    import yaml

    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
