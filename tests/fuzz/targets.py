"""What is fuzzed: for each reader how to make a valid input, the views in which it is spoilt, how to open it.

A view reads the bytes behind a layer (compression, checksum, container) and writes them back with the layer
made right again, so that what lies behind a checksum is reached too.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard
from PIL import Image
from torch import nn

from rmd_dist.commands.compare import rows
from rmd_dist.config import DistillConfig, EvaluateConfig, PretrainConfig
from rmd_dist.config.cli import parse
from rmd_dist.config.convert import save_yaml
from rmd_dist.data.dataset import Samples, dataset_info, load_samples
from rmd_dist.data.images.read import Unreadable, read_image
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.sources.beton import write_beton
from rmd_dist.data.sources.human import load_human_labels
from rmd_dist.engine.checkpoint import newest, open_checkpoint, write_checkpoint
from rmd_dist.engine.start import _choose_teacher
from rmd_dist.engine.state import State
from rmd_dist.errors import ConfigError
from rmd_dist.files import read_bytes
from rmd_dist.models.export import create, export, load
from rmd_dist.runs.curves import PANELS, read_curve
from rmd_dist.runs.folder import RunFolder, newest_finished, read_manifest
from rmd_dist.runs.history import History
from rmd_dist.runs.monitor import Monitor
from tests.data import archives

MODEL = "resnet18_cifar_w16"
HUMAN = np.arange(60) % 10


@dataclass(frozen=True)
class View:
    """Bytes of an input, read from and written to its folder."""

    read: Callable[[Path], bytes]
    write: Callable[[Path, bytes], None]
    is_json: bool = False


def plain(name: str, is_json: bool = False) -> View:
    """A file as it is."""
    return View(
        lambda folder: (folder / name).read_bytes(),
        lambda folder, data: put(folder / name, data),
        is_json,
    )


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@dataclass(frozen=True)
class Target:
    """A reader of files from outside."""

    make: Callable[[Path], object]
    open: Callable[[Path], object]
    files: tuple[str, ...]
    """Each is replaced by folders, FIFOs, links and so on."""
    views: dict[str, View] = field(default_factory=dict)


# Archives

TAR, FOLDER = "cifar-10-python.tar.gz", "cifar-100-python"


def members_of(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / TAR) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]


def _with_member(name: str) -> View:
    name = f"cifar-10-batches-py/{name}"
    return View(
        lambda folder: members_of(folder)[name],
        lambda folder, data: archives.write_tar(folder / TAR, members_of(folder) | {name: data}) and None,
    )


def _open_archive(folder: Path) -> None:
    for split in ("train", "test"):
        load_samples("cifar10", split, folder, folder / TAR)


def _open_folder(folder: Path) -> None:
    load_samples("cifar100", "train", folder, folder)


def with_pickle(folder: Path, data: bytes) -> None:
    with zipfile.ZipFile(folder / "CIFAR-10_human.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)


def _read_pickle(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "CIFAR-10_human.pt") as archive:
        return archive.read("archive/data.pkl")


def _open_human(folder: Path) -> None:
    load_human_labels("cifar10", "worse_label", HUMAN[:40], 10, folder)


# Betons

BETON, BESIDE = "digits_train.beton", "digits_train.json"


def _make_beton(folder: Path) -> None:
    random, info = np.random.default_rng(0), dataset_info("digits")
    images = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    write_beton(Samples(images, np.arange(12) % 10), info, "train", folder)


def _tables(folder: Path) -> bytes:
    """Header, descriptors, metadata (the first 4000 bytes), then the allocation table (the last 288)."""
    data = (folder / BETON).read_bytes()
    return data[:4000] + data[-288:]


def _with_tables(folder: Path, tables: bytes) -> None:
    data = (folder / BETON).read_bytes()
    signed_beton(folder, tables[:4000] + data[4000:-288] + tables[4000:])


def signed_beton(folder: Path, data: bytes) -> None:
    put(folder / BETON, data)
    manifest = json.loads((folder / BESIDE).read_bytes())
    manifest |= {"beton_bytes": len(data), "beton_sha256": hashlib.sha256(data).hexdigest()}
    put(folder / BESIDE, json.dumps(manifest).encode())


def _open_beton(folder: Path) -> None:
    dataset = open_dataset("digits", "train", root=folder, loader="memory")
    assert dataset.images is not None
    assert dataset.images.shape == (len(dataset), 16, 16, 3)
    assert 0 <= dataset.labels.min() <= dataset.labels.max() < 10


# Checkpoints

STEP = "checkpoints/step-000000002"
TENSORS, SCALARS = f"{STEP}.safetensors", f"{STEP}.json"


def network() -> tuple[nn.Module, torch.optim.SGD]:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def _step(module: nn.Module, optimizer: torch.optim.SGD) -> None:
    module(torch.ones(6, 4)).square().sum().backward()
    optimizer.step()


def _make_checkpoints(folder: Path) -> None:
    module, optimizer = network()
    for step in (1, 2):
        _step(module, optimizer)
        state = State(module, optimizer, step=step).snapshot({"scaler": {"scale": 1.0}})
        write_checkpoint(folder / "checkpoints", state, keep=2, follows=step - 1)


def signed_tensors(folder: Path, data: bytes) -> None:
    put(folder / TENSORS, data)
    manifest = json.loads((folder / SCALARS).read_bytes())
    manifest |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    put(folder / SCALARS, json.dumps(manifest).encode())


def header_of(name: str, write: Callable[[Path, bytes], None]) -> View:
    """The JSON in a safetensors file, its length put right."""

    def read(folder: Path) -> bytes:
        data = (folder / name).read_bytes()
        return data[8 : 8 + int.from_bytes(data[:8], "little")]

    def replace(folder: Path, header: bytes) -> None:
        rest = (folder / name).read_bytes()[8 + len(read(folder)) :]
        write(folder, len(header).to_bytes(8, "little") + header + rest)

    return View(read, replace, is_json=True)


def _open_checkpoints(folder: Path) -> None:
    passed_over: list[str] = []
    found = newest(folder / "checkpoints", passed_over.append)
    assert all(text.isprintable() for text in passed_over)
    assert found is not None or (folder / "checkpoints").is_file()
    checkpoint = open_checkpoint(folder / TENSORS)
    module, optimizer = network()
    State(module, optimizer).restore(checkpoint)
    _step(module, optimizer)  # what was accepted must be of use


# Runs


def _config(folder: Path) -> DistillConfig:
    words = f"--runs {folder} --name x --dataset digits --model {MODEL} --cpu true"
    return parse(DistillConfig, words.split())


def _make_run(folder: Path) -> None:
    run = RunFolder(_config(folder))
    run.path.mkdir(parents=True)
    about = {"teacher": "random", "teacher_sha256": "ab", "data_sha256": "cd"}
    results = {"last": {"tag": "test/accuracy", "value": 0.5, "step": 7}}
    run.update(status="running", step=7, results=results, **about)
    lines = [{"step": s, "test/accuracy": 0.1 * s, "train/loss": 1.0} for s in range(1, 6)]
    put(run.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    pretrained = RunFolder(parse(PretrainConfig, ["--runs", str(folder), "--name", "t"]))
    pretrained.path.mkdir(parents=True)
    pretrained.finish(complete=True, results={})


def _open_run(folder: Path) -> None:
    newest_finished(folder, "cifar10", "resnet18_cifar")
    config = _config(folder)
    run = RunFolder(config)
    rows([run.path])
    run.open()
    run.refuse_other(data_sha256="cd", precision="no")
    teacher = _choose_teacher(config, run)
    if isinstance(teacher, Path) and str(teacher) != "random":
        load(teacher, MODEL)
    run.update(status="running")
    assert read_manifest(run.path)["status"] == "running"
    assert not run.finished


def _open_metrics(folder: Path) -> None:
    run = folder / "distill" / "x"
    for tag in PANELS:
        read_curve(run, tag)
    History(run / "metrics.jsonl", 4, "test/accuracy").table()
    monitor = Monitor(run, enabled=True, total_steps=9, title="x", resume_step=3)
    monitor.close()


# Exported models


def _make_export(folder: Path) -> None:
    torch.manual_seed(0)
    export(folder, create(MODEL, 10), MODEL, 10, {"dataset": "digits", "stage": "distill"})


def _open_export(folder: Path) -> None:
    loaded = load(folder, MODEL)
    assert loaded.dataset is None or isinstance(loaded.dataset, str)
    assert loaded.stage is None or isinstance(loaded.stage, str)
    with torch.inference_mode():
        out = loaded.module.eval()(torch.zeros(1, 3, 16, 16))
    assert out.shape[1] == (loaded.num_classes or loaded.module.num_features)


# PyTorch files

PTH = "weights.pth"


def _make_pth(folder: Path) -> None:
    torch.manual_seed(0)
    state = {f"module.{name}": tensor for name, tensor in create(MODEL, 10).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / PTH)


def _pth_members(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / PTH) as archive:
        return {member.filename: archive.read(member) for member in archive.infolist()}


def with_pth_pickle(folder: Path, data: bytes) -> None:
    members = _pth_members(folder) | {"weights/data.pkl": data}
    with zipfile.ZipFile(folder / PTH, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _open_pth(folder: Path) -> None:
    loaded = load(folder / PTH, MODEL)
    with torch.inference_mode():
        out = loaded.module.eval()(torch.zeros(1, 3, 16, 16))
    assert out.shape[1] == (loaded.num_classes or loaded.module.num_features)


# Images

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "bmp": ("RGB", {}),
    "gif": ("P", {"transparency": 3, "save_all": True}),
    "jpg": ("RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    "progressive.jpg": ("CMYK", {"progressive": True}),
    "png": ("RGBA", {"icc_profile": bytes(300), "save_all": True, "default_image": True}),
    "grey.png": ("I;16", {}),
    "palette.png": ("P", {"transparency": bytes(range(200))}),
    "ppm": ("RGB", {}),
    "tif": ("RGBA", {"save_all": True}),
    "lzw.tif": ("RGB", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("YCbCr", {"compression": "jpeg"}),
    "fax.tif": ("1", {"compression": "group4"}),
    "webp": ("RGB", {}),
    "lossless.webp": ("RGBA", {"lossless": True, "save_all": True}),
}
"""End of the name -> mode and options of an image that is written."""


def _make_images(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for name, (mode, options) in IMAGES.items():
        image = Image.fromarray(noise).convert("I" if mode == "I;16" else mode)
        more = (
            {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
        )
        image.convert(mode).save(folder / f"image.{name}", **options, **more)


def _open_images(folder: Path) -> None:
    """All of them, so that the file that is not read is the spoilt one."""
    for path in sorted(folder.iterdir()):
        try:
            content = read_bytes(path, 1 << 28)
        except OSError as error:
            raise ConfigError(f"{path.name}: {error}") from error
        try:
            read = read_image(content)
        except Unreadable as error:
            assert str(error).isprintable() and 0 < len(str(error)) < 300
            raise ConfigError(f"{path.name}: {error}") from error
        assert read.pixels.shape[2] == 3 and 0 < min(read.pixels.shape) <= 256


def signed_png(folder: Path, data: bytes) -> None:
    """Every chunk of the PNG with its checksum put right."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        out += data[place:end] + zlib.crc32(data[place + 4 : end]).to_bytes(4)
        place = end + 4
    put(folder / "image.png", out)


# Configurations


def make_yaml(folder: Path) -> None:
    save_yaml(parse(DistillConfig, ["--loss_options.q", "0.5"]), folder / "config.yaml")
    save_yaml(parse(EvaluateConfig, []), folder / "evaluate.yaml")


def open_yaml(folder: Path) -> None:
    words = ["--config", str(folder / "config.yaml")]
    config = parse(DistillConfig, words)
    save_yaml(config, folder / "again.yaml")
    assert parse(DistillConfig, ["--config", str(folder / "again.yaml")]) == config


TARGETS: dict[str, Target] = {
    "archive (tar.gz)": Target(
        lambda folder: archives.write_tar(folder / TAR, archives.cifar10(10, 3)),
        _open_archive,
        (TAR,),
        {
            "file": plain(TAR),
            "tar": View(
                lambda folder: gzip.decompress((folder / TAR).read_bytes()),
                lambda folder, data: put(folder / TAR, gzip.compress(data, 1)),
            ),
            "batch pickle": _with_member("data_batch_2"),
            "meta pickle": _with_member("batches.meta"),
        },
    ),
    "archive (folder)": Target(
        lambda folder: archives.write_folder(folder, archives.cifar100(6, 3)),
        _open_folder,
        (f"{FOLDER}/train", f"{FOLDER}/meta", FOLDER),
        {"train": plain(f"{FOLDER}/train"), "meta": plain(f"{FOLDER}/meta")},
    ),
    "human labels (.pt)": Target(
        lambda folder: with_pickle(
            folder, pickle.dumps({"clean_label": HUMAN, "worse_label": HUMAN}, protocol=2)
        ),
        _open_human,
        ("CIFAR-10_human.pt",),
        {"file": plain("CIFAR-10_human.pt"), "pickle": View(_read_pickle, with_pickle)},
    ),
    "beton": Target(
        _make_beton,
        _open_beton,
        (BETON, BESIDE),
        {
            "file": plain(BETON),
            "file, signed anew": View(plain(BETON).read, signed_beton),
            "tables, signed anew": View(_tables, _with_tables),
            "manifest": plain(BESIDE, is_json=True),
        },
    ),
    "checkpoint": Target(
        _make_checkpoints,
        _open_checkpoints,
        (TENSORS, SCALARS),
        {
            "tensors": plain(TENSORS),
            "tensors, signed anew": View(plain(TENSORS).read, signed_tensors),
            "header, signed anew": header_of(TENSORS, signed_tensors),
            "manifest": plain(SCALARS, is_json=True),
        },
    ),
    "run manifest": Target(
        _make_run,
        _open_run,
        ("distill/x/manifest.json", "distill/x", "pretrain/t/manifest.json"),
        {
            "of this run": plain("distill/x/manifest.json", is_json=True),
            "of the teacher": plain("pretrain/t/manifest.json", is_json=True),
        },
    ),
    "metrics.jsonl": Target(
        _make_run,
        _open_metrics,
        ("distill/x/metrics.jsonl",),
        {"file": plain("distill/x/metrics.jsonl", is_json=True)},
    ),
    "exported model": Target(
        _make_export,
        _open_export,
        ("model.safetensors", "config.json"),
        {
            "weights": plain("model.safetensors"),
            "header": header_of(
                "model.safetensors", lambda folder, data: put(folder / "model.safetensors", data)
            ),
            "config.json": plain("config.json", is_json=True),
        },
    ),
    "PyTorch file": Target(
        _make_pth,
        _open_pth,
        (PTH,),
        {
            "file": plain(PTH),
            "pickle": View(lambda folder: _pth_members(folder)["weights/data.pkl"], with_pth_pickle),
        },
    ),
    "image file": Target(
        _make_images,
        _open_images,
        tuple(f"image.{name}" for name in IMAGES),
        {
            "png, signed anew": View(plain("image.png").read, signed_png),
            **{name: plain(f"image.{name}") for name in IMAGES},
        },
    ),
    "YAML config": Target(
        make_yaml,
        open_yaml,
        ("config.yaml",),
        {"file": plain("config.yaml")},
    ),
}
