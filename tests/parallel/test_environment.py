"""What the environment asks for: refused by name where it would change a run, or would leave ranks alone."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from rmd_dist.errors import ConfigError
from rmd_dist.parallel.accelerator import make_accelerator
from rmd_dist.parallel.environment import recorded, refuse_lone_ranks
from rmd_dist.parallel.numerics import compiled
from tests.tiny import train_tiny, words

LAUNCHERS = ("ACCELERATE_", "SLURM_", "PMI_", "OMPI_", "MV2_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")


@pytest.fixture
def set_only(monkeypatch):
    """Of what launchers set, exactly the values given as NAME=value; accelerate knows of nothing before."""

    def call(*given: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        for name in list(os.environ):
            if name.startswith(LAUNCHERS):
                monkeypatch.delenv(name)
        for assignment in given:
            monkeypatch.setenv(*assignment.split("="))

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "= '4' would change .* --accumulation does that; unset"),
        ("ACCELERATE_DYNAMO_BACKEND=INDUCTOR", "--compile true"),
        ("ACCELERATE_USE_FSDP=true", "distributed_type: MULTI_GPU or NO, as in configs/accelerate"),
        ("ACCELERATE_USE_DEEPSPEED=true", "distributed_type"),
        ("ACCELERATE_USE_MEGATRON_LM=true", "distributed_type"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG=true", "distributed_type"),
        ("ACCELERATE_USE_SAGEMAKER=true", "distributed_type"),
        ("ACCELERATE_TORCH_DEVICE=meta", "--cpu"),
        ("ACCELERATE_MIXED_PRECISION=fp8", "allowed: no, bf16, fp16"),
        ("ACCELERATE_MIXED_PRECISION=tf32", "allowed: no, bf16, fp16"),
        ("ONEDNN_DEFAULT_FPMATH_MODE=BF16", "--precision bf16"),
        ("ACCELERATE_DEBUG_MODE=perhaps", "invalid truth value perhaps.*ACCELERATE_DEBUG_MODE"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(given, told, set_only):
    set_only(given)
    with pytest.raises(ConfigError, match=rf"{told}") as refused:
        make_accelerator(cpu=True)
    assert given.split("=")[0] in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1", "ACCELERATE_DYNAMO_BACKEND=NO",
        "ACCELERATE_USE_FSDP=false", "ACCELERATE_DYNAMO_MODE=default", "ACCELERATE_USE_CPU=true",
        "ONEDNN_DEFAULT_FPMATH_MODE=STRICT", "NVIDIA_TF32_OVERRIDE=1",
    ],
)  # fmt: skip
def test_what_changes_nothing_passes(given, set_only):
    """What `accelerate launch` sets always, and what concerns GPUs."""
    set_only(given)
    accelerator = make_accelerator(cpu=True)
    assert accelerator.gradient_accumulation_steps == 1 and accelerator.state.dynamo_plugin.backend == "NO"


def test_a_precision_of_the_launch_counts_as_it_is_meant(set_only):
    """accelerate takes the name in small letters alone: otherwise it would compute in fp32, and say BF16."""
    set_only("ACCELERATE_MIXED_PRECISION=BF16")
    assert make_accelerator(cpu=True).mixed_precision == "bf16"
    set_only("ACCELERATE_MIXED_PRECISION=fp8")  # not asked for
    assert make_accelerator("no", cpu=True).mixed_precision == "no"


def test_a_launcher_that_asks_for_the_cpu_is_told_what_a_cpu_cannot(set_only, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_only("ACCELERATE_USE_CPU=true", "ACCELERATE_MIXED_PRECISION=fp16")
    with pytest.raises(ConfigError, match="fp16 runs on GPUs only"):
        make_accelerator()


@pytest.mark.parametrize("value", ["0", "1"])
def test_tf32_is_not_decided_by_the_driver(value, set_only, monkeypatch):
    set_only()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"NVIDIA_TF32_OVERRIDE .* --precision tf32 or no"):
        make_accelerator("no")


@pytest.mark.parametrize(
    "given", ["TORCHDYNAMO_DISABLE=1", "TORCH_COMPILE_DISABLE=1", "TORCHDYNAMO_SUPPRESS_ERRORS=0"]
)
def test_compiled_means_compiled(given, monkeypatch):
    monkeypatch.setenv(*given.split("="))
    with pytest.raises(ConfigError, match=rf"{given.split('=')[0]} .* --compile false"):
        compiled(nn.Linear(2, 2), deterministic=True)


def test_what_bears_on_rounding_is_in_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert recorded()["MKL_CBWR"] == "COMPATIBLE"
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "1"))
    text = (tmp_path / "distill/tiny/manifest.json").read_text()
    assert '"MKL_CBWR": "COMPATIBLE"' in text and "secret" not in text


SRUN = ("SLURM_NTASKS=2", "SLURM_PROCID=0")
NAMED = "WORLD_SIZE=2 RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 LOCAL_RANK=0".split()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["PMI_SIZE=2"], "PMI_SIZE = 2: an MPI launcher .* accelerate launch"),
        (["OMPI_COMM_WORLD_SIZE=2"], "OMPI_COMM_WORLD_SIZE = 2: an MPI launcher"),
        (["MV2_COMM_WORLD_SIZE=2"], "MV2_COMM_WORLD_SIZE = 2: an MPI launcher"),
        (["PMI_SIZE=many"], "PMI_SIZE = 'many' is no number"),
        (SRUN, "SLURM_NTASKS = 2: srun .*docs/nodes.md"),
        ([*SRUN, "SLURM_TASK_PID=OWN", "SLURM_STEP_NUM_TASKS=3"], "SLURM_STEP_NUM_TASKS = 3: srun"),
        (["WORLD_SIZE=two"], "WORLD_SIZE = 'two' is no number; unset WORLD_SIZE"),
        (["WORLD_SIZE="], "WORLD_SIZE = '' is no number"),
        (["RANK=1"], "RANK = 1 without WORLD_SIZE, MASTER_ADDR is no launch.*unset RANK$"),
        (["LOCAL_RANK=0"], "LOCAL_RANK = 0 without WORLD_SIZE, RANK, MASTER_ADDR"),
        (["WORLD_SIZE=2", "RANK=0"], "WORLD_SIZE = 2, RANK = 0 without MASTER_ADDR"),
        (["WORLD_SIZE=2", "MASTER_ADDR=h"], "WORLD_SIZE = 2 without RANK is no launch"),
        ([*NAMED, "RANK=2"], "RANK = 2 must be less than WORLD_SIZE = 2"),
        ([*NAMED, "MASTER_PORT=free"], "MASTER_PORT = 'free' is no number"),
        ([*NAMED, "MASTER_PORT=70000"], "MASTER_PORT = 70000 is no port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | tuple) else "",
)
def test_what_forms_no_group_is_told_by_name(given, told, set_only):
    set_only(*(word.replace("OWN", str(os.getpid())) for word in given))
    with pytest.raises(ConfigError, match=told):
        make_accelerator(cpu=True)


@pytest.mark.parametrize(
    "given",
    [
        [], NAMED, ["WORLD_SIZE=1"], ["PMI_SIZE=1"], ["SLURM_NTASKS=1", "SLURM_PROCID=0"],
        ["SLURM_NTASKS=4", "SLURM_PROCID=0", "SLURM_TASK_PID=1"],  # a batch script, a cell of a study
        ["SLURM_NTASKS=4"],  # salloc
        [*NAMED, *SRUN, "PMI_SIZE=2"],  # srun accelerate launch
        ["PMI_SIZE=2", "MASTER_ADDR=127.0.0.1"],  # accelerate joins these
    ],
    ids=" ".join,
)  # fmt: skip
def test_launches_that_work_pass(given, set_only):
    set_only(*given)
    refuse_lone_ranks(on_cpu=True)


@pytest.mark.parametrize("more", [["LOCAL_RANK=1"], ["LOCAL_WORLD_SIZE=2"]])
def test_each_rank_has_a_gpu_of_its_own(more, set_only, monkeypatch):
    """accelerate would count from the first again; every rank says so, since one alone may not be heard."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    set_only(*NAMED)
    refuse_lone_ranks(on_cpu=False)
    set_only(*NAMED, *more)
    with pytest.raises(ConfigError, match="LOCAL_RANK = 1 needs 2 GPUs on this machine, and 1 can be seen"):
        refuse_lone_ranks(on_cpu=False)
    set_only("WORLD_SIZE=2", "RANK=0", "MASTER_ADDR=h", "MASTER_PORT=1")
    with pytest.raises(ConfigError, match="without LOCAL_RANK"):
        refuse_lone_ranks(on_cpu=False)


def test_a_port_that_is_taken_is_named(set_only):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        set_only("WORLD_SIZE=2", "RANK=0", "LOCAL_RANK=0", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}")
        with pytest.raises(ConfigError, match=f"MASTER_PORT = {port} is taken"):
            make_accelerator(cpu=True)
