"""Encoders that others have trained: whose weights they are, and that none of them is random."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import Tensor

from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.models.export import create
from rmd_dist.models.pretrained import TimmEncoder, load_pretrained
from rmd_dist.models.weights import fingerprint, save_tensors

NAME = "mobilenetv3_small_050"


def weights(name: str = NAME, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return timm.create_model(name, **options).state_dict()


def assert_read(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """The module has all weights of `state` but for the classifier's."""
    found = module.state_dict()
    assert found and state.keys() - found.keys() <= {"classifier.weight", "classifier.bias"}
    assert not [name for name in found if not torch.equal(found[name], state[name])]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "_orig_mod.", "module.backbone."])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_from_a_file_by_whatever_their_names_begin_with(kind, prefix, tmp_path):
    state, file = weights(num_classes=7), tmp_path / f"x.{kind}"
    named = {prefix + name: value for name, value in state.items()}
    if kind == "pth":
        torch.save({"state_dict": named, "epoch": 3}, file)
    else:
        save_tensors(file, named)
    found = load_pretrained(TimmEncoder(NAME, file))
    assert_read(found.module, state)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.prefix == ("state_dict." if kind == "pth" else "") + prefix
    cfg = timm.get_pretrained_cfg(NAME)
    assert Preprocess.of(found.module) == Preprocess((224, 224), cfg.mean, cfg.std, cfg.crop_pct)
    assert found.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1024)


def test_the_tag_says_which_images_the_weights_want(tmp_path):
    save_tensors(tmp_path / "x.safetensors", weights("vit_tiny_patch16_224"))
    tags = ("augreg_in21k", "augreg_in21k_ft_in1k")
    for tag in tags:
        name = f"vit_tiny_patch16_224.{tag}"
        cfg, found = (
            timm.get_pretrained_cfg(name),
            load_pretrained(TimmEncoder(name, tmp_path / "x.safetensors")),
        )
        assert found.module.pretrained_cfg["tag"] == tag
        assert Preprocess.of(found.module) == Preprocess(cfg.input_size[1:], cfg.mean, cfg.std, cfg.crop_pct)


def test_what_the_authors_named_otherwise_is_translated_by_timm(tmp_path):
    """ConvNeXt's own release: `downsample_layers.0.0` where timm has `stem.0`."""
    state = weights("convnext_atto", num_classes=5)
    old = {
        "stem.": "downsample_layers.0.",
        "head.norm.": "norm.",
        "head.fc.": "head.",
        ".conv_dw.": ".dwconv.",
        ".mlp.fc": ".pwconv",
    }
    named = {}
    for name, value in state.items():
        for ours, theirs in old.items():
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] == "stages":
            name = ".".join(
                ["downsample_layers", parts[1], *parts[3:]]
                if parts[2] == "downsample"
                else ["stages", parts[1], *parts[3:]]
            )
        named[name] = value
    torch.save({"model": named}, tmp_path / "x.pth")
    loaded = load_pretrained(TimmEncoder("convnext_atto", tmp_path / "x.pth"))
    found = loaded.module.state_dict()
    assert loaded.prefix == "model." and loaded.module.pretrained_cfg["state_dict"] is None
    assert not [name for name, value in found.items() if not torch.equal(value, state[name])]


def test_another_models_weights_are_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", create("resnet18_cifar_w16", 10).state_dict())
    with pytest.raises(ConfigError, match=r"holds another model: tensors .* missing"):
        load_pretrained(TimmEncoder(NAME, tmp_path / "x.safetensors"))
    lacking = {name: value for name, value in weights().items() if name != "conv_head.bias"}
    save_tensors(tmp_path / "x.safetensors", lacking)
    with pytest.raises(ConfigError, match=r"1 missing \(such as conv_head.bias\)"):
        load_pretrained(TimmEncoder(NAME, tmp_path / "x.safetensors"))
    with pytest.raises(ConfigError, match="does not exist"):
        load_pretrained(TimmEncoder(NAME, tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet81", "not a timm model; try timm:resnet18"),
        ("vit_tiny_patch16_224.mae", r"no such weights of that model; it has vit_tiny_patch16_224\.augreg"),
        ("resnet18_cifar.a", "no such weights of that model"),
    ],
)
def test_unknown_names_are_told_with_known_ones(name, told):
    with pytest.raises(ConfigError, match=told):
        load_pretrained(TimmEncoder(name))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of timm's hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def in_cache(cache: Path, name: str, state: dict[str, Tensor]) -> None:
    """Put weights where the hub's client keeps what it has fetched."""
    folder = cache / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_tensors(folder / "snapshots" / "abc" / "model.safetensors", state)


def test_weights_in_timms_cache_need_no_network(cache):
    state = weights()
    in_cache(cache, NAME, state)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    found = load_pretrained(TimmEncoder(NAME))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_read(found.module, state)
    assert found.sha256 == fingerprint(found.module.state_dict())
    state["conv_stem.weight"][0, 0, 0, 0] += 1
    assert fingerprint(state) != found.sha256


def test_no_weights_are_one_line_and_never_a_random_encoder(cache):
    for name in (NAME, "resnet18_cifar"):
        with pytest.raises(
            ConfigError, match=r"not in timm's cache .*give --weights FILE, or fill"
        ) as caught:
            load_pretrained(TimmEncoder(name))
        assert "\n" not in str(caught.value)


def test_nor_is_a_part_of_it(cache):
    """timm lets this model lack weights."""
    state = weights("dla34")
    in_cache(cache, "dla34", {k: v for k, v in state.items() if k != "level2.root.conv.weight"})
    with pytest.raises(ConfigError, match=r"1 tensors, such as level2.root.conv.weight, are not in"):
        load_pretrained(TimmEncoder("dla34"))
