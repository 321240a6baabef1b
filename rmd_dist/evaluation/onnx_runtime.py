"""An encoder by ONNX Runtime, which on a CPU is more than twice as fast as PyTorch with convolutions."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.models.onnx import TOLERANCE, exported
from rmd_dist.parallel.compute import Compute


def quick_encoder(model: nn.Module, compute: Compute) -> nn.Module:
    """The same features by ONNX Runtime: in fp32 on a CPU, where it is installed and takes the model.

    Else `model`, with a line that says why where something failed. Exporting takes half a minute, in which
    PyTorch encodes some two thousand small images.
    """
    plain = compute.device.type == "cpu" and compute.dtype == torch.float32 and compute.autocast is None
    if not plain or importlib.util.find_spec("onnxruntime") is None:
        return model
    try:
        return OnnxEncoder(model)
    except Exception as error:  # exporter and runtime have many of their own
        _note((str(error) or type(error).__name__).splitlines()[0])
        return model


class OnnxEncoder(nn.Module):
    """Images (B, 3, H, W) as a timm model's `pretrained_cfg` wants them -> its features (B, D).

    PyTorch encodes the first batch, too, and all that follow if the two differ there by more than TOLERANCE
    of the greatest feature, which is less than half precision tells apart.
    """

    def __init__(self, model: nn.Module) -> None:
        import onnxruntime

        super().__init__()
        self.model = model.eval()
        cfg: Any = model.pretrained_cfg
        self.pretrained_cfg = cfg
        proto = exported(model, cfg["input_size"], "features", "the encoder")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # images are read meanwhile
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._trusted: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self._trusted is False:
            plain: Tensor = self.model(images)
            return plain
        (found,) = self._session.run(None, {"images": images.contiguous().numpy()})
        features = torch.from_numpy(found)
        if self._trusted is None:
            expected: Tensor = self.model(images)
            difference = float((features - expected).abs().max() / expected.abs().max())
            self._trusted = difference <= TOLERANCE  # not where it is nan
            if not self._trusted:
                _note(f"ONNX Runtime is {difference:.2g} from PyTorch")
            return expected
        return features


def _note(why: str) -> None:
    if parallel.is_main():
        print(f"note: {why}; PyTorch encodes instead, more slowly", flush=True)
