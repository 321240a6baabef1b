"""The folder of one run: its name, its manifest, and what may continue in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import math
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rmd_dist import __version__
from rmd_dist.config import AnyConfig, DistillConfig, NoiseConfig, is_path, starts_from_file
from rmd_dist.config.convert import flatten, later_defaults, save_yaml
from rmd_dist.config.datasets import dataset_name
from rmd_dist.config.fields import Facts, facts_of
from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import atomic_path, expanded, read_json, remove_debris, sha256, write_json

RECORDED = (
    "precision",
    "compile",
    "deterministic",
    "data_sha256",
    "labels_sha256",
    "teacher_sha256",
    "student_sha256",
)
"""What else a run began with; `refuse_other` compares it."""

DIED = "ended without a word: killed, out of memory, or aborted (as NCCL's watchdog does after ten minutes)"
"""Why a run failed whose manifest says that it is running, when no job has it."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system without flock


def default_name(config: AnyConfig) -> str:
    """Folder name from what tells runs apart, such as `cifar10-resnet18_cifar-gce-symmetric0.4-K1-seed0`."""
    parts = [dataset_name(config.data.dataset), config.model.name]
    if isinstance(config, DistillConfig):
        parts += [config.loss, _noise_name(config.noise)]
        parts.append(f"K{config.K:g}")
        if starts_from_file(config.student_init):
            parts.append("from-encoder")
        if config.targets.kind != "given":
            parts.append(config.targets.kind)
        if config.teacher and config.K and not is_path(config.teacher):
            parts.append(f"{config.teacher.replace(':', '-')}-teacher")
    elif config.objective != "simsiam":
        parts.append(config.objective)
    parts += [f"seed{config.run.seed}"]
    return "-".join(parts)


def _noise_name(noise: NoiseConfig) -> str:
    """Such as symmetric0.4; of labels from a file, which may be called anything, `file-STEM`."""
    if noise.labels:
        return f"file-{dataset_name(noise.labels)}"
    fixed = noise.protocol == "none" or ":" in noise.protocol
    return noise.protocol.replace(":", "-") if fixed else f"{noise.protocol}{noise.rate:g}"


class RunFolder:
    """`ROOT/STAGE/NAME/`: config.yaml, manifest.json, metrics.jsonl, events.*, checkpoints/, the model."""

    def __init__(self, config: AnyConfig) -> None:
        self.config = config
        self.stage = config.stage
        self.path = Path(config.run.root) / self.stage / (config.run.name or default_name(config))
        self._lock: IO[str] | None = None
        self._allowed: list[str] = []

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def open(self) -> None:
        """Create or reopen the folder (rank 0). Raises ConfigError if it is another's."""
        saved = self.manifest()
        if saved and self.config.run.resume == "never":
            raise ConfigError(f"{self.path} exists and resume = never; give another --name, or --resume auto")
        if saved:
            self._refuse_differences(saved.get("config", {}))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock = lock
        except BlockingIOError:
            raise ConfigError(
                f"{self.path} is in use by another job; wait for it or give another --name"
            ) from None
        except OSError as error:
            what = "lock" if error.errno in _NO_LOCKS else "write to"
            raise ConfigError(
                f"cannot {what} {self.path} ({error.strerror}); give another --runs folder"
            ) from None
        remove_debris(self.path)
        remove_debris(self.checkpoints)
        saved = self.manifest()  # as the job that had the lock has left it
        if saved.get("status") == "running":
            print(f"{self.path}: the job before this one {DIED}", flush=True)
            self._write(saved | {"status": "failed", "why": DIED})

    def close(self) -> None:
        """Let another job have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard_if_empty(self) -> None:
        """Remove a folder that `open` made, or had begun to, for a run that never began (rank 0)."""
        with contextlib.suppress(OSError):  # others' runs are there, or another job's lock
            if self._lock is not None and {file.name for file in self.path.iterdir()} == {".lock"}:
                (self.path / ".lock").unlink()
            for folder in (self.path, self.path.parent, self.path.parent.parent):
                folder.rmdir()

    def manifest(self) -> dict[str, Any]:
        """The manifest as a dict; empty if there is none yet. Raises ConfigError if it is damaged."""
        return read_manifest(self.path)

    def update(self, **values: Any) -> None:
        """Merge `values` into the manifest (rank 0). Raises Fault if it cannot be written."""
        start = self.manifest() or {
            "format": 1,
            "stage": self.stage,
            "dataset": dataset_name(self.config.data.dataset),
            "model": self.config.model.name,
            "created": _now(),
            "versions": _versions(),
        }
        # Not where and how often: those may change from one start to the next.
        matters = {k: v for k, v in flatten(self.config).items() if not self._free(k)}
        with writing(self.path), atomic_path(self.path / "config.yaml") as temporary:
            save_yaml(self.config, temporary)
        self._write(start | {"config": matters} | values)

    def _write(self, manifest: dict[str, Any]) -> None:
        with writing(self.path):
            write_json(self.path / "manifest.json", manifest | {"updated": _now()})

    def begin(self, step: int, **values: Any) -> None:
        """Mark the run as running from `step` on (rank 0).

        What --resume-allow let pass is kept on record, and why the job before failed, if it did.
        """
        before = self.manifest()
        if is_path(teacher := values.get("teacher")):
            values["teacher_from_run"] = os.path.relpath(teacher, self.path)
        allowed, failures = ([*before.get(key, [])] for key in ("allowed", "failures"))
        if self._allowed:
            allowed.append({"step": step, "time": _now(), "changes": self._allowed})
        if before.get("status") == "failed":
            failures.append({"time": before.get("updated"), "why": before.get("why"), "continued_at": step})
        self.update(status="running", why=None, step=step, allowed=allowed, failures=failures, **values)

    def finish(self, **values: Any) -> None:
        """Mark the run as finished now, with its results (rank 0)."""
        self.update(status="finished", finished=_now(), **values)

    @property
    def finished(self) -> bool:
        """Whether the manifest says so."""
        return self.manifest().get("status") == "finished"

    @property
    def begun(self) -> bool:
        """Whether this job has the folder and the manifest is there."""
        return self._lock is not None and (self.path / "manifest.json").exists()

    def teacher(self) -> Path | str | None:
        """The teacher that the run began with, where it lies now: it may have moved along with the run.

        A text: `random`, or `timm:NAME`. None: the run has not begun, or has none. Raises ConfigError if it
        cannot be found.
        """
        manifest = self.manifest()
        begun: str | None = manifest.get("teacher")
        if begun is None or not is_path(begun):
            return begun
        from_run, root = manifest.get("teacher_from_run"), self.path.parent.parent
        places = [Path(expanded(begun))]
        places += [Path(os.path.normpath(self.path / expanded(from_run)))] if from_run else []
        places += [root.joinpath(*Path(begun).parts[-3:])]  # of runs that did not record the second
        present = [place for place in places if place.is_file()]
        if not present:
            raise ConfigError(
                f"{self.path} began with the teacher {begun}, which is not there; give --teacher PATH to "
                "where it is now: its SHA-256 must be the same, its place need not"
            )
        same = [place for place in present if sha256(place) == manifest.get("teacher_sha256")]
        return (same or present)[0]

    def refuse_other(self, **now: Any) -> None:
        """ConfigError if the run began with other values of `now` than these (those it has recorded)."""
        began = self.manifest()
        self._refuse({key: (began[key], value) for key, value in now.items() if key in began})

    def _refuse_differences(self, saved: dict[str, Any]) -> None:
        now = json.loads(json.dumps(flatten(self.config)))
        saved = later_defaults(type(self.config)) | saved
        for values in (saved, now):  # their SHA-256 decide, wherever the files lie
            if is_path(values.get("teacher")):
                values["teacher"] = None
            if starts_from_file(values.get("student_init")):
                values["student_init"] = "encoder"
            for key in ("teacher_weights", "noise.labels"):
                values |= {key: None} if key in values else {}
            if "data.dataset" in values:
                values["data.dataset"] = dataset_name(str(values["data.dataset"]))
        keys = [key for key in sorted(saved.keys() | now.keys()) if not self._free(key)]
        unknown = [key for key in self._insisted if not any(_within(k, key) for k in [*keys, *RECORDED])]
        if unknown:
            raise ConfigError(
                f"run.resume_allow names {', '.join(unknown)}; allowed: keys of the configuration in full "
                f"(optim.lr) that decide what is computed, {', '.join(RECORDED)}"
            )
        self._refuse({key: (saved.get(key), now.get(key)) for key in keys})

    def _refuse(self, pairs: dict[str, tuple[Any, Any]]) -> None:
        """ConfigError listing the (then, now) `pairs` that differ, unless the user insists on all of them."""
        changed = {key: f"{key}: {then} -> {now}" for key, (then, now) in pairs.items() if then != now}
        refused = [key for key in changed if not any(_within(key, given) for given in self._insisted)]
        if refused:
            raise ConfigError(
                f"{self.path} began with other values ({'; '.join(changed[key] for key in refused)}); give "
                "the old ones to continue, another --name for a new run, or insist by --resume-allow "
                f"{','.join(refused)}"
            )
        self._allowed += changed.values()

    def _free(self, key: str) -> bool:
        """Whether a key may change when the run continues; not one that this version does not know."""
        return facts_of(type(self.config)).get(key, Facts()).free

    @property
    def _insisted(self) -> tuple[str, ...]:
        return self.config.run.resume_allow


def _within(key: str, given: str) -> bool:
    """Whether `given` is the key or a group it is in."""
    return key == given or key.startswith(f"{given}.")


_MANIFEST_TYPES: dict[str, type] = {
    **dict.fromkeys(("config", "results"), dict),
    **dict.fromkeys(("allowed", "failures"), list),
    **dict.fromkeys(("stage", "dataset", "model", "status", "teacher", "teacher_from_run"), str),
}
"""Of what others read in a manifest; a key may be absent."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a run folder; empty if absent. Raises ConfigError if it is damaged."""
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
        wrong = [
            key for key, kind in _MANIFEST_TYPES.items() if not isinstance(manifest.get(key, kind()), kind)
        ]
        if wrong:
            raise ValueError(f"bad {', '.join(wrong)}")
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); give another --name") from None


@dataclass(frozen=True)
class Result:
    """An accuracy that a run found."""

    tag: str
    """Of the scalar, such as test/accuracy."""
    value: float
    """In [0, 1]."""


def results_of(run: Path, manifest: dict[str, Any]) -> dict[str, Result]:
    """Kind (last, selected, best_on_test) -> result, of a run that has finished; empty before.

    Raises ConfigError, naming the folder `run`, if they are damaged.
    """
    try:
        found = manifest.get("results", {}).items()
        return {kind: Result(str(result["tag"]), _number(result["value"])) for kind, result in found}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{run}: the results in its manifest.json are damaged ({error!r})") from error


def _number(value: Any) -> float:
    """A figure; JSON has null where it was nan."""
    return math.nan if value is None else float(value)


def newest_finished(root: Path, dataset: str, model: str | None) -> Path | None:
    """The folder of the newest finished pretraining run of a data set, complete ones first.

    Of a model, or of any where it is None.
    """
    found = []
    for manifest_path in (root / "pretrain").glob("*/manifest.json"):
        try:
            manifest = read_manifest(manifest_path.parent)
        except ConfigError as error:
            print(f"warning: passing over a pretraining run: {error}", flush=True)
            continue
        wanted = {"status": "finished", "dataset": dataset} | ({"model": model} if model else {})
        if all(manifest.get(key) == value for key, value in wanted.items()):
            # A run of all its epochs goes before one that --max-steps cut short.
            rank = (bool(manifest.get("complete")), instant(manifest.get("finished")))
            found.append((rank, manifest_path.parent))
    return max(found)[1] if found else None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def instant(text: Any) -> float:
    """Seconds since the epoch of a time in a manifest, whatever its zone; of what is none, before all."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return -math.inf


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "accelerate", "timm", "ffcv", "numpy", "numba")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {"rmd-dist": __version__} | {name: installed[name] for name in names if name in installed}
