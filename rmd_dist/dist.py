"""Everything that crosses ranks; the only user of torch.distributed.

All of it works without a process group too, as a world of one rank.

The gradient convention, accounted for here and nowhere else: a loss that spans ranks has the GLOBAL
value on every rank, and the gradient it leaves on a rank's own tensors is W times that tensor's share
of the global gradient (W ranks). DistributedDataParallel averages parameter gradients over ranks, so
the W cancels and every rank steps along the gradient of the global loss. In symbols, for per-sample
losses l_i with B samples in all, L = sum_i l_i / B has dL/dl_i = W / B on the rank that owns sample i.
Batch norm follows torch's SyncBatchNorm: its input gradient is that of the SUM of the ranks' losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rmd_dist.config import ConfigError

_SMALL_NUMEL = 65_536
"""Up to so many numbers over all ranks, gloo's all-to-all takes half the time of its gather or reduction."""


def _grouped() -> bool:
    return c10d.is_available() and c10d.is_initialized()


def world_size() -> int:
    """Number of ranks W; 1 without a process group."""
    return c10d.get_world_size() if _grouped() else 1


def rank() -> int:
    """This process's rank in [0, W); 0 without a process group."""
    return c10d.get_rank() if _grouped() else 0


def is_main() -> bool:
    """Whether this rank is the one that writes and prints."""
    return rank() == 0


def _nccl() -> bool:
    return "nccl" in str(c10d.get_backend())


def barrier() -> None:
    """Wait for every rank."""
    if _grouped():
        c10d.barrier(device_ids=[torch.cuda.current_device()] if _nccl() else None)


def shutdown() -> None:
    """Leave the process group; the last call of every script and worker. Safe without a group, and twice.

    The barrier is what keeps gloo ranks from aborting at interpreter exit while a peer still talks to them.
    """
    if _grouped():
        try:
            barrier()
        finally:
            c10d.destroy_process_group()


def share(n: int, rank: int, world: int) -> slice:
    """Contiguous share of `n` items that `rank` of `world` owns; shares differ by at most 1 in length."""
    return slice(n * rank // world, n * (rank + 1) // world)


def share_sizes(n: int, world: int) -> list[int]:
    """Lengths of the shares of all ranks, in rank order."""
    shares = [share(n, r, world) for r in range(world)]
    return [s.stop - s.start for s in shares]


def average_gradient_scale() -> float:
    """W: what a closed-form gradient of a global loss is multiplied by, as DDP will divide by it."""
    return float(world_size())


def _gather_equal(x: Tensor) -> Tensor:
    """(...) -> (W, ...) in rank order; the shape must be the same on every rank (gloo aborts otherwise)."""
    world = world_size()
    x = x.detach().contiguous()
    if world == 1:
        return x.unsqueeze(0)
    out = x.new_empty((world, *x.shape))
    if x.is_cpu and out.numel() <= _SMALL_NUMEL:
        c10d.all_to_all_single(out, x.expand_as(out).contiguous())
    else:
        c10d.all_gather(list(out.unbind(0)), x)
    return out


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, as a new tensor without gradient; the same bits on every rank."""
    x = x.detach()
    if world_size() == 1:
        return x.clone()
    if x.is_cpu and x.numel() * world_size() <= _SMALL_NUMEL:
        return _gather_equal(x).sum(0)
    out = x.contiguous().clone()
    c10d.all_reduce(out)
    return out


def row_counts(x: Tensor) -> list[int]:
    """First dimension of every rank's x, in rank order. On CUDA this waits for the device."""
    if world_size() == 1:
        return [x.shape[0]]
    counts: list[int] = _gather_equal(torch.tensor([x.shape[0]], device=x.device)).flatten().tolist()
    return counts


def all_gather_rows(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of every rank, in rank order, without gradient: (b_r, ...) -> (sum of b_r, ...).

    The ranks' row counts b_r may differ. `sizes` gives them where the caller knows them; it must be the
    same on every rank. Unset, they are exchanged first (row_counts).
    """
    if world_size() == 1:
        return x.detach().clone()
    sizes = row_counts(x) if sizes is None else sizes
    assert sizes[rank()] == x.shape[0], f"rank {rank()} holds {x.shape[0]} rows, sizes says {list(sizes)}"
    most = max(sizes)
    padded = x.detach()
    if x.shape[0] < most:
        padded = torch.cat([padded, x.new_zeros((most - x.shape[0], *x.shape[1:]))])
    gathered = _gather_equal(padded)
    if min(sizes) == most:
        return gathered.flatten(0, 1)
    return torch.cat([rows[:b] for rows, b in zip(gathered, sizes, strict=True)])


def all_gather_object(obj: Any) -> list[Any]:
    """One picklable object of every rank, in rank order."""
    out: list[Any] = [obj] * world_size()
    if world_size() > 1:
        c10d.all_gather_object(out, obj)
    return out


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """The picklable object that rank `src` holds."""
    box = [obj]
    if world_size() > 1:
        c10d.broadcast_object_list(box, src=src)
    return box[0]


class Agreement:
    """Flags that any rank may raise; all know of them one exchange later, and nobody waits. Collective.

    On a gloo group of its own, so that no GPU is waited for. A world of one agrees at once.
    """

    def __init__(self) -> None:
        self._group: Any = c10d.new_group(backend="gloo") if world_size() > 1 else None
        self._flags = torch.zeros(0)
        self._pending: Any = None

    def exchange(self, *raised: bool) -> tuple[bool, ...]:
        """Send this rank's flags; returns which were raised on any rank at the exchange before."""
        if self._group is None:
            return raised
        agreed = self.drain() or (False,) * len(raised)
        self._flags = torch.tensor(raised, dtype=torch.int32)
        self._pending = c10d.all_reduce(self._flags, op=c10d.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def drain(self) -> tuple[bool, ...]:
        """Wait for the exchange in flight (before the group is left): its flags; without one, none."""
        if self._pending is None:
            return ()
        self._pending.wait()
        self._pending = None
        return tuple(bool(flag) for flag in self._flags)


def tell_failure(text: str) -> None:
    """Leave a word for the other ranks on why this one ends; none hears it once the store's rank is gone."""
    if _grouped():
        with contextlib.suppress(RuntimeError):
            c10d.distributed_c10d._get_default_store().set(f"failure/{rank()}", text)


def told_failure(of_rank: int, seconds: float = 0.0) -> str | None:
    """What a rank left, if it does within `seconds`."""
    if not _grouped():
        return None
    store, key = c10d.distributed_c10d._get_default_store(), f"failure/{of_rank}"
    try:
        if seconds:
            store.wait([key], timedelta(seconds=seconds))
        return str(store.get(key).decode()) if store.check([key]) else None
    except RuntimeError:  # not told, or the rank that keeps the store is gone
        return None


def lost_peer(text: str) -> bool:
    """Whether this is how gloo or NCCL say that another rank is gone."""
    return any(
        sign in text for sign in ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
    )


def is_network_error(error: BaseException) -> bool:
    """Whether `error` comes from gloo, NCCL or the store."""
    return isinstance(error, c10d.DistError) or "gloo/" in str(error)


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total, count = all_reduce_sum(
            torch.stack([values.sum(), torch.full((), len(values), dtype=values.dtype, device=values.device)])
        ).unbind()
        ctx.save_for_backward(count)
        ctx.rows = len(values)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (count,) = ctx.saved_tensors
        per_sample: Tensor = grads[0] * (average_gradient_scale() / count)
        return per_sample.expand(ctx.rows)


def global_mean(values: Tensor) -> Tensor:
    """Mean of per-sample losses over the samples of ALL ranks: (b_r,) -> scalar, in fp32 at least.

    The value is the same on every rank; the gradient follows the module's convention.
    """
    values = values if values.dtype == torch.float64 else values.float()
    mean: Tensor = _GlobalMean.apply(values)
    return mean


def _per_channel(v: Tensor, like: Tensor) -> Tensor:
    return v.view(1, -1, *[1] * (like.dim() - 2))


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale_c x + shift_c in one pass over memory."""
    if x.dim() > 2 and x.is_contiguous():
        # With two broadcast operands elementwise kernels do not vectorise over NCHW; batch norm's does.
        zero, one = torch.zeros_like(shift), torch.ones_like(scale)
        return F.batch_norm(x, zero, one, scale, shift, False, 0.0, 0.0)
    return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of all ranks' samples; counts of ranks may differ, down to none.

    Forward: each rank's (mean, var, n) are gathered and combined as by Chan, Golub & LeVeque (1983):
    mean = sum n_r mean_r / n, var = sum n_r (var_r + (mean_r - mean)^2) / n. Backward, with sums over
    all ranks: dx = w / sigma (dy - sum(dy) / n - xhat sum(dy xhat) / n). Each has one message, and
    torch's native kernels for the passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        channels = x.shape[1]
        local = x.numel() // channels
        exact = torch.promote_types(x.dtype, torch.float32)
        # Running statistics in fp32, though unused, make the kernel keep those of bf16 input in fp32 too.
        unused = None if x.dtype == exact else x.new_zeros(channels, dtype=exact)
        if local:
            mean_r, var_r = torch.batch_norm_update_stats(x, unused, unused, 0.0)  # var_r: biased
            own = torch.cat([mean_r, var_r, mean_r.new_tensor([local])])
        else:
            own = x.new_zeros(2 * channels + 1, dtype=exact)
        stats = _gather_equal(own)
        counts = stats[:, -1:].tolist()
        n = int(sum(count for (count,) in counts))
        if n <= 1:
            raise ValueError(f"batch norm needs more than 1 value per channel over all ranks, got {n}")
        share_r = stats[:, -1] / n
        mean, var = torch.mv(stats[:, :-1].T, share_r).chunk(2)
        var += torch.mv((stats[:, :channels] - mean).square_().T, share_r)
        if running is not None:
            running[0].lerp_(mean.to(running[0].dtype), momentum)
            running[1].lerp_((var * (n / (n - 1))).to(running[1].dtype), momentum)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt_())
        ctx.n, ctx.eps, ctx.has_bias = n, eps, bias is not None
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False) if local else x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        dy = grads[0]
        if x.numel():
            # Asked for its parameter gradients alone, the kernel makes one pass: sum(dy xhat) and sum(dy).
            _, dy_xhat, dy_sum = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, None, None, mean, invstd, True, ctx.eps, [False, True, True]
            )
        else:
            dy_xhat = dy_sum = torch.zeros_like(mean)
        dx = None
        if ctx.needs_input_grad[0]:
            sums = all_reduce_sum(torch.stack([dy_xhat, dy_sum])).to(mean.dtype) / ctx.n
            dx = _input_gradient(dy, x, weight, mean, invstd, *sums.unbind())
        dweight = dy_xhat.to(weight.dtype) if ctx.needs_input_grad[1] else None
        dbias = dy_sum.to(weight.dtype) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None, None


def _input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mean_dy_xhat: Tensor,
    mean_dy: Tensor,
) -> Tensor:
    """dx = b x + c - a dy per channel, with a = -w / sigma, by two passes over memory."""
    a = -invstd if weight is None else invstd * -weight
    b = a * invstd * mean_dy_xhat
    c = torch.addcmul(a * mean_dy, b, mean, value=-1)
    dx = _scale_shift(x, b, c).to(mean.dtype)
    return dx.addcmul_(dy, _per_channel(a, x), value=-1).to(x.dtype)


class _GlobalBatchNormModule(_BatchNorm):
    """What GlobalBatchNorm1d and 2d share: torch's batch norm, but for training on several ranks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break()  # collectives of an autograd function cannot be traced
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
    """nn.BatchNorm1d over the samples of all ranks, for CPU ranks (torch's SyncBatchNorm refuses those)."""


class GlobalBatchNorm2d(_GlobalBatchNormModule, nn.BatchNorm2d):
    """nn.BatchNorm2d over the samples of all ranks, for CPU ranks (torch's SyncBatchNorm refuses those)."""


_GLOBAL_OF = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}


def convert_batch_norm(module: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """Make every batch norm of `module` global over ranks; keys, parameters and buffers stay the same.

    On CUDA the layers become torch's SyncBatchNorm (timm's fused ones included), elsewhere ours, which
    run the native kernel where there is one rank. Use the returned module.

    Raises:
        ConfigError: a kind of batch norm that has no global form on CPU ranks.
    """
    if torch.device(device).type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, layer in module.named_modules():
        if isinstance(layer, _GlobalBatchNormModule) or not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in _GLOBAL_OF:
            if world_size() == 1:  # its own statistics are the global ones
                continue
            raise ConfigError(
                f"layer {name!r} is a {type(layer).__name__}, which has no form over several CPU ranks: "
                "use a model with nn.BatchNorm1d or 2d (resnet18_cifar), one process, or GPUs"
            )
        layer.__class__ = _GLOBAL_OF[type(layer)]  # only forward differs: no state to copy, none to forget
    return module
