"""`rmd export`: the file that ONNX Runtime runs, and what is said where it cannot be made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rmd_dist.commands.export import main
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError, Fault
from rmd_dist.models import onnx
from rmd_dist.models.export import create, export

WANTED = Preprocess((32, 32), (0.3, 0.4, 0.5), (0.2, 0.25, 0.3))


def model_in(folder: Path, name: str, num_classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create(name, num_classes, WANTED.to_cfg()).eval()
    about = {"dataset": "digits", "stage": "distill", "input": WANTED.to_cfg()}
    export(folder, model, name, num_classes, about | {"classes": ["a", "b", "c"]})
    return model


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 0])
@pytest.mark.parametrize("name", ["resnet18_cifar_w16_s2", "vit_tiny_patch16_224", "convnext_atto"])
def test_onnx_runtime_gives_what_pytorch_gives(name, num_classes, tmp_path, capsys):
    """From pixels in [0, 1], any number of them."""
    import onnxruntime

    model, file = model_in(tmp_path, name, num_classes), tmp_path / "new" / "m.onnx"
    main([str(tmp_path), "--onnx", str(file)])
    assert "(N x 3 x 32 x 32) in [0, 1]" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(str(file))
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits" if num_classes else "features"]
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == (["a", "b", "c"] if num_classes else [])
    for count in (1, 5):
        pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
        images = (pixels.permute(0, 3, 1, 2).float() / 255).numpy()
        with torch.no_grad():
            expected = model(WANTED(pixels)).numpy()
        (found,) = session.run(None, {"images": images})
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch):
    model_in(tmp_path, "resnet18_cifar_w16_s2", 3)
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(Fault, match="from PyTorch, more than -1; nothing was written"):
        main([str(tmp_path), "--onnx", str(tmp_path / "m.onnx")])
    assert not list(tmp_path.glob("*onnx*"))


def test_without_onnx_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"needs onnxscript; pip install 'rmd-dist\[onnx\]'"):
        main([str(tmp_path), "--onnx", str(tmp_path / "m.onnx")])
