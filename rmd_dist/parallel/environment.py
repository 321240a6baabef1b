"""What launchers and libraries read from the environment: refused by name where it asks for something else.

A run computes what its configuration says. Variables that would change that silently, or form no group of
ranks, are told in one line; those that bear on rounding alone are recorded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from rmd_dist.errors import ConfigError
from rmd_dist.parallel import collectives

OFF = ("", "0", "n", "no", "f", "false", "off")
"""How a switch says no."""

Known = Mapping[str, tuple[tuple[str, ...], str]]
"""Variable -> the values that change nothing, and what to do instead of any other."""

_DDP = (
    OFF,
    "every rank holds the whole model here; in accelerate's configuration file use distributed_type: "
    "MULTI_GPU or NO, as in configs/accelerate",
)

ACCELERATE: Known = {
    **dict.fromkeys(
        (
            *("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"),
            *("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_USE_SAGEMAKER"),
        ),
        _DDP,
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "--accumulation does that"),
    "ACCELERATE_DYNAMO_BACKEND": (OFF, "--compile true does that (dynamo_backend: 'NO' for accelerate)"),
    "ACCELERATE_TORCH_DEVICE": ((), "--cpu and CUDA_VISIBLE_DEVICES do that"),
}
"""What accelerate's class would do on its own; `accelerate launch` sets these from its configuration file."""

PRECISION: Known = {
    "ACCELERATE_MIXED_PRECISION": (("no", "bf16", "fp16"), "allowed: no, bf16, fp16; --precision knows more")
}
"""Where the configuration leaves the precision to the launcher."""

ON_GPUS: Known = {"NVIDIA_TF32_OVERRIDE": ((), "--precision tf32 or no does that")}
ON_CPUS: Known = dict.fromkeys(
    ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    (("strict",), "--precision bf16 does that"),
)
COMPILED: Known = {
    **dict.fromkeys(
        ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"),
        (OFF, "--compile false does that"),
    ),
    "TORCHDYNAMO_SUPPRESS_ERRORS": (("",), "--compile false does what it may do"),
    **dict.fromkeys(
        ("TORCHINDUCTOR_USE_FAST_MATH", "TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG"),
        (OFF, "kernels are as exact as without --compile"),
    ),
    "TORCH_COMPILE_OVERRIDE_BACKENDS": (("",), "--compile means inductor"),
}
"""Of a compiled model."""

_RECORDED = (
    *("ACCELERATE_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE", "TORCH_DYNAMO", "TORCH_ALLOW_TF32"),
    *("CUBLAS", "CUDNN", "TORCH_CUDNN", "NVIDIA_TF32", "NCCL_ALGO", "NCCL_PROTO", "ONEDNN_", "DNNL_"),
    *("ATEN_CPU", "MKL_", "OMP_NUM_THREADS"),
)

_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", *_MPI)
_LAUNCH = "start ranks by accelerate launch --config_file configs/accelerate/cpu2.yaml or gpu8.yaml"


def refuse(known: Known) -> None:
    """ConfigError for the first variable that is set to something else than changes nothing."""
    for name, (harmless, instead) in known.items():
        if (value := os.environ.get(name)) is not None and value.lower() not in harmless:
            raise ConfigError(f"{name} = {value!r} would change what is computed: {instead}; unset {name}")


def switched_on(name: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(name, "").lower() not in OFF


def recorded() -> dict[str, str]:
    """The variables that bear on how a run rounds, for its manifest."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_RECORDED)}


def refuse_lone_ranks(on_cpu: bool) -> None:
    """ConfigError if a launcher's variables form no group of ranks: each would train alone, or wait for ever.

    Ranks that their caller has joined to a group already are taken as they are.
    """
    if collectives.world_size() > 1:
        return
    for name in _NUMBERS:
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise ConfigError(f"{name} = {value!r} is no number; unset {name}, or {_LAUNCH}")
    given = {name: int(os.environ[name]) for name in _NUMBERS if name in os.environ}
    world = given.get("WORLD_SIZE")
    if world is None and (several := _tasks(given, on_cpu)):
        raise ConfigError(f"{several}, which would not know of each other: {_LAUNCH}, one a machine")
    named = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in given]
    if (world is None and named) or "LOCAL_RANK" in given or (world or 1) > 1:
        needed = ("WORLD_SIZE", "RANK", "MASTER_ADDR", *(() if on_cpu else ("LOCAL_RANK", "MASTER_PORT")))
        if missing := [name for name in needed if not os.environ.get(name)]:
            found = ", ".join(f"{name} = {given[name]}" for name in named)
            raise ConfigError(
                f"{found} without {', '.join(missing)} is no launch; {_LAUNCH}, or unset {' '.join(named)}"
            )
    if given.get("RANK", 0) >= (world or 1):
        raise ConfigError(f"RANK = {given['RANK']} must be less than WORLD_SIZE = {world}; {_LAUNCH}")
    if given.get("MASTER_PORT", 0) > 65535:
        raise ConfigError(f"MASTER_PORT = {given['MASTER_PORT']} is no port; give one from 1024 to 65535")
    local = max(given.get("LOCAL_RANK", 0) + 1, given.get("LOCAL_WORLD_SIZE", 1))
    if not on_cpu and local > (devices := torch.cuda.device_count()):
        raise ConfigError(
            f"LOCAL_RANK = {local - 1} needs {local} GPUs on this machine, and {devices} can be seen: one "
            "for each rank; give accelerate launch a smaller --num_processes, or look at CUDA_VISIBLE_DEVICES"
        )


def _tasks(given: Mapping[str, int], on_cpu: bool) -> str | None:
    """What started several processes that have no group; None: nothing did, or accelerate can join them."""
    for name in _MPI:
        if given.get(name, 1) > 1 and not (on_cpu and "MASTER_ADDR" in os.environ):
            return f"{name} = {given[name]}: an MPI launcher started {given[name]} processes"
    # In a batch script, and in what a task starts, as a study its cells, the task is another process.
    ours = os.environ.get("SLURM_TASK_PID", str(os.getpid())) == str(os.getpid())
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    if ours and "SLURM_PROCID" in os.environ and os.environ.get(name, "1") not in ("0", "1"):
        return f"{name} = {os.environ[name]}: srun started as many processes (see docs/nodes.md)"
    return None
