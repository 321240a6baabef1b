"""Where a run can take place: each file of configs/accelerate, two nodes, Slurm, ranks that come back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.distributed.pool import free_port
from tests.launched import ROOT, accelerate, await_step, end, finish, kill_rank, script, start
from tests.tiny import (
    final_tensors,
    greatest_difference,
    tensors_at,
    train_tiny,
    update_difference,
    words,
)

pytestmark = pytest.mark.slow

TABLE = (ROOT / "README.md").read_text().split("## On your hardware")[1].split("\n## ")[0]
FILES = {path.stem: path for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}
# machines, processes over all of them, precision
PROMISED = {
    "one_process": (1, 1, "no"),
    "cpu2": (1, 2, "no"),
    "gpu1": (1, 1, "bf16"),
    "gpu8": (1, 8, "bf16"),
    "two_nodes": (2, 16, "bf16"),
}


def row(name: str) -> str:
    """The line of README's table that uses a file of configs/accelerate."""
    (line,) = [line for line in TABLE.splitlines() if line.startswith("|") and f"/{name}.yaml" in line]
    return line


def test_the_table_names_each_file():
    assert set(re.findall(r"configs/accelerate/(\w+)\.yaml", TABLE)) == set(FILES) == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_accelerate_reads_each_file_as_it_is_meant(name):
    """By accelerate's own loader, which refuses unknown keys."""
    config = load_config_from_file(str(FILES[name]))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == PROMISED[name]
    # MULTI_CPU and NO would start one process whatever num_processes says.
    assert config.distributed_type.value == ("MULTI_GPU" if config.num_processes > 1 else "NO")
    # One machine: any free port. Several must agree on one.
    assert (
        config.main_process_port
        == {1: 0 if config.num_processes > 1 else None, 2: 29500}[config.num_machines]
    )
    # The launcher's own default goes before the file's: written there, it would say what does not happen.
    assert "rdzv_backend" not in yaml.safe_load(FILES[name].read_text())
    what, command = (cell.strip() for cell in row(name).strip("|").split("|"))
    assert ("bf16" in what) == (config.mixed_precision == "bf16")
    assert ("--rdzv_backend c10d --main_process_ip HOST" in command) == (config.num_machines > 1)
    comment = FILES[name].read_text().split("distributed_type")[0]
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in comment


def test_both_nodes_learn_of_a_mistake_that_one_of_them_sees(tmp_path):
    """README's command, on two "nodes" of one CPU rank; only rank 0 reads the damaged manifest."""
    folder = tmp_path / "pretrain" / "tiny"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    found = re.search(r"`accelerate launch (.+) launch/pretrain\.py`", row("two_nodes"))
    assert found
    command = shlex.split(found[1].replace("HOST", "127.0.0.1"))
    command += f"--num_processes 2 --mixed_precision no --main_process_port {free_port()}".split()
    # Node 0 has the rendezvous: it must not leave while node 1 is still about to print.
    command += ["--monitor_interval", "1"]
    nodes = [
        start(
            accelerate(
                *command, "--machine_rank", str(node), "--rdzv_conf", f"is_host={int(node == 0)}",
                *script("pretrain", words("pretrain", tmp_path)),
            ),
            PET_LOCAL_ADDR="127.0.0.1",
        )
        for node in range(2)
    ]  # fmt: skip
    for code, output in [end(node) for node in nodes]:
        assert code != 0
        assert output.count(f"error: {folder / 'manifest.json'} is damaged") == 1, output
    assert {path.name for path in folder.iterdir()} <= {"manifest.json", ".lock"}


SRUN = """
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "${code:-0}"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables of a job of two nodes with a CPU rank each, both of them this machine."""
    stand_ins = {
        "srun": SRUN,
        "scontrol": '[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\nlocalhost\\n"',
        "accelerate": f'exec {sys.executable} -m accelerate.commands.launch "${{@:2}}"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "RANKS_PER_NODE": "1",
        "PET_LOCAL_ADDR": "127.0.0.1",
    }


def free_job() -> int:
    """The number of a job whose port, 10000 + number, is free."""
    while True:
        job = random.randrange(20000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", 10000 + job))
            return job


def test_two_nodes_of_slurm_train_as_one_process_and_survive_a_rank(slurm, tmp_path, ranks):
    """launch/slurm.sh for real, but for Slurm: the weights of one process, though a rank is killed."""
    more = "--max-steps 12 --checkpoint.every_steps 1 --checkpoint.keep 12 --threads 1 --precision no".split()
    job = start(
        [str(ROOT / "launch/slurm.sh"), *script("pretrain", words("pretrain", tmp_path / "nodes", *more))],
        **slurm,
    )
    run = tmp_path / "nodes" / "pretrain" / "tiny"
    await_step(job, run, step=5)
    kill_rank(job, 1)
    output = finish(job)
    assert re.search(r"continuing at step ([4-9]|1[01]): .* on 2 x cpu", output), output
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"], manifest["world_size"]) == ("finished", 12, 2)

    # As in tests/engine/test_trainer.py: rounding alone after the first step, the second as a whole.
    ranks(1).run(train_tiny, "pretrain", words("pretrain", tmp_path / "one", *more, "--max-steps", "2"))
    nodes, one = (
        [tensors_at("pretrain", tmp_path / name, step) for step in (1, 2)] for name in ("nodes", "one")
    )
    assert greatest_difference(nodes[0], one[0]) < 5e-5
    assert update_difference(nodes[1], one[1]) < 0.02
    ranks(2).run(train_tiny, "pretrain", words("pretrain", tmp_path / "ranks", *more))
    assert (
        different(
            final_tensors("pretrain", tmp_path / "ranks"), final_tensors("pretrain", tmp_path / "nodes")
        )
        == []
    )


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of what is not the same to the bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_restarted_ranks_continue_by_themselves(tmp_path, ranks):
    """Rank 0 itself, which holds the folder's lock, is killed; the end is the same to the bit."""
    more = "--max-steps 20 --checkpoint.every_steps 4 --threads 1".split()
    restarting = "--config_file configs/accelerate/cpu2.yaml --max_restarts 1".split()
    argv = words("distill", tmp_path / "killed", *more)
    # Without these two, which docs/nodes.md names, restarted ranks may meet the addresses of the dead.
    variables = {"PET_STANDALONE": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    named = " ".join(f"{name}={value}" for name, value in variables.items())
    assert f"export {named}\n" in (ROOT / "docs/nodes.md").read_text()
    launcher = start(accelerate(*restarting, *script("distill", argv)), **variables)
    await_step(launcher, tmp_path / "killed" / "distill" / "tiny", step=6)
    kill_rank(launcher, 0)
    assert re.search(r"continuing at step (4|8|12|16): .* on 2 x cpu", finish(launcher))
    ranks(2).run(train_tiny, "distill", words("distill", tmp_path / "whole", *more))
    whole, killed = (final_tensors("distill", tmp_path / name) for name in ("whole", "killed"))
    assert different(whole, killed) == []


def slurm_command(slurm: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """What launch/slurm.sh makes of `launch/distill.py --K 0`, with tasks that print their launch.

    In a folder that has the configurations but no .venv, whose accelerate would go before this one.
    """
    stand_ins = Path(slurm["PATH"].split(":")[0])
    (stand_ins / "accelerate").write_text(f'#!{shutil.which("bash")}\necho "$*"\n')
    shutil.copytree(ROOT / "configs", stand_ins.parent / "configs", dirs_exist_ok=True)
    return subprocess.run(
        [str(ROOT / "launch/slurm.sh"), "launch/distill.py", "--K", "0", "--name", "two words"],
        cwd=stand_ins.parent, env=os.environ | slurm | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_slurm_launches_each_node_with_its_number(slurm):
    done = slurm_command(slurm | {"SLURM_JOB_ID": "20123"}, RANKS_PER_NODE="", SLURM_GPUS_ON_NODE="4")
    assert sorted(done.stdout.splitlines()) == [
        f"launch --machine_rank {node} --rdzv_conf is_host={host} "
        "--config_file configs/accelerate/two_nodes.yaml --num_machines 2 --num_processes 8 "
        "--rdzv_backend c10d --main_process_ip 127.0.0.1 --main_process_port 10123 --max_restarts 3 "
        "launch/distill.py --K 0 --name two words"
        for node, host in ((0, 1), (1, 0))
    ]


def test_slurm_needs_ranks_and_its_own_nodes(slurm):
    done = slurm_command(slurm, RANKS_PER_NODE="", SLURM_GPUS_ON_NODE="")
    assert done.returncode == 2 and "--gpus-per-node" in done.stderr and done.stdout == ""
    assert slurm_command(slurm, SLURM_JOB_NODELIST="elsewhere").returncode != 0
    done = slurm_command(slurm, SLURM_JOB_ID="")
    assert done.returncode == 2 and "sbatch launch/slurm.sh" in done.stderr
