#!/usr/bin/env bash
# Makes .venv with the versions of constraints.txt and the project in it (editable). `make venv` and the
# Dockerfile run it. Where .venv is up to date it returns at once; after an interruption it picks up the rest.
#
#   scripts/setup-venv.sh              with the tools of `make test` and `make docs`
#   scripts/setup-venv.sh --no-dev     only what runs need
#   scripts/setup-venv.sh --oldest     .venv-oldest: of each requirement the oldest version that pyproject.toml allows,
#                                      of what those bring along the newest; without ffcv
#
# PYTHON  the interpreter to use (default: the first of python3.11, python3, python3.12, python3.13 that is
#         3.11 or newer)
# FFCV=0  leave out ffcv, which must be compiled; runs then need `--loader memory`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="dev docs"
ffcv=${FFCV:-1}
venv=.venv
case ${1:-} in
    --no-dev) extras= ;;
    --oldest) venv=.venv-oldest extras=dev ffcv=0 ;;
esac
stamp=$venv/installed

say() { echo "setup-venv.sh: $*"; }

# An editable install knows its folder, so a moved .venv is made up to date again.
wanted=$(cat constraints.txt pyproject.toml scripts/setup-venv.sh scripts/opencv/opencv4.pc | sha256sum)
wanted="${wanted%% *} extras=$extras ffcv=$ffcv $PWD"
if [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && $venv/bin/python -c '' 2>/dev/null; then exit; fi

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "needs Python 3.11 or newer; tried: ${PYTHON:-python3.11 python3 python3.12 python3.13}" \
        "(PYTHON=/path/to/python names another)" >&2
    return 1
}

requirements() { # of pyproject.toml: its dependencies and those of the extras named
    $venv/bin/python - "$@" <<'PY'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *(r for e in sys.argv[1:] for r in project["optional-dependencies"][e]), sep="\n")
PY
}

install() { $venv/bin/pip install -qq --disable-pip-version-check --no-input -c "$constraints" "$@"; }

if [ -x $venv/bin/python ] && $venv/bin/python -m pip --version >/dev/null 2>&1; then
    PYTHON=$venv/bin/python
else
    PYTHON=$(choose_python)
fi
export PYTHON

if [ "$ffcv" != 0 ]; then scripts/install-system.sh; fi

if [ "$PYTHON" != $venv/bin/python ]; then
    say "$venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear $venv
fi
rm -f $stamp

constraints=constraints.txt
if [ $venv = .venv-oldest ]; then
    constraints=$venv/constraints.txt
    requirements dev | sed 's/\[.*\]//; s/>=/==/' | grep == >"$constraints"
fi

say "torch and torchvision: several GB, a few minutes"
install torch torchvision setuptools
say "the other Python packages"
# shellcheck disable=SC2086  # extras are words
requirements $extras >$venv/requirements.txt
install -r $venv/requirements.txt
if [ "$ffcv" != 0 ]; then
    say "ffcv, compiled here"
    # Never a cached wheel: it may have been linked against another release's OpenCV.
    PKG_CONFIG_PATH=${PKG_CONFIG_PATH:+$PKG_CONFIG_PATH:}$PWD/scripts/opencv \
        install --no-cache-dir --use-pep517 --no-build-isolation ffcv
    $venv/bin/python -W ignore -c 'import ffcv'
fi
install --no-deps --no-build-isolation --editable .

echo "$wanted" >$stamp
say "done in $SECONDS s"
