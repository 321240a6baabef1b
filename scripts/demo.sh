#!/usr/bin/env bash
# The main job on scikit-learn's digits with 40 % wrong labels: data, SimSiam pretraining, then
# cross-entropy without (K = 0) and with (K > 0) the relation graph. Needs no files and no network.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
K=${K:-2}
RUNS=${RUNS:-runs/demo}
LOADER=$([ "${FFCV:-1}" = 0 ] && echo memory || echo ffcv)

launch() {
    accelerate launch --quiet --config_file configs/accelerate/one_process.yaml "$@" --runs "$RUNS" --loader "$LOADER"
}

[ "$LOADER" = memory ] || python launch/prepare.py --dataset digits --out data
launch launch/pretrain.py --config configs/digits/pretrain.yaml --name digits
for k in 0 "$K"; do
    launch launch/distill.py --config configs/digits/distill.yaml --loss ce --K "$k" --name "digits-ce-K$k"
done

echo
python launch/compare.py "$RUNS/distill/digits-ce-K0" "$RUNS/distill/digits-ce-K$K"
echo "open next:  .venv/bin/tensorboard --logdir $RUNS"
echo "run folder: $RUNS/distill/digits-ce-K$K"
