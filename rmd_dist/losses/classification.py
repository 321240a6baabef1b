"""Classification losses for labels that are partly wrong, by name.

With p = softmax(logits), y the given label:

    ce        -log p_y
    gce       (1 - p_y^q) / q                        Zhang & Sabuncu 2018
    rce       -log(1e-4) (1 - p_y)                   Wang et al. 2019, the reverse cross entropy
    sce       alpha ce + beta rce                    Wang et al. 2019
    mae       scale (1 - p_y)                        Ghosh et al. 2017
    tce       sum_{i=1..t} (1 - p_y)^i / i           Feng et al. 2020, the Taylor series of ce
    nce       log p_y / sum_k log p_k                Ma et al. 2020
    agce      ((a + 1)^q - (a + p_y)^q) / q          Zhou et al. 2021, as the next two
    aul       ((a - p_y)^q - (a - 1)^q) / q
    ael       exp(-p_y / a)
    nce_agce, nce_aul, nce_ael                       alpha nce + beta the other

All start from log_softmax in fp32: value and gradient are finite for logits of +-1e4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmd_dist.errors import ConfigError

FEW_CLASSES = 10
"""Up to so many classes the authors' CIFAR-10 settings are the defaults, above it those of CIFAR-100."""

PerSample = Callable[..., Tensor]
"""(log probabilities (B, C), log p_y (B,), **options) -> losses (B,); of every class (B, C) as of one."""


def _ce(_log_p: Tensor, log_py: Tensor) -> Tensor:
    return -log_py


def _gce(_log_p: Tensor, log_py: Tensor, q: float) -> Tensor:
    return -torch.expm1(q * log_py) / q


def _mae(_log_p: Tensor, log_py: Tensor, scale: float) -> Tensor:
    return -scale * torch.expm1(log_py)


def _rce(log_p: Tensor, log_py: Tensor) -> Tensor:
    return _mae(log_p, log_py, -math.log(1e-4))


def _sce(log_p: Tensor, log_py: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * _ce(log_p, log_py) + beta * _rce(log_p, log_py)


def _tce(_log_p: Tensor, log_py: Tensor, t: int) -> Tensor:
    miss = -torch.expm1(log_py)
    total = miss / t
    for i in range(t - 1, 0, -1):  # Horner
        total = (total + 1 / i) * miss
    return total


def _nce(log_p: Tensor, log_py: Tensor) -> Tensor:
    return log_py / log_p.sum(1, keepdim=log_py.ndim > 1)


def _agce(_log_p: Tensor, log_py: Tensor, a: float, q: float) -> Tensor:
    return (math.pow(a + 1, q) - torch.pow(a + log_py.exp(), q)) / q


def _aul(_log_p: Tensor, log_py: Tensor, a: float, q: float) -> Tensor:
    return (torch.pow(a - log_py.exp(), q) - math.pow(a - 1, q)) / q


def _ael(_log_p: Tensor, log_py: Tensor, a: float) -> Tensor:
    return torch.exp(-log_py.exp() / a)


def _with_nce(passive: PerSample) -> PerSample:
    def loss(log_p: Tensor, log_py: Tensor, alpha: float, beta: float, **options: float) -> Tensor:
        return alpha * _nce(log_p, log_py) + beta * passive(log_p, log_py, **options)

    return loss


@dataclass(frozen=True)
class Option:
    """A number that a loss takes: its defaults, and the range it must lie in."""

    few: float
    """Default for up to FEW_CLASSES classes."""

    many: float
    """Default for more classes."""

    above: float = 0.0
    """Lower bound."""

    closed: bool = False
    """Whether the bound itself is allowed."""

    whole: bool = False
    """Whether only whole numbers are."""

    def check(self, where: str, value: object) -> float:
        """The value as a number; ConfigError, naming `where`, for one out of range."""
        allowed = (
            f"{'a whole number' if self.whole else 'a number'} {'>=' if self.closed else '>'} {self.above:g}"
        )
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        inside = number >= self.above if self.closed else number > self.above
        if not (inside and math.isfinite(number)) or (self.whole and number != int(number)):
            raise ConfigError(f"{where}: {value!r} is not allowed; use {allowed}")
        return int(number) if self.whole else number


@dataclass(frozen=True)
class Spec:
    """A named loss: its formula and its options."""

    per_sample: PerSample
    options: Mapping[str, Option] = field(default_factory=dict)


def _mix(few: tuple[float, float], many: tuple[float, float]) -> dict[str, Option]:
    return {
        "alpha": Option(few[0], many[0], closed=True),
        "beta": Option(few[1], many[1], closed=True),
    }


_AGCE = {"a": Option(6.0, 1.8), "q": Option(1.5, 3.0)}
_AUL = {"a": Option(6.3, 6.0, above=1.0), "q": Option(1.5, 3.0)}
_AEL = {"a": Option(5.0, 1.5)}

LOSSES: dict[str, Spec] = {
    "ce": Spec(_ce),
    "gce": Spec(_gce, {"q": Option(0.7, 0.7)}),
    "sce": Spec(_sce, _mix((0.1, 1.0), (6.0, 0.1))),
    "mae": Spec(_mae, {"scale": Option(2.0, 2.0)}),
    "tce": Spec(_tce, {"t": Option(6, 6, above=1, closed=True, whole=True)}),
    "nce_agce": Spec(_with_nce(_agce), {**_mix((1.0, 4.0), (10.0, 0.1)), **_AGCE}),
    "nce_aul": Spec(_with_nce(_aul), {**_mix((1.0, 4.0), (10.0, 0.015)), **_AUL}),
    "nce_ael": Spec(_with_nce(_ael), {**_mix((1.0, 4.0), (10.0, 0.1)), **_AEL}),
    "nce": Spec(_nce),
    "rce": Spec(_rce),
    "agce": Spec(_agce, _AGCE),
    "aul": Spec(_aul, _AUL),
    "ael": Spec(_ael, _AEL),
}
"""Every loss, by name."""


class ClassificationLoss(nn.Module):
    """A loss of LOSSES with its options: (logits (B, C), targets (B,) int64) -> mean over these samples."""

    def __init__(self, name: str, options: Mapping[str, float]) -> None:
        super().__init__()
        self.name = name
        self.options = dict(options)

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses (B,) in fp32 (fp64 for fp64 logits), under any autocast.

        `targets`: classes (B,), or probabilities (B, C), of which the loss is the expected one.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
            if targets.ndim > 1:
                return (targets * LOSSES[self.name].per_sample(log_p, log_p, **self.options)).sum(1)
            # Not by gather, whose gradient is a sort where equal bits are asked for on CUDA.
            log_py = -F.nll_loss(log_p, targets, reduction="none")
            return LOSSES[self.name].per_sample(log_p, log_py, **self.options)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the given samples; over all ranks' samples it is dist.global_mean(per_sample(...))."""
        return self.per_sample(logits, targets).mean()

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        return ", ".join([self.name, *(f"{k}={v:g}" for k, v in self.options.items())])


def build_loss(name: str, num_classes: int, **overrides: float) -> ClassificationLoss:
    """A loss by name, with the defaults for `num_classes`, and `overrides` of its options.

    Raises:
        ConfigError: an unknown name or option, or a value out of its range.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss: {name!r} is not known; use one of {', '.join(LOSSES)}")
    known = LOSSES[name].options
    for option in overrides:
        if option not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"loss_options: {name} has no option {option!r}; {allowed}")
    defaults = {k: o.few if num_classes <= FEW_CLASSES else o.many for k, o in known.items()}
    return ClassificationLoss(
        name,
        {k: known[k].check(f"loss_options.{k} of {name}", v) for k, v in {**defaults, **overrides}.items()},
    )
