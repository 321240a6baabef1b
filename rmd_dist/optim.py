"""SGD in one pass over memory, for which no step waits: neither to set its rate nor to leave a step out."""

from __future__ import annotations

import torch
from torch import nn

from rmd_dist.config import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD of all parameters of `module`, on their device; its learning rate is a tensor, 0 until it is set.

    Where the attribute `found_inf` is set (a tensor, 1.0 or 0.0), a step does nothing if it is 1.0.
    """
    parameters = list(module.parameters())
    lr = torch.zeros((), device=parameters[0].device)  # in fp32, as the kernels on CUDA read it
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    for parameter in parameters if config.momentum else ():
        # torch makes them in the first step, and leaves them unwritten if that one does nothing.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)
