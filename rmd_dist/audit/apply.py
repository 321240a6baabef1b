"""From the decisions of a review to labels that can be trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rmd_dist.audit.decisions import read_decisions
from rmd_dist.audit.listing import CORRECTED, WRONG_LABELS, read_wrong_labels, write_corrected
from rmd_dist.audit.write import read_summary
from rmd_dist.errors import ConfigError


def apply(
    folder: Path, decisions: Path, accept_above: float | None = None, out: Path | None = None
) -> Counter[str]:
    """Write corrected.csv of the audit in `folder`; returns how many labels each kind of decision changed.

    What nobody decided keeps its label, or gets the suggested one where that has at least the probability
    `accept_above`. Raises ConfigError if the decisions are of another audit or a file is damaged.
    """
    summary = read_summary(folder)
    classes = summary["classes"]
    rows = read_wrong_labels(folder / WRONG_LABELS)
    numbers = {name: k for k, name in enumerate(classes)}
    count = summary["images"] + summary["without_label"]
    if accept_above is not None and not 0 <= accept_above <= 1:
        raise ConfigError(f"--accept-above = {accept_above} is out of range; allowed: 0 to 1")
    if [row["index"] for row in rows] != [str(k) for k in range(count)]:
        raise ConfigError(
            f"{folder / WRONG_LABELS} does not list each of {count} images once; give it back as rmd audit "
            "wrote it, or make the audit anew"
        )
    given, names = [-1] * count, [""] * count
    taken: dict[int, int] = {}
    done: Counter[str] = Counter()
    try:
        for row in rows:
            index = int(row["index"])
            names[index] = row["path"]
            if not row["given_label"]:
                continue
            given[index] = numbers[row["given_label"]]
            sure = accept_above is not None and float(row["p_predicted"]) >= accept_above
            if sure and row["is_label_issue"] == "True":
                taken[index] = numbers[row["predicted_label"]]
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{folder / WRONG_LABELS} is damaged ({error!s:.80}); make the audit anew"
        ) from error
    accepted, decided = set(taken), set[int]()
    for decision in read_decisions(decisions, summary["audit"], classes, count):
        changes = decision.kind in ("relabel", "drop")
        taken[decision.index] = decision.label if changes else given[decision.index]
        decided.add(decision.index)
        done[decision.kind] += 1
    if accept_above is not None:
        done["accepted"] = len(accepted - decided)
    labels = [taken.get(index, label) for index, label in enumerate(given)]
    write_corrected(out or folder / CORRECTED, names, labels, classes)
    return done
