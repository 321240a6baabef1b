"""What a run has measured so far, read back from metrics.jsonl, and the closing table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmd_dist.errors import ConfigError
from rmd_dist.files import parse_json, read_bytes

MAX_BYTES = 1 << 30  # a thousand epochs of CIFAR-10 take 25 MB
SELECTION = "validation/accuracy_noisy"
RELATIONS = {
    "relations/judged_wrong": "labels judged wrong",
    "relations/judged_rightly": "of them truly wrong",
    "relations/right": "labels right as corrected",
    "relations/given_right": "labels right as given",
}
"""Tag -> what the closing table says of labels that relations correct."""


def read_records(metrics: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, numbers by tag) of each whole line of a metrics.jsonl; nothing if there is no such file.

    Lines that are no records are left out: the torn last one of a killed run, and whatever else got in.
    Raises ConfigError if it cannot be read.
    """
    try:
        content = read_bytes(metrics, MAX_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{metrics} cannot be read ({error}); restore it or remove it") from error
    yield from parse_records(content)


def parse_records(content: bytes) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, numbers by tag) of each line of a metrics.jsonl that is a record."""
    for line in content.splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if type(record.get("step")) is int:
            yield record["step"], {k: v for k, v in record.items() if isinstance(v, int | float)}


class History:
    """Evaluations of a run up to `step`; nothing of it needs saving, metrics.jsonl has it all.

    `tag` names the accuracy that the closing table shows.
    """

    def __init__(self, metrics: Path, step: int, tag: str) -> None:
        self.tag = tag
        self.records: list[tuple[int, dict[str, float]]] = []
        self.closed: set[int] = set()
        """Steps after which the results of a finished run are recorded."""
        for at, values in read_records(metrics):
            if at <= step and any(key.startswith("final/") for key in values):
                self.closed.add(at)
            if at <= step and tag in values:
                self.records.append((at, values))

    def has(self, step: int) -> bool:
        """Whether an evaluation of `step` is recorded."""
        return any(recorded == step for recorded, _ in self.records)

    def add(self, step: int, scalars: dict[str, float]) -> bool:
        """Record an evaluation; True if it is the best so far by noisy validation accuracy."""
        earlier = [values[SELECTION] for _, values in self.records if SELECTION in values]
        self.records.append((step, scalars))
        return SELECTION in scalars and scalars[SELECTION] > max(earlier, default=-1.0)

    def results(self) -> dict[str, dict[str, Any]]:
        """Kind (last, selected, best_on_test) -> {tag, value, step}."""
        tag = self.tag
        reported = [(step, values) for step, values in self.records if tag in values]
        if not reported:
            return {}
        chosen = {"last": reported[-1], "best_on_test": max(reported, key=lambda r: r[1][tag])}
        if any(SELECTION in values for _, values in reported):
            chosen["selected"] = max(reported, key=lambda r: r[1].get(SELECTION, -1.0))
        return {kind: {"tag": tag, "value": v[tag], "step": step} for kind, (step, v) in chosen.items()}

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """(title, columns, rows) of the closing table."""
        labels = {
            "last": "last",
            "selected": "selected on noisy validation labels",
            "best_on_test": "best on test (oracle: reads the test set)",
        }
        results = self.results()
        rows = [
            [label, results[kind]["tag"], f"{100 * results[kind]['value']:.2f} %", str(results[kind]["step"])]
            for kind, label in labels.items()
            if kind in results
        ]
        last = self.records[-1][1] if self.records else {}
        rows += [
            [said, tag, f"{100 * last[tag]:.2f} %", ""] for tag, said in RELATIONS.items() if tag in last
        ]
        return "result", ["which", "measure", "accuracy", "step"], rows
