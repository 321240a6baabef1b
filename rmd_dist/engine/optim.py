"""Optimizers: SGD in one pass over memory, for which no step waits, and timm's others by name."""

from __future__ import annotations

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn

from rmd_dist.config import OptimConfig
from rmd_dist.errors import ConfigError


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters of `module`, on their device; its learning rate is to be set each step.

    `sgd` is torch's, fused, with the rate as a tensor: where the attribute `found_inf` is set (a tensor, 1.0
    or 0.0), a step does nothing if it is 1.0. Others are timm's, with its defaults but for the rate, momentum
    and weight decay. Raises ConfigError naming those that exist.
    """
    if config.name != "sgd":
        return _from_timm(module, config)
    parameters = list(module.parameters())
    lr = torch.zeros((), device=parameters[0].device)  # in fp32, as the kernels on CUDA read it
    optimizer = torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=True,
    )
    for parameter in parameters if config.momentum else ():
        # torch makes them in the first step, and leaves them unwritten if that one does nothing.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _from_timm(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    if config.nesterov:
        raise ConfigError(f"optim.nesterov is of sgd, not of optim.name = {config.name}; leave it out")
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        raise ConfigError(f"optim.name = {config.name!r} is not known; use sgd or one of {', '.join(known)}")
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            module,
            config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=False,
        )
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"optim.name = {config.name!r} cannot be used here ({error}); try sgd") from error
    return optimizer


def build_average(module: nn.Module, config: OptimConfig) -> ModelEmaV3 | None:
    """The moving average of `module`'s weights and buffers, where one is configured."""
    return ModelEmaV3(module, config.ema_decay, use_warmup=True) if config.ema_decay else None


def step_unless(left_out: torch.Tensor | None, optimizer: AcceleratedOptimizer) -> None:
    """A step, unless `left_out` is 1.0, for which nobody waits if the optimizer can look at it by itself."""
    inner = optimizer.optimizer
    if left_out is not None and inner.defaults.get("fused"):
        inner.found_inf = left_out
    elif left_out is not None and left_out.item():
        return
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
