"""The state of a run: all that a step changes. Everything else is a function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from rmd_dist.engine.checkpoint import Checkpoint, Snapshot
from rmd_dist.errors import ConfigError
from rmd_dist.models.export import NETWORK
from rmd_dist.models.weights import load_weights, read_tensors

_MODEL, _AVERAGE, _TASK, _OPTIMIZER, _GROUPS = "model/", "ema/", "task/", "optimizer/", "optimizer_groups/"

_WHOLE = ("momentum_buffer", "exp_avg", "exp_avg_sq")
"""States of optimizers that have the parameter's shape."""


@dataclass
class State:
    """What a checkpoint holds and a resumed run gets back, to the bit and the stride."""

    model: nn.Module
    """What is trained, unwrapped."""

    optimizer: torch.optim.Optimizer

    network: str = ""
    """Name of the submodule of `model` that is of use to others (`Task.network`); empty: all of it."""

    ema: ModelEmaV3 | None = None
    """Exponential moving average of the model's weights and buffers."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the task changes beside its model (`Task.tensors`)."""

    step: int = 0
    """Optimizer steps done."""

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and exported: the average's, where there is one."""
        model = self.model if self.ema is None else self.ema.module
        return model.get_submodule(self.network)

    def snapshot(self, scalars: dict[str, Any]) -> Snapshot:
        """The state as named tensors, which are the state's own, not copies, and `scalars` for JSON."""
        parts = {_MODEL: self.model.state_dict(), _TASK: self.tensors}
        if self.ema is not None:
            parts[_AVERAGE] = self.ema.module.state_dict()
        tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
        prefix = _MODEL if self.ema is None else _AVERAGE
        scalars = scalars | {NETWORK: f"{prefix}{self.network}." if self.network else prefix}
        counted = dict(enumerate(self._counters(group) for group in self.optimizer.param_groups))
        for prefix, states in ((_OPTIMIZER, self.optimizer.state_dict()["state"]), (_GROUPS, counted)):
            for index, values in states.items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"{prefix}{index}/{name}"] = value
                    elif value is not None:
                        scalars[f"{prefix}{index}/{name}"] = value
        return Snapshot(self.step, tensors, scalars)

    def _counters(self, group: dict[str, Any]) -> dict[str, Any]:
        """What an optimizer counts for a group, such as timm's lamb its steps: what is no setting."""
        return {k: v for k, v in group.items() if k != "params" and k not in self.optimizer.defaults}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint holds. Raises ConfigError if it is that of another state."""
        tensors = read_tensors(checkpoint.path)
        if twice := tensors.keys() & checkpoint.scalars.keys():
            raise ConfigError(f"{checkpoint.path} has {min(twice)} twice; resume from another")
        saved = {**checkpoint.scalars, **tensors}

        def part(prefix: str) -> dict[str, Any]:
            return {n.removeprefix(prefix): v for n, v in saved.items() if n.startswith(prefix)}

        load_weights(self.model, part(_MODEL), checkpoint.path)
        if self.ema is not None:
            load_weights(self.ema.module, part(_AVERAGE), checkpoint.path)
        own = part(_TASK)
        if lacking := self.tensors.keys() - own.keys():
            raise ConfigError(
                f"{checkpoint.path} has no {', '.join(sorted(lacking))}: another version saved it; continue "
                "with that one, or start anew under another --name"
            )
        if {name: _shape(v) for name, v in own.items()} != {
            name: _shape(v) for name, v in self.tensors.items()
        }:
            raise ConfigError(f"{checkpoint.path} holds another task's tensors; resume from another")
        for name, value in own.items():
            self.tensors[name].copy_(value)
        self._restore_optimizer(part(_OPTIMIZER), part(_GROUPS), checkpoint.path)
        self.step = checkpoint.step

    def _restore_optimizer(self, saved: dict[str, Any], counted: dict[str, Any], path: Path) -> None:
        optimizer = self.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in saved.items():
            number, name = _numbered(key)
            if number >= len(parameters) or not _fits(name, value, parameters[number]):
                raise ConfigError(
                    f"{path}: {_OPTIMIZER}{key} is no state of this model's optimizer; resume from another"
                )
            if _shape(value) == parameters[number].shape:
                # Strides like the parameter's, as they were before the save.
                value = torch.empty_like(parameters[number]).copy_(value)
            state.setdefault(number, {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        for key, value in counted.items():
            number, name = _numbered(key)
            if number >= len(groups) or name in {"params", *optimizer.defaults} or not _is_number(value):
                raise ConfigError(
                    f"{path}: {_GROUPS}{key} is no count of this model's optimizer; resume from another"
                )
            groups[number][name] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _numbered(key: str) -> tuple[int, str]:
    """`12/step` -> (12, step); another text: a number beyond all."""
    index, _, name = key.partition("/")
    return (int(index) if index.isdecimal() and len(index) < 9 else 10**9), name


def _shape(value: Any) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, Tensor) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _fits(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether `value` can be the optimizer state `name` of `parameter`: a step count, or numbers for it."""
    if name == "step":
        return _is_number(value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    # Some, such as adafactor, keep less than a number for each of the parameter's.
    whole = value.shape == parameter.shape
    return whole or (name not in _WHOLE and value.numel() <= max(parameter.numel(), 1))
