#!/usr/bin/env bash
# A launch script on several nodes under Slurm: one task a node, which starts one rank a GPU.
#
#   sbatch launch/slurm.sh launch/distill.py --loss gce --K 0.001         # in the project's folder
#   sbatch --nodes 4 --partition gpu --time 8:00:00 launch/slurm.sh launch/pretrain.py
#   RANKS_PER_NODE=2 sbatch --gpus-per-node 0 launch/slurm.sh launch/pretrain.py --cpu true --precision no
#
# Options of sbatch stand before the script's name and win over the lines below. Requeued or submitted again, the
# same command continues from the newest checkpoint.
#SBATCH --job-name=rmd-dist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "slurm.sh: $1" >&2
    exit 2
}

# Slurm runs a copy of this file from a folder of its own, in the folder that sbatch was called in.
config=configs/accelerate/two_nodes.yaml
[ -n "${SLURM_JOB_ID:-}" ] || fail "not in a Slurm job; use: sbatch launch/slurm.sh launch/pretrain.py ..."
[ $# -gt 0 ] || fail "no launch script given; use: sbatch launch/slurm.sh launch/pretrain.py ..."
[ -f "$config" ] || fail "$PWD has no $config; call sbatch in the project's folder, or with --chdir"
export PATH="$PWD/.venv/bin:$PATH"

ranks=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
[ "$ranks" -gt 0 ] || fail "no GPU in this job; give sbatch --gpus-per-node N, or set RANKS_PER_NODE for CPU ranks"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
rendezvous=(--rdzv_backend c10d --main_process_ip "${hosts%%$'\n'*}"
    --main_process_port $((10000 + SLURM_JOB_ID % 20000))) # so that jobs that share a node do not meet
if [ "$SLURM_NNODES" -eq 1 ]; then
    rendezvous=()
    export PET_STANDALONE=1 # a rendezvous of its own, at any free port
fi

# In the launchers' own store restarted ranks would find the addresses of those that died (docs/nodes.md).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# shellcheck disable=SC2016  # SLURM_NODEID is that of each task
exec srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c \
    'exec accelerate launch --machine_rank "$SLURM_NODEID" --rdzv_conf "is_host=$((SLURM_NODEID == 0))" "$@"' node \
    --config_file "$config" --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * ranks)) \
    "${rendezvous[@]}" --max_restarts "${MAX_RESTARTS:-3}" "$@"
