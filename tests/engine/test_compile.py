"""torch.compile in both stages: nothing breaks the graph, gradients overlap, a run remembers it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rmd_dist.errors import ConfigError
from rmd_dist.models import SimSiam
from rmd_dist.models.export import create
from rmd_dist.models.student import Student
from rmd_dist.parallel import collectives as dist
from rmd_dist.parallel.batch_norm import convert_batch_norm
from tests.tiny import train_tiny, words

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])


def module_of(stage: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if stage == "pretrain":
        return convert_batch_norm(SimSiam(create(name, 0), 64, 16))
    return convert_batch_norm(Student(create(name, 10)))


@BOTH
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_nothing_breaks_the_graph(stage, precision):
    """The paper's own encoder, traced as one graph: `fullgraph` raises at whatever would break it."""
    traced = torch.compile(module_of(stage, "resnet18_cifar"), backend="aot_eager", fullgraph=True)
    eager = module_of(stage, "resnet18_cifar")
    views = [torch.randn(4, 3, 16, 16) for _ in range(2 if stage == "pretrain" else 1)]
    with torch.autocast("cpu", precision, enabled=precision is not None):
        expected, found = eager(*views), traced(*views)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-4, atol=1e-4)


@BOTH
def test_a_run_is_not_continued_compiled_unless_one_insists(stage, tmp_path):
    """Rounding differs. tests/gpu/test_compiled.py has what compiled runs compute."""
    train_tiny(stage, words(stage, tmp_path, "--max-steps", "1"))
    manifest = json.loads((tmp_path / stage / "tiny" / "manifest.json").read_text())
    assert manifest["compile"] is False
    with pytest.raises(ConfigError, match=r"compile: False -> True.*--resume-allow compile"):
        train_tiny(stage, words(stage, tmp_path, "--max-steps", "2", "--model.compile", "true"))


def _buckets_before_the_last_gradient() -> tuple[int, int]:
    """Of a compiled student under DDP: buckets sent while gradients were still computed, and all buckets."""
    module = module_of("distill", "resnet18_cifar_w32_s2")
    first = next(module.parameters())
    parallel = DistributedDataParallel(
        torch.compile(module, backend="aot_eager"), broadcast_buffers=False, bucket_cap_mb=2
    )
    sent: list[bool] = []

    def send(_, bucket):
        sent.append(first.grad is None)
        return dist.c10d.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])

    parallel.register_comm_hook(None, send)
    for _ in range(2):  # the buckets are made anew after the first pass
        first.grad = None
        sent.clear()
        parallel(torch.randn(4, 3, 16, 16))[0].sum().backward()
    return sum(sent), len(sent)


def test_gradients_travel_while_others_are_computed(ranks):
    """Compiled before it is wrapped by DDP: one graph behind DDP's back would give them all at the end."""
    for early, buckets in ranks(2).run(_buckets_before_the_last_gradient):
        assert buckets >= 3 and early >= buckets - 1
