#!/usr/bin/env bash
# Installs the system packages of rmd-dist with apt: what ffcv is compiled against, and the shared libraries
# of OpenCV's Python package. `make venv` and the Dockerfile run it; it does nothing where all is there.
#
#   scripts/install-system.sh             to build ffcv and run
#   scripts/install-system.sh --runtime   only the shared libraries of a built .venv (the last Docker stage)
#   scripts/install-system.sh --print     name the packages, install nothing
#
# PYTHON names the interpreter that ffcv is built for (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
export PKG_CONFIG_PATH=${PKG_CONFIG_PATH:+$PKG_CONFIG_PATH:}$PWD/scripts/opencv

# OpenCV's Python package (cv2, which ffcv imports) links against these; the graphical ones are never used.
cv2_packages=(libgl1 libglib2.0-0 libsm6 libxext6)
cv2_libraries=(libGL.so.1 libglib-2.0.so.0 libgthread-2.0.so.0 libSM.so.6 libICE.so.6 libXext.so.6)
# Core and imgproc alone: libopencv-dev would bring some 290 packages and 780 MB more, of which ffcv uses nothing.
build_packages=(g++ pkg-config libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev)

say() { echo "install-system.sh: $*" >&2; }

python_packages() { # what Debian splits off from Python; nothing where $python is complete
    if ! command -v "$python" >/dev/null; then
        echo python3 python3-dev python3-venv
        return
    fi
    "$python" - <<'PY'
import importlib.util, pathlib, sys, sysconfig
version = f"python{sys.version_info.major}.{sys.version_info.minor}"
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(f"{version}-dev")
if importlib.util.find_spec("ensurepip") is None:
    print(f"{version}-venv")
PY
}

compiles() { # builds a library as ffcv's set-up does, in $1
    local flags
    flags=$(pkg-config --cflags --libs opencv4 libturbojpeg) || return 1
    # shellcheck disable=SC2086  # flags are words
    g++ -shared -fPIC -x c++ - -o "$1/probe.so" -I"$("$python" -c \
        'import sysconfig; print(sysconfig.get_path("include"))')" $flags <<'CPP'
#include <Python.h>
#include <opencv2/opencv.hpp>
#include <turbojpeg.h>
extern "C" void probe(cv::Mat &from, cv::Mat &to) {
    cv::resize(from, to, to.size(), 0, 0, cv::INTER_AREA);
    tjDestroy(tjInitTransform());
}
CPP
}

loads() { "$python" -c 'import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]' "$@"; }

ready() { # complaints of the last try are left in $scratch/log
    { compiles "$scratch" && loads "${cv2_libraries[@]}" && "$python" -c 'import ensurepip'; } \
        >"$scratch/log" 2>&1
}

libraries_of() { apt-cache depends "$1" | awk -v name="^$2" '$1 == "Depends:" && $2 ~ name {print $2}'; }

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

refuse() { # "$@" is the reason
    say "$*"
    cat >&2 <<TEXT

ffcv is compiled during set-up. It needs a C++ compiler, pkg-config, the headers of OpenCV 4 (core, imgproc),
of TurboJPEG and of Python; its OpenCV package needs libGL, glib, libSM and libXext. On Debian and Ubuntu an
administrator installs all of it with

    apt-get install --no-install-recommends ${packages[*]}

then repeat. Or do without ffcv: \`make venv FFCV=0\`, and run with \`--loader memory\`.
TEXT
    exit 1
}

mode=${1:-build}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

read -ra from_python <<<"$(python_packages | xargs)"
packages=("${build_packages[@]}" ${from_python[@]+"${from_python[@]}"} "${cv2_packages[@]}")
case $mode in
--print)
    echo "${packages[*]}"
    exit
    ;;
--runtime) ;;
build) if ready; then exit; fi ;;
*)
    say "unknown option $mode; known: --runtime, --print"
    exit 2
    ;;
esac

command -v apt-get >/dev/null || refuse "system packages are missing, and there is no apt-get to install them"
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || refuse "system packages are missing; not root, and there is no sudo"
    # Without a terminal sudo could only hang or fail on its password.
    [ -t 0 ] || sudo -n true 2>/dev/null || refuse "system packages are missing; sudo wants a password"
fi

as_root apt-get update -qq >"$scratch/apt" 2>&1 || say "apt-get update failed; going on with the lists at hand"
if [ "$mode" = --runtime ]; then
    # The names of these two end in a version that differs between releases of Debian and Ubuntu.
    mapfile -t versioned < <(
        libraries_of libopencv-imgproc-dev 'libopencv-imgproc[0-9]'
        libraries_of libturbojpeg0-dev libturbojpeg
    )
    packages=(libgomp1 "${versioned[@]}" "${cv2_packages[@]}")
    command -v "$python" >/dev/null || packages+=(python3)
fi
say "installing ${packages[*]}"
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o DPkg::Lock::Timeout=120 "${packages[@]}" >>"$scratch/apt" 2>&1 || {
    cat "$scratch/apt" >&2
    refuse "apt-get install failed, see above"
}
if [ "$mode" = build ] && ! ready; then
    cat "$scratch/log" >&2
    refuse "the packages are installed, but a test compilation fails, see above"
fi
