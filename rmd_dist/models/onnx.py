"""A model as an ONNX file, which takes images as they are: the normalisation is part of it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmd_dist.errors import Fault
from rmd_dist.files import atomic_path, to_json
from rmd_dist.models.export import LoadedModel

TOLERANCE = 1e-4
"""Greatest difference to PyTorch, relative to the greatest output where that is above 1."""


class Normalised(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> what a timm model makes of them, normalised as it wants them."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            values = torch.tensor(model.pretrained_cfg[name], dtype=torch.float32)
            self.register_buffer(name, values.view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.model((images - self.mean) / self.std)
        return output


def exported(module: nn.Module, size: tuple[int, ...], output: str, name: str) -> Any:
    """ONNX's ModelProto of `module`: `images` (N, *size) float32, for any N, -> `output`.

    Raises Fault, which calls it `name`, where it has what ONNX lacks.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program: Any = torch.onnx.export(
                module,
                (torch.rand(2, *size),),
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has many of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Fault(f"{name} cannot be written as ONNX: {reason}") from error
    return program.model_proto


def write_onnx(loaded: LoadedModel, path: Path) -> float:
    """Write a model for any number N of images; returns how far ONNX Runtime is from PyTorch.

    Input `images`: float32 (N, 3, H, W) in [0, 1], of the size that the model wants. Output `logits` (N, C),
    or of an encoder `features` (N, D). The names of the classes are in the file's metadata, as JSON. Raises
    Fault, and leaves no file, where the difference exceeds TOLERANCE or the model has what ONNX lacks.
    """
    import onnx

    module, size = Normalised(loaded.module).eval(), loaded.module.pretrained_cfg["input_size"]
    output = "logits" if loaded.num_classes else "features"
    with atomic_path(path) as temporary:
        model = exported(module, size, output, loaded.architecture)
        for key, value in (("architecture", loaded.architecture), ("classes", to_json(loaded.classes))):
            model.metadata_props.add(key=key, value=value)
        onnx.save_model(model, str(temporary))
        difference = _difference(module, temporary, torch.rand(3, *size))
        if not difference <= TOLERANCE:
            raise Fault(
                f"{loaded.architecture}: ONNX Runtime is {difference:.2g} from PyTorch, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
    return difference


def _difference(module: nn.Module, path: Path, images: Tensor) -> float:
    """Greatest difference of outputs, relative to the greatest output where that is above 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = module(images)
    return float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp_min(1.0))
