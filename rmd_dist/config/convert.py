"""Configurations as plain values: for manifests, YAML files and comparisons."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rmd_dist.config.fields import facts_of


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


def later_defaults(cls: type) -> dict[str, Any]:
    """Dotted key -> default of the fields that came when there were runs already (`Facts.added_later`)."""
    defaults = flatten(cls())
    return {key: defaults[key] for key, facts in facts_of(cls).items() if facts.added_later}


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
