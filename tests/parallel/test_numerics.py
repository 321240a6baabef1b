"""How torch computes: what is set, what is refused, and that nothing is lost by casting weights once."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from rmd_dist.errors import ConfigError, Fault
from rmd_dist.models.export import create
from rmd_dist.parallel.accelerator import make_accelerator
from rmd_dist.parallel.numerics import cast_weights, full_precision, set_numerics
from rmd_dist.parallel.processes import as_fault
from tests.tiny import train_tiny, words


@pytest.fixture(autouse=True)
def _as_before():
    yield
    set_numerics("no", deterministic=True)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp64", "tf32"])
def test_tf32_is_a_precision_of_its_own(precision):
    set_numerics(precision, deterministic=True)
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert allowed == ((precision == "tf32"),) * 2
    with full_precision(torch.device("cuda")):
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("deterministic", [True, False])
def test_one_switch_for_equal_bits(deterministic, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_numerics("no", deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_a_cpu_would_silently_not_do_is_refused(precision, monkeypatch):
    with pytest.raises(ConfigError, match=f"{precision} runs on GPUs only"):
        make_accelerator(precision, cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="fp16 runs on GPUs only"):
        make_accelerator("launch", cpu=True)


def test_how_a_run_rounds_is_part_of_it(tmp_path):
    argv = words("distill", tmp_path, "--max-steps")
    train_tiny("distill", [*argv, "1"])
    with pytest.raises(ConfigError, match=r"deterministic: True -> False.*--resume-allow deterministic"):
        train_tiny("distill", [*argv, "2", "--deterministic", "false"])
    train_tiny("distill", [*argv, "2", "--deterministic", "false", "--resume-allow", "deterministic"])


def test_an_operation_without_equal_bits_is_named_with_the_way_round():
    told = (
        "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
    )
    fault = as_fault(RuntimeError(told))
    assert isinstance(fault, Fault)
    assert str(fault).startswith("adaptive_max_pool2d_backward_cuda does not have a deterministic")
    assert "--deterministic false" in str(fault)


class Doubled(nn.Conv2d):
    """A layer that does something with its weights first, as weight standardisation does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight * 1.001, self.bias)


@pytest.mark.parametrize("name", ["resnet18_cifar_w16", "test_vit", "test_efficientnet", "own"])
def test_weights_cast_once_give_the_same_bits(name):
    torch.manual_seed(0)
    if name == "own":
        model: nn.Module = nn.Sequential(Doubled(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    else:
        model = create(name, 0)
    model = model.eval().requires_grad_(False)
    size = 160 if name.startswith("test_") else 32
    x = torch.randn(2, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        cast_weights(model, torch.bfloat16)
        after = model(x)
    assert torch.equal(before, after)
    kinds = {p.dtype for p in model.parameters()}
    assert torch.bfloat16 in kinds  # batch norm's and the like stay in fp32
    assert name == "own" or torch.float32 in kinds
