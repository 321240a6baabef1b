"""Several ranks: two of gloo on one GPU are one rank, and a lone rank of NCCL is none."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from rmd_dist.models.export import create
from rmd_dist.models.student import Student
from rmd_dist.parallel import collectives as dist
from tests.distributed.test_batch_norm import _check, _run
from tests.gpu.runs import Device, differing
from tests.tiny import final_tensors, greatest_difference, train_tiny, update_difference

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])
DOUBLE = "--precision fp64 --max-steps 20 --batch-size 26 --data.train_samples 208".split()


def _train_here(device: Device, stage: str, name: str, more: list[str]) -> None:
    """On a rank: both use the first GPU, which NCCL would refuse."""
    if device.type == "cuda":
        os.environ.pop("ACCELERATE_USE_CPU", None)
        os.environ["LOCAL_RANK"] = "0"
    train_tiny(stage, device.words(stage, name, *more))


@BOTH
def test_two_ranks_on_one_device_are_one(stage, device, ranks):
    """Batch norm over both, the graph over both, gradients of both: to 1e-10 in double."""
    expected = device.train(stage, "one", *DOUBLE)
    ranks(2, 240).run(_train_here, device, stage, "two", DOUBLE)
    found = device.final(stage, "two")
    assert greatest_difference(found, expected) < 1e-10
    assert update_difference(found, expected) < 1e-10


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("sizes", [[3, 2], [1, 6], [4, 0]])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_batch_norm_over_both(dtype, sizes, device, ranks):
    """Uneven shares and an empty one, both layouts, with and without weights; those are fp32 under bf16."""
    for channels_last, affine in ((True, True), (False, True), (False, False)):
        shape = (6,) if affine and not channels_last else (3, 5, 4)
        rest = (shape, affine, 0.1)
        expected = _run([sum(sizes)], *rest, torch.float64, channels_last)
        found = ranks(2, 240).run(_run, sizes, *rest, dtype, channels_last, device.type)
        _check(found, expected, TOLERANCES[dtype])


def _train_by_nccl(device: Device, stage: str) -> dict[str, bool]:
    os.environ.pop("ACCELERATE_USE_CPU", None)
    dist.c10d.init_process_group("nccl", device_id=torch.device("cuda:0"))
    # What a lone rank would pass over: messages by NCCL, waiting by gloo beside it.
    x = torch.arange(6.0, device="cuda").reshape(2, 3)
    out = x.new_empty(1, 2, 3)
    dist._gather_into(out, x)
    dist.barrier()
    reduced = x.clone()
    dist.c10d.all_reduce(reduced)
    # accelerate wraps a lone rank in nothing, so here is the wrapping.
    torch.manual_seed(0)
    alone = Student(create("resnet18_cifar_w16_s2", 10)).cuda()
    wrapped = DistributedDataParallel(copy.deepcopy(alone), device_ids=[0], gradient_as_bucket_view=True)
    images = torch.randn(8, 3, 16, 16, device="cuda")
    for module in (alone, wrapped):
        module(images)[0].square().mean().backward()
    pairs = zip(alone.parameters(), wrapped.parameters(), strict=True)
    gradients = all(torch.equal(a.grad, b.grad) for a, b in pairs)
    train_tiny(stage, device.words(stage, "nccl", "--max-steps", "6"))
    return {"gathered": out[0].equal(x), "reduced": reduced.equal(x), "gradients": gradients}


@BOTH
def test_nccl_with_one_rank_is_no_rank(stage, cuda, ranks):
    (found,) = ranks(1, 240).run(_train_by_nccl, cuda, stage)
    assert all(found.values()), found
    plain = cuda.train(stage, "plain", "--max-steps", "6")
    assert differing(final_tensors(stage, cuda.folder / "nccl"), plain) == []
