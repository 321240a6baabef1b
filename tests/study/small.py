"""A small study whose runs are a stand-in: a script that learns nothing and is through in an instant."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rmd_dist.study.cells import Cell, plan
from rmd_dist.study.runner import Topology
from rmd_dist.study.spec import StudySpec, load_spec

SPEC = """
# A study for tests.
datasets: [digits]
losses: [ce, gce]
methods:
  "": {K: 0}
  "+RMDNet": {K: {ce: 1, default: 0.5}}
noise: {symmetric: [0.4]}
seeds: [0, 1]
pretrain: {model: {name: resnet18_cifar_w16}, optim: {epochs: 2}}
distill: {model: {name: resnet18_cifar_w16}, optim: {epochs: 3, lr: 0.1}}
"""

STAND_IN = """
import json, os, pathlib, signal, sys, time, yaml
config = yaml.safe_load(open(sys.argv[2]))
stage = sys.argv[3]
folder = pathlib.Path(config["run"]["root"], stage, config["run"]["name"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("start\\n")
plan = pathlib.Path(config["run"]["root"]).parent / "plan.json"
name = config["run"]["name"].rpartition("-")[0]
todo = json.loads(plan.read_text()).get(name, {}) if plan.exists() else {}
def stop(*_):
    if todo.get("deaf"):
        return
    (folder / "manifest.json").write_text(json.dumps({"status": "stopped", "why": "SIGTERM"}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
tag = "eval/knn_accuracy" if stage == "pretrain" else "test/accuracy"
value = todo.get("accuracy", 0.5)
with (folder / "metrics.jsonl").open("w") as file:
    for step in (22, 44, 66):
        record = {"step": step, tag: value, "validation/accuracy_noisy": todo.get("validation", value)}
        file.write(json.dumps(record | {"train/images_per_second": 640.0}) + "\\n")
        file.flush()
        until = time.monotonic() + todo.get("seconds", 0.0)
        while time.monotonic() < until:
            time.sleep(0.01)
if todo.get("damaged"):
    (folder / "manifest.json").write_text("{")
    sys.exit(0)
if todo.get("stops") == len((folder / "starts").read_text().split()):
    stop()
if todo.get("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
if todo.get("fails"):
    print("error: it was told to fail")
    sys.exit(2)
results = {kind: {"tag": tag, "value": value, "step": 66} for kind in ("last", "best_on_test")}
about = {"status": "finished", "step": 66, "results": results, "config": {"data.batch_size": 64}}
(folder / "manifest.json").write_text(json.dumps(about))
"""


class StandIn(Topology):
    """Starts the stand-in instead of a stage."""

    def command(self, stage: str, config: Path) -> list[str]:
        return [sys.executable, "-c", STAND_IN, "--config", str(config), stage]


def spec(tmp_path: Path, text: str = SPEC, name: str = "small") -> StudySpec:
    """A spec read from a file."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return load_spec(path)


def cells(tmp_path: Path, text: str = SPEC) -> list[Cell]:
    """The cells of a spec."""
    return plan([spec(tmp_path, text)])[0]


def named(keys: Iterable[str], name: str) -> str:
    """The one of `keys` that is `name` and a digest."""
    (found,) = (key for key in keys if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{6}}", key))
    return found
