# rmd-dist for NVIDIA GPUs (it runs on the CPU too). Driver 580 or newer: torch of constraints.txt is built for CUDA 13.
#
#   docker build -t rmd-dist .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#       -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" rmd-dist \
#       --config_file configs/accelerate/gpu1.yaml launch/pretrain.py
#
# `--ipc=host` gives the ranks' collectives the shared memory that docker would limit to 64 MB.
#
# The base is CUDA's runtime in its smallest form: torch's own packages bring cuBLAS, cuDNN and NCCL, a second
# copy from a larger base would lie unused. Ubuntu 24.04 has Python 3.12. What is installed, and how, is
# said by scripts/, which `make` runs too.

FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
WORKDIR /app
COPY scripts/install-system.sh scripts/setup-venv.sh scripts/
COPY scripts/opencv scripts/opencv
RUN scripts/install-system.sh && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt LICENSE ./
COPY rmd_dist/__init__.py rmd_dist/
# The project is installed editable, by reference to /app: its code and README can change without
# repeating this layer of several GB.
RUN touch README.md && PIP_NO_CACHE_DIR=1 scripts/setup-venv.sh --no-dev

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
WORKDIR /app
COPY scripts/install-system.sh scripts/
RUN scripts/install-system.sh --runtime \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 rmd \
    && mkdir data runs studies \
    && chown rmd:rmd data runs studies
COPY --from=build /app/.venv .venv
COPY . .
# Caches and the user's name must not depend on the user that `docker run --user` names.
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    USER=rmd \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER rmd
VOLUME ["/app/data", "/app/runs"]
ENTRYPOINT ["accelerate", "launch"]
CMD ["launch/distill.py", "--help"]
