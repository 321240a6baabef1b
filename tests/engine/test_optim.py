"""The optimizer is torch's SGD, and its first step may be one that is left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmd_dist.config import OptimConfig
from rmd_dist.engine.optim import build_optimizer, set_learning_rate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 33, 3), nn.BatchNorm2d(33), nn.Conv2d(33, 7, 1), nn.Linear(5, 9))


def give_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(
            torch.randn(
                parameter.shape, generator=generator
            )  # in the parameter's layout, as autograd gives it
        )


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_plain_sgd(layout, momentum):
    ours, plain = (net().to(memory_format=layout) for _ in "12")
    config = OptimConfig(momentum=momentum)
    optimizer = build_optimizer(ours, config)
    expected = torch.optim.SGD(
        plain.parameters(), lr=1.0, momentum=momentum, weight_decay=config.weight_decay, foreach=False
    )
    for step, lr in enumerate((0.03, 0.03, 0.0017)):
        set_learning_rate(optimizer, lr)
        expected.param_groups[0]["lr"] = lr
        for module, optimizer_of in ((ours, optimizer), (plain, expected)):
            give_gradients(module, step)
            optimizer_of.step()
    for parameter, reference in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, reference, rtol=1e-6, atol=1e-7)
        if momentum:
            found, wanted = (o.state[p] for o, p in ((optimizer, parameter), (expected, reference)))
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_step_that_is_left_out_changes_nothing_even_the_first():
    """torch's own first step would leave the momentum unwritten, and the second add to what lay in memory."""
    left_out_first, without_it = net(), net()
    optimizers = [build_optimizer(module, OptimConfig()) for module in (left_out_first, without_it)]
    give_gradients(left_out_first, 0)
    set_learning_rate(optimizers[0], 0.1)
    optimizers[0].found_inf = torch.tensor(1.0)
    optimizers[0].step()
    assert all(
        torch.equal(a, b) for a, b in zip(left_out_first.parameters(), without_it.parameters(), strict=True)
    )
    optimizers[0].found_inf = torch.tensor(0.0)
    for module, optimizer in zip((left_out_first, without_it), optimizers, strict=True):
        give_gradients(module, 1)
        set_learning_rate(optimizer, 0.1)
        optimizer.step()
    assert all(
        torch.equal(a, b) for a, b in zip(left_out_first.parameters(), without_it.parameters(), strict=True)
    )
