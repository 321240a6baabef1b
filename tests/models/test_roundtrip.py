"""What a run exports is what timm's own tools take: model, transform and names of the classes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from rmd_dist.config import DistillConfig
from rmd_dist.config.cli import parse
from rmd_dist.evaluation.predict import predict_classes
from rmd_dist.models.export import export
from rmd_dist.models.student import Encoder
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks import DistillTask, Parts, Task, build_parts
from tests.data.archives import cifar100, write_tar
from tests.tiny import words


def trained(folder: Path, *more: str, steps: int = 3) -> Parts:
    """A student some steps on, exported to `folder` as the trainer does at the end.

    Its classifier is then fitted to the training samples: otherwise it would tell few classes apart.
    """
    torch.manual_seed(0)
    config = parse(DistillConfig, words("distill", folder, "--K", "0", *more))
    parts = build_parts(config, Compute())
    optimizer = torch.optim.SGD(parts.task.module.parameters(), lr=0.1, momentum=0.9)
    with contextlib.closing(parts.loader.epoch(0)) as batches:
        for _, batch in zip(range(steps), batches, strict=False):
            parts.task.step(parts.task.module, batch, logging=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    fit_classifier(parts.task)
    folder.mkdir(exist_ok=True)
    network = parts.task.module.get_submodule(parts.task.network)
    export(folder, network, config.model.name, parts.num_classes, parts.about)
    return parts


def fit_classifier(task: Task) -> None:
    assert isinstance(task, DistillTask)
    network, used = task.module.model, task.splits.train
    with torch.no_grad():
        features = Encoder(network.eval())(task.preprocess(torch.from_numpy(task.train.images[used])))
        targets = torch.eye(task.train.info.num_classes)[torch.from_numpy(task.train.labels[used])]
        network.get_classifier().bias.zero_()
        network.get_classifier().weight.copy_(
            torch.linalg.lstsq(features, targets, driver="gelsd").solution.T
        )


def by_timm(folder: Path, images: np.ndarray) -> tuple[torch.nn.Module, np.ndarray]:
    """(the model, its classes of the images) by timm alone, one PIL image after another."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    batch = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        return model, model(batch).argmax(1).numpy()


@pytest.mark.parametrize("model", ["resnet18_cifar_w16_s2", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_digits(model, tmp_path):
    """Models of timm's own have other sizes, statistics and crops by default."""
    parts = trained(tmp_path / "run", "--model", model)
    task = parts.task
    assert isinstance(task, DistillTask)
    opened, found = by_timm(tmp_path / "run", task.test.images)
    expected = predict_classes(task.module.model, task.test)
    assert (found == expected).all() and len(set(expected)) == 10
    assert tuple(opened.pretrained_cfg["label_names"]) == task.test.info.classes


def test_cifar100(tmp_path):
    archive = write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100(train=96, test=60))
    source = (
        f"--dataset cifar100 --data.train_samples 96 --data.test_samples 60 --data.source {archive}".split()
    )
    parts = trained(tmp_path / "run", *source, "--eval.train_samples", "0", steps=2)
    task = parts.task
    assert isinstance(task, DistillTask)
    opened, found = by_timm(tmp_path / "run", task.test.images)
    expected = predict_classes(task.module.model, task.test)
    assert len(found) == 60 and (found == expected).all() and len(set(expected)) > 9
    assert opened.pretrained_cfg["label_names"][0] == "apple"
