#!/usr/bin/env bash
# Examples of what people reported, by the commands they type, on one CPU: a line for each; exit code 1 if one is off.
# One more is one line:  try 'what it is about' 'what is expected' 'commands of bash, with those below'
# Got are the last line shown, on stdout or stderr, and the exit code; expected is a pattern of bash for it.
# With words, only those examples whose lines have one of them: tests/launch/reports.sh head MPI
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
PYTHON=${PYTHON:-.venv/bin/python} T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
export PYTHON T PYTHONPATH=$PWD CUDA_VISIBLE_DEVICES= OMP_WAIT_POLICY=passive PYTHONWARNINGS=ignore

cat >"$T/functions" <<'BASH'
set -o pipefail
TINY="--config configs/digits/distill.yaml --loader memory --model resnet18_cifar_w16_s2 --K 0 --max-steps 3
    --eval.every_epochs 0 --data.train_samples 640 --data.test_samples 64 --eval.train_samples 64"
D="$PYTHON launch/distill.py $TINY --runs $RUN" # three steps of training
launched() { $PYTHON -m accelerate.commands.launch "$@" ${D#* } --cpu; }
prepare() { $PYTHON launch/prepare.py "$@"; }
status() { grep -ho '"status": "[a-z]*"' "$RUN"/distill/*/manifest.json; } # of that run
told() { grep -h "^error:" | sort -u; } # the error alone, of what a launcher shows
await() { until grep -qs "$1" "$RUN"/distill/*/metrics.jsonl; do sleep 0.1; done; }
BASH

number=0
try() { # about, expected, commands; two at a time
    grep -qE "${WANTED:-.}" <<<"$*" || return 0
    number=$((number + 1))
    ((number <= 2)) || wait -n
    tried "$@" &
}
tried() {
    local got
    got=$(RUN=$T/run$number timeout -k 5 150 bash -c ". $T/functions; $3" 2>&1; echo "rc $?")
    got=$(tail -n 2 <<<"$got" | paste -sd ' ')
    # shellcheck disable=SC2053 # a pattern
    if [[ $got == $2 ]]; then
        echo "ok   $1: expected $2"
    else
        echo "OFF  $1: expected $2, got $got"
        touch "$T/off"
    fi
}
WANTED=$(IFS='|'; echo "$*")

# The screen is not the run.
try 'training into head' '"status": "finished" rc 0' '$D | head -1 >/dev/null && status'
try 'training, stdout closed' '"status": "finished" rc 0' '$D >&- && status'
try 'training, both closed' '"status": "finished" rc 0' '$D >&- 2>&- && status'
try 'training onto a full disk' '"status": "finished" rc 0' '$D >/dev/full 2>&1 && status'
try 'two ranks into head' '"status": "finished" rc 0' \
    'launched --config_file configs/accelerate/cpu2.yaml | head -1 >/dev/null && status'
try 'SIGTERM without a screen' '"status": "stopped" rc 75' \
    '($D --max-steps 9000 & echo $! >"$RUN.pid"; wait $!; echo $? >"$RUN.code") 2>&1 | true & await step;
    sleep 1; kill "$(cat "$RUN.pid")"; wait; status; exit "$(cat "$RUN.code")"'
try 'noise into head' ' "protocol": "symmetric", rc 141' 'prepare noise --dataset digits | head -2'
try 'noise onto a full disk' 'error: cannot write to standard output: No space left on device rc 1' \
    'prepare noise --dataset digits >/dev/full'
try 'a name that ASCII has not' '"status": "finished" rc 0' 'PYTHONIOENCODING=ascii $D --name naïve >/dev/null && status'
try 'a name in the C locale' '"status": "finished" rc 0' 'LC_ALL=C PYTHONUTF8=0 $D --name naïve >/dev/null && status'

# The environment does not leak into the result.
try 'accumulation by accelerate' 'error: ACCELERATE_GRADIENT_ACCUMULATION_STEPS = *--accumulation does that*rc 2' \
    'ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 $D'
try 'a precision that there is not' 'error: ACCELERATE_MIXED_PRECISION = *rc 2' 'ACCELERATE_MIXED_PRECISION=fp8 $D'
try 'compilation switched off' 'error: TORCHDYNAMO_DISABLE = *rc 2' 'TORCHDYNAMO_DISABLE=1 $D --compile true'

# Other people's launchers.
try 'a file for FSDP' 'error: ACCELERATE_USE_FSDP = *distributed_type*rc 1' \
    'printf "distributed_type: FSDP\nnum_processes: 1\nmixed_precision: \"no\"\nfsdp_config: {fsdp_version: 1}\n" \
    >"$T/fsdp.yaml"; launched --config_file "$T/fsdp.yaml" 2>&1 | told'
try 'MPI' 'error: PMI_SIZE = 2: an MPI launcher *accelerate launch*rc 2' 'PMI_SIZE=2 $D'
try 'a bare srun' 'error: SLURM_NTASKS = 2: srun *docs/nodes.md*rc 2' 'SLURM_NTASKS=2 SLURM_PROCID=1 $D'

# Paths, places and times.
try 'a home' '"status": "finished" rc 0' 'HOME=$T ${D/$RUN/\~/mine} --name x >/dev/null && grep -ho "\"status\": \"[a-z]*\"" "$T"/mine/distill/x/manifest.json'
try 'a variable that is not set' 'error: the path * $NOWHERE is not known here*rc 2' '$D --data_root "\$NOWHERE/data"'

# Refused before it begins.
try 'a model that such images are too small for' 'error: model.name = *convnext_atto* cannot be trained on images of 16 pixels*rc 2' '$D --model convnext_atto'
try 'a batch of one' 'error: data.batch_size = 1 *at least 2 images*rc 2' '$D --batch-size 1'
try 'a hold-out of none' 'error: validation = 0.0001 of 640 samples holds out 0*rc 2' '$D --validation 0.0001'
try 'a teacher that is not there' 'error: teacher = NOTHERE does not exist*rc 2' '$D --teacher NOTHERE'

# Files.
try "YAML's words" '"status": "finished" rc 0' 'printf "run: {precision: no, name: 007}" >"$RUN.yaml"; $D --config "$RUN.yaml" >/dev/null && status && ls "$RUN"/distill/007 >/dev/null'
try 'an empty file' '"status": "finished" rc 0' ': >"$RUN.yaml"; $D --config "$RUN.yaml" >/dev/null && status'

wait
[ ! -e "$T/off" ]
