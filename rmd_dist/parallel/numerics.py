"""How torch computes: in fp32 proper or TensorFloat-32, the same bits every time or the fastest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from rmd_dist.parallel import environment

_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights go into one operation, which autocast casts them for. Not subclasses: those may use
their weights otherwise first."""

_EXACT_WORKSPACES = (":4096:8", ":16:8")
"""What CUBLAS_WORKSPACE_CONFIG must say for cuBLAS to give the same bits every time."""


def set_numerics(precision: str, deterministic: bool) -> None:
    """Set what torch takes for fp32, and whether equal inputs give equal bits, for the whole process.

    precision: `tf32` lets convolutions and matrix products on CUDA round their fp32 inputs to 10 bits of
    mantissa; anything else forbids it, though torch by itself allows it in convolutions.

    deterministic: kernels that give other bits from run to run are not chosen, and an operation that has no
    other raises RuntimeError. Without it cuDNN tries its kernels and keeps the fastest.
    """
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if deterministic and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _EXACT_WORKSPACES:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = _EXACT_WORKSPACES[0]  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # Else torch would write over every tensor that it makes, to show up reads of what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined, unused-ignore]


def compiled(module: nn.Module, deterministic: bool) -> nn.Module:
    """torch.compile of `module`, whose kernels are then not chosen by timing them where that changes bits.

    Raises ConfigError where the environment would have torch not compile, or compute otherwise.
    """
    environment.refuse(environment.COMPILED)
    from torch._inductor import config  # slow to import

    if hasattr(config, "deterministic"):  # torch before 2.10 does not choose by timing where bits change
        config.deterministic = deterministic
    return cast(nn.Module, torch.compile(module))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, fp32 operands are multiplied in fp32: no autocast, no TensorFloat-32."""
    relaxed = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    if relaxed:
        torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if relaxed:
            torch.backends.cuda.matmul.allow_tf32 = True


def cast_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast once what autocast to `dtype` would cast at every call: for weights that are not trained.

    Under autocast the outputs are the same to the bit. (Autocast itself keeps its casts only of weights that
    require gradients.) None: nothing to do.
    """
    for layer in module.modules() if dtype else ():
        if type(layer) in _CAST:
            layer.to(dtype)
