"""Batch norm over the samples of all ranks, on CPU and CUDA.

torch's SyncBatchNorm refuses CPU tensors, and on CUDA waits for the device three times a layer to learn which
ranks are empty. Here the host knows how many samples each rank has (collectives.rows_known): nothing waits.

Forward: each rank's statistics are gathered and combined as by Chan, Golub & LeVeque (1983): mean = sum n_r
mean_r / n, var = sum n_r (var_r + (mean_r - mean)^2) / n. Backward, with sums over all ranks: dx = w / sigma
(dy - sum(dy) / n - xhat sum(dy xhat) / n), the gradient of the SUM of the ranks' losses, as torch has it. One
message each. The passes over memory are torch's own kernels, on CUDA those of SyncBatchNorm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rmd_dist.errors import ConfigError
from rmd_dist.parallel import collectives

Running = tuple[Tensor, Tensor]
"""Running mean and variance, each (C,)."""


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the host knows, on a device; kept, because sending it anew would make every layer wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _dense(x: Tensor) -> Tensor:
    """`x` in a layout that the CUDA kernels take."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _per_channel(v: Tensor, like: Tensor) -> Tensor:
    return v.view(1, -1, *[1] * (like.dim() - 2))


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale_c x + shift_c in one pass over memory."""
    if x.dim() > 2 and x.is_contiguous():
        # With two broadcast operands elementwise kernels do not vectorise over NCHW; batch norm's does.
        # Not by F.batch_norm, which in some releases refuses eps = 0.
        zero, one = torch.zeros_like(shift), torch.ones_like(scale)
        return torch.batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, False)
    return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))


def _statistics(x: Tensor, eps: float) -> Tensor:
    """(2C,) in fp32 at least: this rank's mean and biased variance; on CUDA mean and 1 / sigma."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if not x.numel():
        return x.new_zeros(2 * x.shape[1], dtype=exact)
    if x.is_cuda:
        return torch.cat(torch.batch_norm_stats(x, eps))
    # Running statistics in fp32, though unused, make the kernel keep those of bf16 input in fp32 too.
    unused = None if x.dtype == exact else x.new_zeros(x.shape[1], dtype=exact)
    return torch.cat(torch.batch_norm_update_stats(x, unused, unused, 0.0))


def _normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    counts: Sequence[int],
    running: Running | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, 1 / sigma) from all ranks' statistics (W, 2C); `running` follows them."""
    n, channels = sum(counts), x.shape[1]
    if x.is_cuda:
        if not all(counts):  # torch's kernel makes nan of a rank without values
            stats = torch.stack([row for row, count in zip(stats.unbind(), counts, strict=True) if count])
        means, invstds = stats.chunk(2, dim=1)
        running = running or (stats.new_zeros(channels), stats.new_zeros(channels))
        numbers = _on_device(tuple(count for count in counts if count), running[0].dtype, x.device)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, means, invstds, *running, momentum, eps, numbers
        )
        y = torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps) if x.numel() else x.clone()
        return y, mean, invstd
    share_r = _on_device(tuple(count / n for count in counts), stats.dtype, x.device)
    mean, var = torch.mv(stats.T, share_r).chunk(2)
    var += torch.mv((stats[:, :channels] - mean).square_().T, share_r)
    if running is not None:
        running[0].lerp_(mean.to(running[0].dtype), momentum)
        running[1].lerp_((var * (n / (n - 1))).to(running[1].dtype), momentum)
    y = torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False) if x.numel() else x.clone()
    return y, mean, (var + eps).rsqrt_()


def _sums(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(sums, dweight, dbias) of this rank: sums (2, C) of dy and dy xhat, on CUDA of dy and dy (x - mean)."""
    if not x.numel():
        nothing = torch.zeros_like(mean)
        return torch.stack([nothing, nothing]), nothing, nothing
    if x.is_cuda:
        affine = weight is not None
        dy_sum, dy_xmu, dweight, dbias = torch.batch_norm_backward_reduce(
            dy, x, mean, invstd, weight, True, affine, affine
        )
        return torch.stack([dy_sum, dy_xmu]), dweight, dbias
    # Asked for its parameter gradients alone, the kernel makes one pass.
    _, dy_xhat, dy_sum = torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return torch.stack([dy_sum, dy_xhat]), dy_xhat, dy_sum


def _input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    sums: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """dx from all ranks' `_sums`; where torch has no kernel as b x + c - a dy, in two passes over memory."""
    if x.is_cuda:
        numbers = _on_device(tuple(counts), torch.int32, x.device)
        weight = None if weight is None else weight.to(mean.dtype)
        if not x.numel():
            return torch.zeros_like(x)
        return torch.batch_norm_backward_elemt(dy, x, mean, invstd, weight, sums[0], sums[1], numbers)
    mean_dy, mean_dy_xhat = (sums.to(mean.dtype) / sum(counts)).unbind()
    a = -invstd if weight is None else invstd * -weight
    b = a * invstd * mean_dy_xhat
    c = torch.addcmul(a * mean_dy, b, mean, value=-1)
    dx = _scale_shift(x, b, c).to(mean.dtype)
    return dx.addcmul_(dy, _per_channel(a, x), value=-1).to(x.dtype)


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of all ranks' samples; counts of ranks may differ, down to none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x) if x.is_cuda else x
        per_row = math.prod(x.shape[2:])
        counts = [rows * per_row for rows in collectives.row_counts(x)]
        if sum(counts) <= 1:
            raise ValueError(
                f"batch norm needs more than 1 value per channel over all ranks, got {sum(counts)}"
            )
        stats = collectives.gather_equal(_statistics(x, eps))
        y, mean, invstd = _normalized(x, weight, bias, stats, counts, running, momentum, eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.counts, ctx.has_bias = counts, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        dy = _dense(grads[0]) if x.is_cuda else grads[0]
        sums, dweight, dbias = _sums(dy, x, weight, mean, invstd)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(dy, x, weight, mean, invstd, collectives.all_reduce_sum(sums), ctx.counts)
        return (
            dx,
            dweight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            dbias.to(weight.dtype) if ctx.has_bias and ctx.needs_input_grad[2] else None,
            *(None, None, None),
        )


class _GlobalBatchNormModule(_BatchNorm):
    """What the layers below share: torch's batch norm, but for training on several ranks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or collectives.world_size() == 1:
            return super().forward(x)
        y: Tensor = self._over_ranks(x)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _over_ranks(self, x: Tensor) -> Tensor:
        """Not compiled: messages cannot be traced."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        momentum, running = 0.0, None
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            running = (self.running_mean, self.running_var)
            # momentum None means the cumulative average
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        y: Tensor = _GlobalBatchNorm.apply(x, self.weight, self.bias, running, momentum, self.eps)
        return y


class GlobalBatchNorm1d(_GlobalBatchNormModule, nn.BatchNorm1d):
    """nn.BatchNorm1d over the samples of all ranks."""


class GlobalBatchNorm2d(_GlobalBatchNormModule, nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all ranks."""


@functools.cache
def _global_classes() -> dict[type, type]:
    """Layer -> its global form, timm's batch norm with an activation included."""
    from timm.layers.norm_act import BatchNormAct2d

    class GlobalBatchNormAct2d(_GlobalBatchNormModule, BatchNormAct2d):
        """timm's BatchNormAct2d over the samples of all ranks."""

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if not self.training or collectives.world_size() == 1:
                return y  # timm's own forward has applied the rest
            activated: Tensor = self.act(self.drop(y))
            return activated

    return {
        nn.BatchNorm1d: GlobalBatchNorm1d,
        nn.BatchNorm2d: GlobalBatchNorm2d,
        BatchNormAct2d: GlobalBatchNormAct2d,
    }


def convert_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch norm of `module` global over ranks; keys, parameters and buffers stay the same.

    On one rank the converted layers are the native ones. Use the returned module.

    Raises:
        ConfigError: a kind of batch norm that has no global form, on several ranks.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _GlobalBatchNormModule) or not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in _global_classes():
            if collectives.world_size() == 1:  # its own statistics are the global ones
                continue
            raise ConfigError(
                f"layer {name!r} is a {type(layer).__name__}, which has no form over several ranks: "
                "use a model with nn.BatchNorm1d or 2d (resnet18_cifar), or one process"
            )
        layer.__class__ = _global_classes()[type(layer)]  # only forward differs: no state to copy
    return module
