"""What a run has measured so far, read back from metrics.jsonl, and the closing table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SELECTION = "validation/accuracy_noisy"


class History:
    """Evaluations of a run up to `step`; nothing of it needs saving, metrics.jsonl has it all.

    `tag` names the accuracy that the closing table shows.
    """

    def __init__(self, metrics: Path, step: int, tag: str) -> None:
        self.tag = tag
        self.records: list[tuple[int, dict[str, float]]] = []
        self.closed: set[int] = set()
        """Steps after which the results of a finished run are recorded."""
        if metrics.exists():
            for line in metrics.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the torn last line of a killed run
                if record.get("step", 0) > step:
                    continue
                if any(key.startswith("final/") for key in record):
                    self.closed.add(int(record["step"]))
                if tag in record:
                    numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
                    self.records.append((int(record["step"]), numbers))

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
        return "result", ["which", "measure", "accuracy", "step"], rows
