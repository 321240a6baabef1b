"""Everything that crosses ranks; the only user of torch.distributed.

All of it works without a process group too, as a world of one rank.

The gradient convention, accounted for here and nowhere else: a loss that spans ranks has the GLOBAL
value on every rank, and the gradient it leaves on a rank's own tensors is W times that tensor's share
of the global gradient (W ranks). DistributedDataParallel averages parameter gradients over ranks, so
the W cancels and every rank steps along the gradient of the global loss. In symbols, for per-sample
losses l_i with B samples in all, L = sum_i l_i / B has dL/dl_i = W / B on the rank that owns sample i.

Tensors travel by the default group (NCCL on GPUs), what the host says (objects, flags, waiting) by gloo
groups of their own: no GPU is waited for, and a rank that waits for another one's file or figure does not
run into NCCL's time-out of ten minutes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor

_PATIENCE = timedelta(hours=6)
"""How long ranks wait for what they know to take long on another's host. Elsewhere gloo's own half hour."""

_SMALL_NUMEL = 65_536
"""Up to so many numbers over all ranks, gloo's all-to-all takes half the time of its gather or reduction."""


_alone = False


def _grouped() -> bool:
    return not _alone and c10d.is_available() and c10d.is_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this rank is a world of its own: what is collective elsewhere is about its rows alone."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


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


_hosts: dict[bool, tuple[Any, Any]] = {}  # patient or not -> the default group, the gloo group beside it
_rows: tuple[int, ...] = ()


def _host_group(patient: bool = False) -> Any:
    """The group by which hosts talk; made at its first use, which must be by all ranks."""
    world = c10d.group.WORLD
    if patient not in _hosts or _hosts[patient][0] is not world:
        _hosts[patient] = world, c10d.new_group(backend="gloo", timeout=_PATIENCE if patient else None)
    return _hosts[patient][1]


def barrier() -> None:
    """Wait for every rank's host."""
    if _grouped():
        c10d.barrier(group=_host_group())


def shutdown() -> None:
    """Leave the process group; the last call of every script and worker. Safe without a group, and twice.

    The barrier is what keeps gloo ranks from aborting at interpreter exit while a peer still talks to them.
    """
    if _grouped():
        try:
            barrier()
        finally:
            _hosts.clear()
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


def gather_equal(x: Tensor) -> Tensor:
    """(...) -> (W, ...) in rank order; the shape must be the same on every rank (gloo aborts otherwise)."""
    world = world_size()
    x = x.detach().contiguous()
    if world == 1:
        return x.unsqueeze(0)
    out = x.new_empty((world, *x.shape))
    if x.is_cpu and out.numel() <= _SMALL_NUMEL:
        c10d.all_to_all_single(out, x.expand_as(out).contiguous())
    elif _nccl():
        _gather_into(out, x)
    else:  # gloo has no such form
        c10d.all_gather(list(out.unbind(0)), x)
    return out


_gather_into: Any = getattr(c10d, "all_gather_single", None) or c10d.all_gather_into_tensor  # its older name


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, as a new tensor without gradient; the same bits on every rank."""
    x = x.detach()
    if world_size() == 1:
        return x.clone()
    if x.is_cpu and x.numel() * world_size() <= _SMALL_NUMEL:
        return gather_equal(x).sum(0)
    out = x.contiguous().clone()
    c10d.all_reduce(out)
    return out


@contextlib.contextmanager
def rows_known(sizes: Sequence[int]) -> Iterator[None]:
    """Inside, ranks do not tell each other how many rows a tensor has: `sizes` says it, in rank order.

    A promise: a tensor that has this rank's number of rows here has every other rank's number there. Where a
    rank has none, nothing counts as known.
    """
    global _rows
    before, _rows = _rows, tuple(sizes) if all(sizes) else ()
    try:
        yield
    finally:
        _rows = before


def row_counts(x: Tensor) -> list[int]:
    """First dimension of every rank's x, in rank order; exchanged between hosts unless it is known."""
    if world_size() == 1:
        return [x.shape[0]]
    if len(_rows) == world_size() and _rows[rank()] == x.shape[0]:
        return list(_rows)
    return [int(count) for count in all_gather_object(x.shape[0])]


def all_gather_rows(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of every rank, in rank order, without gradient: (b_r, ...) -> (sum of b_r, ...).

    The ranks' row counts b_r may differ. `sizes` gives them where the caller knows them; it must be the
    same on every rank. Unset, they are those of `row_counts`.
    """
    if world_size() == 1:
        return x.detach().clone()
    sizes = row_counts(x) if sizes is None else sizes
    assert sizes[rank()] == x.shape[0], f"rank {rank()} holds {x.shape[0]} rows, sizes says {list(sizes)}"
    most = max(sizes)
    padded = x.detach()
    if x.shape[0] < most:
        padded = torch.cat([padded, x.new_zeros((most - x.shape[0], *x.shape[1:]))])
    gathered = gather_equal(padded)
    if min(sizes) == most:
        return gathered.flatten(0, 1)
    return torch.cat([rows[:b] for rows, b in zip(gathered, sizes, strict=True)])


def all_gather_object(obj: Any) -> list[Any]:
    """One picklable object of every rank, in rank order."""
    out: list[Any] = [obj] * world_size()
    if world_size() > 1:
        c10d.all_gather_object(out, obj, group=_host_group())
    return out


def broadcast_object(obj: Any, src: int = 0, *, patient: bool = False) -> Any:
    """The picklable object that rank `src` holds; `patient`: it may take hours to come."""
    box = [obj]
    if world_size() > 1:
        c10d.broadcast_object_list(box, src=src, group=_host_group(patient))
    return box[0]


class Agreement:
    """Flags that any rank may raise; all know of them one exchange later, and nobody waits. Collective.

    On a group of its own: its messages are under way while others pass. A world of one agrees at once.
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


def publish_failure(text: str) -> None:
    """Leave a word for the other ranks on why this one ends; none hears it once the store's rank is gone."""
    if _grouped():
        with contextlib.suppress(RuntimeError):
            c10d.distributed_c10d._get_default_store().set(f"failure/{rank()}", text)


def failure_of(of_rank: int, seconds: float = 0.0) -> str | None:
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
