"""The figures of `gpu.py` as Markdown, with what was predicted before any of it had run beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PREDICTED_MS = {("pretrain", "bf16"): "6 to 10", ("distill", "bf16"): "4.5 to 8"}
"""A step of batch 64 on an H100, eager, by the number of its launches."""

PREDICTED_KERNELS = {"pretrain": "650", "distill": "430"}


def tables(results: dict[str, Any]) -> str:
    """All parts that have run, each with what went wrong in it."""
    blocks = []
    for name, part in results["parts"].items():
        blocks.append(f"### {name.capitalize()}, {part['seconds']:.0f} s")
        if problem := part.get("error") or part.get("left_out"):
            blocks.append(f"**{problem}**")
        if name in TABLES and (part.get("rows") or part.get("groups")):
            blocks.append(TABLES[name](part))
        elif name == "environment" and "device" in part:
            blocks.append(_environment(part))
    return "\n\n".join(blocks)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; None is a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("-" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _environment(part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    driver = f", driver and memory {part['driver']}" if "driver" in part else ""
    return f"{part['device']}{driver}, {part['cores']} cores, Python {part['python']}, {versions}"


def _tests(part: dict[str, Any]) -> str:
    rows = [
        [name, g["passed"], g["failed"] + g["error"], g["skipped"], g.get("problem")]
        for name, g in part["groups"].items()
    ]
    table = markdown(["group", "passed", "failed", "left out", "what went wrong"], rows)
    said = [line for group in part["groups"].values() for line in group.get("said", ())]
    return table + ("\n\n```\n" + "\n".join(said) + "\n```" if said else "")


def _steps(part: dict[str, Any]) -> str:
    rows = [
        [
            r["stage"],
            r["variant"],
            f"{r['ms']:.2f}",
            PREDICTED_MS.get((r["stage"], r["variant"])) if r["batch"] == 64 else None,
            f"{r['bare_ms']:.2f}",
            f"{r['ratio']:.3f}",
            f"{r['images_per_second']:,.0f}",
            r["kernels"],
            PREDICTED_KERNELS[r["stage"]] if r["kernels"] else None,
            None if r["peak_mib"] is None else f"{r['peak_mib']:.0f}",
        ]
        for r in part["rows"]
    ]
    columns = ["stage", "variant", "ms a step", "predicted", "bare loop, ms", "ratio", "images/s"]
    return markdown([*columns, "kernels", "predicted", "MiB"], rows)


def _graph(part: dict[str, Any]) -> str:
    def rows(found: list[dict[str, Any]], blocks: str) -> list[list[Any]]:
        return [
            [
                row["batch"],
                form,
                blocks,
                f"{1000 * f['seconds']:.3f}",
                f"{f['speedup']:.2f}" if "speedup" in f else None,
                f"{f['memory_mib']:.1f}",
            ]
            for row in found
            for form, f in row["forms"].items()
        ]

    found = rows(part["rows"], "default")
    for name, more in part.items():
        if name.startswith("blocks of "):
            found += [row for row in rows(more, name.removeprefix("blocks of ")) if row[1] != "naive"]
    return markdown(["B", "form", "block", "ms", "x naive", "MiB above the inputs"], found)


def _sharing(part: dict[str, Any]) -> str:
    alone = part["rows"][0]["steps_per_second"]
    table = markdown(
        ["processes", "steps/s of all", "x one", "ms a step of each"],
        [
            [
                f"{r['processes']}, by MPS" if r.get("mps") else r["processes"],
                f"{r['steps_per_second']:.1f}",
                f"{r['steps_per_second'] / alone:.2f}",
                f"{1000 * r['processes'] / r['steps_per_second']:.1f}",
            ]
            for r in part["rows"]
        ],
    )
    return "\n\n".join([table, *part.get("said", [])])


def _loader(part: dict[str, Any]) -> str:
    rows = [[r["work"], r["threads"], f"{r['images_per_second']:,.0f}"] for r in part["rows"]]
    return markdown(["work", "threads", "images/s"], rows)


def _trained(part: dict[str, Any]) -> str:
    def percent(share: float | None) -> str | None:
        return None if share is None else f"{100 * share:.2f} %"

    return markdown(
        ["run", "accuracy", "wrong labels memorised", "steps", "images/s", "seconds with start-up"],
        [
            [
                r["run"],
                percent(r.get("accuracy")),
                percent(r.get("memorised")),
                r["steps"],
                f"{r['images_per_second']:,.0f}" if "images_per_second" in r else None,
                f"{r['seconds']:.0f}",
            ]
            for r in part["rows"]
        ],
    )


def _teacher(part: dict[str, Any]) -> str:
    curve = [[f"{p['seconds']:.0f}", p["step"], f"{100 * p['knn']:.2f} %"] for p in part["curve"]]
    more = [f"{name}: {100 * value:.2f} %" for name, value in part.get("k = 10", {}).items()]
    return "\n\n".join([_trained(part), markdown(["seconds with start-up", "step", "kNN"], curve), *more])


TABLES = {
    "tests": _tests,
    "steps": _steps,
    "graph": _graph,
    "sharing": _sharing,
    "loader": _loader,
    "digits": _trained,
    "cifar10": _trained,
    "teacher": _teacher,
}
