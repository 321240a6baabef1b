"""A model on disk as ONNX, for programs without PyTorch; checked against it by ONNX Runtime.

rmd export RUN_FOLDER_OR_FILE --onnx model.onnx
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from rmd_dist.commands import path
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import check_output

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=path, help="run folder, exported model, or a file of checkpoints/")
    parser.add_argument("--onnx", type=path, required=True, help="the file to write")
    parser.add_argument(
        "--model", default="resnet18_cifar", help="timm name, for weights that do not say what they are"
    )
    args = parser.parse_args(argv)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"ONNX export needs {', '.join(missing)}; pip install 'rmd-dist[onnx]'")
    check_output(args.onnx)

    from rmd_dist.models.export import load
    from rmd_dist.models.onnx import write_onnx

    loaded = load(args.checkpoint, args.model)
    with writing(args.onnx):
        difference = write_onnx(loaded, args.onnx)
    size = " x ".join(str(side) for side in loaded.module.pretrained_cfg["input_size"])
    print(
        f"{args.onnx}: images (N x {size}) in [0, 1] -> {'logits' if loaded.num_classes else 'features'}; "
        f"ONNX Runtime gives PyTorch's to {difference:.1g}"
    )
