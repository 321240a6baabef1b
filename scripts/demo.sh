#!/usr/bin/env bash
# The main job on scikit-learn's digits with 40 % wrong labels: data, SimSiam pretraining, then
# cross-entropy without (K = 0) and with (K > 0) the relation graph. Needs no files and no network.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
K=${K:-0.3}
RUNS=${RUNS:-runs/demo}
launch() { accelerate launch --quiet --config_file configs/accelerate/one_process.yaml "$@"; }

python launch/prepare.py --dataset digits --out data
launch launch/pretrain.py --config configs/digits/pretrain.yaml --runs "$RUNS" --name digits
launch launch/distill.py --config configs/digits/distill.yaml --runs "$RUNS" --loss ce --K 0 --name "digits-ce-K0"
launch launch/distill.py --config configs/digits/distill.yaml --runs "$RUNS" --loss ce --K "$K" --name "digits-ce-K$K"

echo
python launch/compare.py "$RUNS/distill/digits-ce-K0" "$RUNS/distill/digits-ce-K$K"
echo "open next:  .venv/bin/tensorboard --logdir $RUNS"
echo "run folder: $RUNS/distill/digits-ce-K$K"
