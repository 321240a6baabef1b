"""The one Accelerator of a process: its device, its group of ranks, the precision it computes in."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from rmd_dist.config import AnyConfig
from rmd_dist.errors import ConfigError
from rmd_dist.parallel import collectives, environment
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.numerics import set_numerics
from rmd_dist.parallel.processes import refuse_separate_runs, set_torch_threads, workers_per_rank


def make_accelerator(
    precision: str = "launch", cpu: bool = False, threads: int = 0, deterministic: bool = True
) -> Accelerator:
    """The one Accelerator of a process; sets how torch computes, and on a CPU the number of its threads.

    Raises ConfigError where ranks would not form one group, or accelerate is asked for something else than
    the configuration says. Without a GPU the ranks of `accelerate launch` join one gloo group only if the
    script asks for it.
    """
    on_cpu = cpu or environment.switched_on("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    environment.refuse(environment.ACCELERATE)
    environment.refuse(environment.ON_CPUS if on_cpu else environment.ON_GPUS)
    environment.refuse_lone_ranks(on_cpu)
    asked = precision
    if precision == "launch":
        environment.refuse(environment.PRECISION)
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if on_cpu and asked in ("fp16", "tf32"):
        raise ConfigError(
            f"{asked} runs on GPUs only (on a CPU it would silently be fp32); use --precision bf16 or no"
        )
    mixed = {"fp64": "no", "tf32": "no"}.get(asked, asked)
    # Batch norm is global, so buffers agree on all ranks without being sent.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[ddp])
    except (ValueError, ImportError, NotImplementedError) as error:
        asks = " ".join(name for name in os.environ if name.startswith("ACCELERATE_"))
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"accelerate cannot start ({reason}); unset what asks for it: {asks}") from error
    except RuntimeError as error:
        if not (collectives.is_network_error(error) and "EADDRINUSE" in str(error)):
            raise
        port = os.environ.get("MASTER_PORT", "29500")
        raise ConfigError(f"MASTER_PORT = {port} is taken by another program; give another number") from error
    set_numerics(precision, deterministic)  # after accelerate, which may have allowed TF32
    refuse_separate_runs(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        set_torch_threads(threads)
    return accelerator


def precision_of(config: AnyConfig, accelerator: Accelerator) -> str:
    """What a run computes in: no (fp32), tf32, bf16, fp16 or fp64."""
    asked = config.run.precision
    return asked if asked in ("fp64", "tf32") else accelerator.mixed_precision


def numerics_of(config: AnyConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What decides how a run rounds."""
    return {
        "precision": precision_of(config, accelerator),
        "compile": config.model.compile,
        "deterministic": config.run.deterministic,
        "environment": environment.recorded(),
    }


def compute_of(config: AnyConfig, accelerator: Accelerator) -> Compute:
    """Where and in what numbers a run computes."""
    return Compute(
        accelerator.device,
        torch.float64 if config.run.precision == "fp64" else torch.float32,
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision),
        config.model.channels_last,
        workers_per_rank(config.data.workers),
    )
