"""Values within their ranges, combinations that can work, and the defaults that depend on the data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from rmd_dist.config.datasets import SMALL
from rmd_dist.config.fields import facts_of
from rmd_dist.config.measuring import AuditConfig, EvaluateConfig
from rmd_dist.config.schema import (
    AnyConfig,
    DistillConfig,
    NoiseConfig,
    PretrainConfig,
    SimCLRConfig,
    TargetsConfig,
)
from rmd_dist.config.teachers import TIMM, starts_from_file
from rmd_dist.errors import ConfigError
from rmd_dist.files import expanded

_Config = TypeVar("_Config", bound=AnyConfig | AuditConfig | EvaluateConfig)
_INF = float("inf")

LARGE = 64  # pixels from which on a model has the stem that timm gives it


def validate(config: _Config) -> _Config:
    """Check ranges and combinations and fill in what depends on the data set; returns the config.

    Raises ConfigError naming key, value, what is allowed and the remedy.
    """
    facts = facts_of(type(config))
    _put_in_paths(config)
    for key, text in _leaves(config):
        in_names = key in facts and facts[key].in_names
        _check_text(key, text, in_names=in_names and not str(text).startswith("file:"))
    for key, value in _leaves(config):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        low, high = (facts[key].low, facts[key].high) if key in facts else (-_INF, _INF)
        huge = isinstance(value, int) and abs(value) >= 2**63
        if not low <= value <= high or value == _INF or huge:
            shown = "a number beyond 2^63" if huge else value
            raise ConfigError(f"{key} = {shown} is out of range; allowed: {low:g} to {high:g}, finite")
    if isinstance(config, EvaluateConfig):
        return config
    if isinstance(config, AuditConfig):
        _settle_audit(config)
        return config
    data, optim = config.data, config.optim
    _choose_model(config)
    if isinstance(config, DistillConfig):
        _settle_labels(config.noise, own=data.dataset not in SMALL)
    if data.batch_size % optim.accumulation:
        raise ConfigError(
            f"data.batch_size = {data.batch_size} is not a multiple of optim.accumulation = "
            f"{optim.accumulation}; choose a batch size that the micro-steps divide"
        )
    if optim.nesterov and not optim.momentum:
        raise ConfigError("optim.nesterov is a kind of momentum, and optim.momentum = 0; give one of the two")
    milestones = list(optim.milestones)
    if any(not 0 < m < 1 for m in milestones) or milestones != sorted(milestones):
        raise ConfigError(f"optim.milestones = {milestones} must be rising shares between 0 and 1")
    if optim.lr is None:
        # Paper, section 4.3: SimSiam 0.03; distillation 0.001 on CIFAR-10, 0.01 on CIFAR-100.
        by_dataset = 0.01 if data.dataset == "cifar100" else 0.001
        optim.lr = 0.03 if isinstance(config, PretrainConfig) else by_dataset
    if data.batch_size // optim.accumulation < 2:
        raise ConfigError(
            f"data.batch_size = {data.batch_size} in {optim.accumulation} micro-step(s): batch norm "
            "needs at least 2 images each; raise batch_size"
        )
    if isinstance(config, PretrainConfig):
        if config.objective != "simclr" and config.simclr != SimCLRConfig():
            raise ConfigError(
                "simclr.dim, hidden_dim and temperature are of another objective; give --objective simclr"
            )
        _check_range("views.crop_scale", config.views.crop_scale, 1)
        _check_range("views.blur_sigma", config.views.blur_sigma, 100)
        return config
    _check_range("augment.crop_scale", config.augment.crop_scale, 1)
    if not all(str(name).isidentifier() for name in config.loss_options):
        raise ConfigError(f"loss_options = {config.loss_options}: its keys must be names such as q")
    _check_timm(config.teacher)
    _check_targets(config)
    return config


def _check_targets(config: DistillConfig) -> None:
    """ConfigError for settings of targets, and of where a student starts, that do not go together."""
    targets, start = config.targets, config.student_init
    related = targets.kind == "relations"
    if starts_from_file(start) and (not set(start) & set("/.") or start.startswith(TIMM)):
        raise ConfigError(
            f"student_init = {start} is no path; give random, teacher, or a run folder or file of an encoder"
        )
    if config.head_init != "random" and start == "random":
        raise ConfigError(
            f"head_init = {config.head_init} is a regression on the features that the student starts with; "
            "give --student-init teacher, or an encoder's path"
        )
    if not related and targets != TargetsConfig():
        raise ConfigError(
            "targets.average, ramp and unlabelled are of relation targets; give --targets relations"
        )
    averaged = related and targets.average > 0
    if averaged and not config.optim.ema_decay:
        raise ConfigError(
            f"targets.average = {targets.average:g} is of the student's moving average, and none is kept; "
            "give --ema-decay 0.99, or --average 0"
        )
    if config.augment.count is not None and not averaged:
        raise ConfigError(
            f"augment.count = {config.augment.count}: crops after the first are what the moving average sees "
            "that has a share in relation targets; leave it out"
        )


def _choose_model(config: AnyConfig) -> None:
    """Put in what suits the size of the images where the model is `auto`."""
    if config.model.name == "auto":
        size = config.data.image_size or (32 if config.data.dataset in SMALL else 224)
        config.model.name = suitable_model(size)


def suitable_model(size: int) -> str:
    """What `auto` stands for, of images of `size` pixels."""
    return "resnet18" if size >= LARGE else "resnet18_cifar"


def _settle_labels(noise: NoiseConfig, *, own: bool) -> None:
    """Put in the protocol where it is `auto`; a file of labels is named one way. Raises ConfigError."""
    kind, _, path = noise.protocol.partition(":")
    if kind == "file" and path:
        noise.protocol, noise.labels = "file", expanded(path)
    if noise.labels is not None and noise.protocol not in ("auto", "file"):
        raise ConfigError(
            f"noise.protocol = {noise.protocol} and noise.labels = {noise.labels}: give one of them; labels "
            "of a file are trained on as they are"
        )
    if noise.protocol == "file" and noise.labels is None:
        raise ConfigError("noise.protocol = file needs a file; give --labels FILE")
    if noise.protocol == "auto":
        noise.protocol = "file" if noise.labels else "none" if own else "symmetric"


def _settle_audit(config: AuditConfig) -> None:
    """Put in the encoder where --model names it. Raises ConfigError for what excludes each other."""
    if not config.dataset:
        raise ConfigError("no data set given; use: rmd audit FOLDER, or one of " + ", ".join(SMALL))
    _settle_labels(config.noise, own=True)  # nothing is made wrong that nobody asked for
    if config.model is not None:
        if config.teacher is not None:
            raise ConfigError(
                f"teacher = {config.teacher} and model = {config.model} both name the encoder; give one"
            )
        config.teacher = f"{TIMM}{config.model}"
    _check_timm(config.teacher)
    if config.weights is not None and not (config.teacher or "").startswith(TIMM):
        raise ConfigError(
            f"weights = {config.weights} needs the timm model that they are of; give --model NAME"
        )
    if config.precision is not None and config.budget is not None:
        raise ConfigError("precision and budget both say how many labels are flagged; give one")


def _check_timm(teacher: str | None) -> None:
    """ConfigError for a `timm:` encoder whose name cannot be one of timm's."""
    if (
        teacher
        and teacher.startswith(TIMM)
        and not re.fullmatch(r"[\w.-]{1,100}", teacher.removeprefix(TIMM))
    ):
        raise ConfigError(
            f"teacher = {teacher!r}: after {TIMM} comes timm's name of a model, NAME or NAME.TAG"
        )


def _check_range(key: str, value: tuple[float, float], top: float) -> None:
    low, high = value
    if not 0 < low <= high <= top:
        raise ConfigError(f"{key} = {[low, high]} must rise within (0, {top:g}]")


def _put_in_paths(config: Any) -> None:
    """Write out the paths of a configuration and of its groups."""
    facts = facts_of(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            _put_in_paths(value)
        elif isinstance(value, str) and facts[f.name].path:
            setattr(config, f.name, expanded(value))


def _check_text(key: str, value: Any, *, in_names: bool) -> None:
    """ConfigError for text that cannot stand in a file name, a YAML or a line of a log."""
    if not isinstance(value, str):
        return
    if not value.isprintable() or len(value) > 4096:
        raise ConfigError(
            f"{key} = {value[:60]!r} has control characters or is too long; give one plain line"
        )
    if in_names and (set(value) & {"/"} or value in ("", ".", "..") or len(value) > 100):
        raise ConfigError(
            f"{key} = {value[:60]!r} cannot be part of a folder's name; give 1 to 100 letters, no /"
        )


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is not a group; of lists and dicts each of their values."""
    items = (
        config.items()
        if isinstance(config, dict)
        else ((f.name, getattr(config, f.name)) for f in fields(config))
    )
    for name, value in items:
        if is_dataclass(value) or isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield from ((f"{prefix}{name}", item) for item in value)
        else:
            yield f"{prefix}{name}", value
