"""What holds for any input: configurations, run manifests, checkpoint folders, noise on any labels."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.cli import parse
from rmd_dist.config.convert import save_yaml
from rmd_dist.config.fields import facts_of
from rmd_dist.data.noise import PROTOCOLS, make_noise
from rmd_dist.data.sources.cifar_classes import next_in_superclass
from rmd_dist.engine.checkpoint import newest, write_checkpoint
from rmd_dist.engine.state import State
from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import read_manifest
from tests.data.noisy import info_of, noisy
from tests.fuzz.mutate import HOSTILE, PATHS, replace
from tests.fuzz.targets import network

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SLOW = settings(QUICK, max_examples=30)  # a configuration takes 50 ms to parse

# Noise

GENERATED = [name for name in PROTOCOLS if not name.startswith("human")]
FITTING = {
    10: [name for name in GENERATED if name != "asymmetric-idblock"],
    100: GENERATED,
}
CIFAR10_TARGETS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}


def targets(protocol: str, classes: int, c: int) -> set[int]:
    """What a flipped label of class c may become."""
    if protocol == "pairflip":
        return {(c + 1) % classes}
    if protocol == "asymmetric":
        table = CIFAR10_TARGETS if classes == 10 else next_in_superclass()
        return {table[c]} if c in table else set()
    if protocol == "asymmetric-idblock":
        return {c // 5 * 5 + (c + 1) % 5}
    return set(range(classes)) - {c} if protocol != "none" else set()


@st.composite
def noise_cases(draw: Any) -> tuple[np.ndarray, str, float, int, int]:
    """(labels, some classes empty or huge; protocol; rate; seed; number of classes)."""
    classes = draw(st.sampled_from([2, 3, 7, 10, 100]))
    protocol = draw(st.sampled_from(FITTING.get(classes, [*FITTING[10][:3], "pairflip"])))
    sizes = draw(st.dictionaries(st.integers(0, classes - 1), st.integers(1, 400), min_size=1, max_size=6))
    labels = np.repeat(list(sizes), list(sizes.values()))
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(labels)
    rate = draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)))
    return labels, protocol, rate, draw(st.integers(0, 2**64 - 1)), classes


@QUICK
@given(noise_cases())
def test_noise_flips_what_it_says_and_says_what_it_flipped(case: Any) -> None:
    """Exact counts for each class, allowed targets alone, a manifest that agrees, the same every time."""
    labels, protocol, rate, seed, classes = case
    noise = noisy(labels, protocol, rate, seed, classes)
    manifest = noise.manifest
    transitions = np.array(manifest["transitions"])
    for c in range(classes):
        own = labels == c
        allowed, quota = targets(protocol, classes, c), round(rate * own.sum())
        flips = int((noise.flipped & own).sum())
        assert set(noise.given[own & noise.flipped].tolist()) <= allowed
        assert c not in noise.given[own & noise.flipped]
        assert flips <= quota if protocol == "symmetric-inclusive" else flips == (quota if allowed else 0)
        assert transitions[c].tolist() == np.bincount(noise.given[own], minlength=classes).tolist()
    assert transitions.sum() == manifest["count"] == len(labels)
    assert manifest["realised_rate"] == (len(labels) - np.trace(transitions)) / len(labels)
    assert manifest["labels_sha256"] == hashlib.sha256(noise.given.astype("<i8").tobytes()).hexdigest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert noisy(labels, protocol, rate, seed, classes).manifest == manifest
    again = make_noise(labels.astype(np.uint8), protocol, rate, seed, info_of(classes))
    assert np.array_equal(again, noise.given)


# Configurations

KEYS = {cls: list(facts_of(cls)) for cls in (PretrainConfig, DistillConfig)}
TEXTS = st.one_of(
    st.sampled_from(
        ["null", "true", "1e3", "[1]", "{a: 1}", "~", "-", "1_000", "0x10", "1:30", "yes", "é", " a "]
    ),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(width=32), TEXTS),
    st.lists(st.floats(0, 1), max_size=4),
    st.sampled_from(
        ["cifar100", "digits", "cosine", "human:worse_label", "gce", "resnet18_cifar_w16", "auto"]
    ),
)


def assert_valid_or_one_line(cls: Any, words: list[str], folder: Path) -> None:
    """A configuration that a file of it gives back, or one plain line."""
    try:
        config = parse(cls, words)
    except ConfigError as error:
        assert str(error).isprintable() and str(error)
        return
    save_yaml(config, folder / "again.yaml")
    assert parse(cls, ["--config", str(folder / "again.yaml")]) == config


@SLOW
@given(cls=st.sampled_from(list(KEYS)), data=st.data())
def test_any_yaml_of_known_keys_is_a_configuration_or_one_line(cls: Any, data: Any, tmp_path: Path) -> None:
    import yaml

    chosen = data.draw(st.dictionaries(st.sampled_from(KEYS[cls]), SCALARS, max_size=3))
    nested: dict[str, Any] = {}
    for key, value in chosen.items():
        *groups, leaf = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(nested))
    assert_valid_or_one_line(cls, ["--config", str(tmp_path / "c.yaml")], tmp_path)


JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=6
)


@SLOW
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60), JSON_VALUES))
def test_any_file_is_a_configuration_or_one_line(content: Any, tmp_path: Path) -> None:
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    (tmp_path / "c.yaml").write_bytes(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    )
    assert_valid_or_one_line(DistillConfig, ["--config", str(tmp_path / "c.yaml")], tmp_path)


@SLOW
@given(data=st.data())
def test_any_words_are_a_configuration_or_one_line(data: Any, tmp_path: Path) -> None:
    flags = st.sampled_from([f"--{key}" for key in KEYS[DistillConfig]] + ["--lr", "--K", "--name", "--seed"])
    values = st.one_of(TEXTS, st.floats().map(str), st.integers().map(str))
    words = data.draw(st.lists(st.one_of(st.tuples(flags, values), st.tuples(values)), max_size=3))
    flat = [word for pair in words for word in pair]
    if not {"-h", "--help", "--version"} & set(flat):  # these end the process, as they should
        assert_valid_or_one_line(DistillConfig, flat, tmp_path)


# Run manifests


@QUICK
@given(content=st.one_of(st.binary(max_size=60), JSON_VALUES, st.fixed_dictionaries({"config": JSON_VALUES})))
def test_any_run_manifest_is_an_object_or_one_line(content: Any, tmp_path: Path) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "manifest.json").write_bytes(raw)
    try:
        manifest = read_manifest(tmp_path)
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(manifest, dict) and isinstance(manifest.get("config", {}), dict)


# Checkpoint folders


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _hostile(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        beside = path.with_suffix(".json")
        beside.write_text(json.dumps(json.loads(beside.read_text()) | {key: value}))

    return change


DAMAGES: list[Callable[[Path], Any]] = [
    _flip,
    lambda path: _flip(path.with_suffix(".json")),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.with_suffix(".json").write_bytes(b""),
    *(lambda path, kind=kind: replace(path, kind) for kind in PATHS),
    *(lambda path, kind=kind: replace(path.with_suffix(".json"), kind) for kind in PATHS),
    *(_hostile(key, value) for key in ("step", "size", "sha256", "format") for value in HOSTILE),
    _hostile("scalars", None),
]
FOREIGN = (
    "step-x.json",
    "step-000000099.json",
    ".step-000000001.safetensors.7.tmp",
    "step-.json",
    "notes",
    "step-é.json",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Intact checkpoints of steps 1 to 4."""
    folder = tmp_path_factory.mktemp("checkpoints")
    module, optimizer = network()
    for step in (1, 2, 3, 4):
        snapshot = State(module, optimizer, step=step).snapshot({"scaler": {}})
        write_checkpoint(folder, snapshot, keep=9, follows=step - 1)
    return folder


@settings(QUICK, max_examples=150)
@given(
    state=st.dictionaries(st.integers(1, 4), st.sampled_from(["absent", "intact", *range(len(DAMAGES))])),
    foreign=st.sets(st.sampled_from(FOREIGN)),
)
def test_the_newest_intact_checkpoint_is_found_whatever_lies_beside_it(
    state: dict[int, Any], foreign: set[str], checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for step, what in state.items():
        name = f"step-{step:09d}"
        if what != "absent":
            for end in (".json", ".safetensors"):
                shutil.copy(checkpoints / f"{name}{end}", folder)
        if isinstance(what, int):
            DAMAGES[what](folder / f"{name}.safetensors")
    for name in foreign:
        (folder / name).write_bytes(b"\xff{}")
    warnings: list[str] = []
    found = newest(folder, warnings.append)
    intact = [step for step, what in state.items() if what == "intact"]
    assert (found.step if found else None) == max(intact, default=None)
    assert all(text.isprintable() for text in warnings)
