"""Which labels are wrong: a list, the worst first, and a page to review them.

rmd audit FOLDER --model resnet50 --weights resnet50.pth
rmd audit FOLDER                                          (by its newest rmd pretrain --dataset FOLDER)
rmd audit apply audits/NAME --decisions decisions.csv     (what the page downloaded; writes corrected.csv)
rmd distill --dataset FOLDER --labels audits/NAME/corrected.csv
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmd_dist.commands import path
from rmd_dist.config import AuditConfig
from rmd_dist.config.cli import parse
from rmd_dist.errors import ConfigError
from rmd_dist.runs.console import preparation_progress, print_table

if TYPE_CHECKING:
    from rmd_dist.audit.dataset import ImageAudit
    from rmd_dist.audit.subject import Subject
    from rmd_dist.tasks.teacher import FrozenEncoder

WORST = 10  # labels that the terminal shows


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["apply"]:
        return apply_decisions(words[1:])
    return audit(words)


def audit(words: Sequence[str]) -> None:
    """Audit a data set and write what was found."""
    config = parse(AuditConfig, words, positional="dataset")
    from rmd_dist.data.dataset import find_source

    find_source(config.dataset, Path(config.root))  # an unknown name is told before torch is loaded
    if config.with_cleanlab:
        require_cleanlab()
    from rmd_dist import parallel
    from rmd_dist.audit.dataset import audit_images
    from rmd_dist.audit.write import PAGE, check_folder, default_name, write_audit
    from rmd_dist.engine.start import prepare_data
    from rmd_dist.parallel.accelerator import make_accelerator
    from rmd_dist.parallel.processes import from_main

    accelerator = make_accelerator("no", config.cpu)
    prepare_data(config.dataset, config.root, config.source, config.loader)

    def place(subject: Subject, encoder: FrozenEncoder) -> Path:
        return Path(config.out) / (config.name or default_name(config, subject, encoder.name))

    def check(subject: Subject, encoder: FrozenEncoder) -> None:
        corrects = config.accept_above is not None
        folder = place(subject, encoder)
        from_main(lambda: check_folder(folder, subject.fingerprint(), encoder.sha256, corrects=corrects))

    with preparation_progress(enabled=parallel.is_main()) as progress:
        found = audit_images(config, accelerator.device, progress, check)
    folder = place(found.subject, found.encoder)
    summary = from_main(lambda: write_audit(folder, config, found))
    if parallel.is_main():
        _tell(found, summary)
        print(f"review: {folder / PAGE}")
        print(f"then: rmd audit apply {folder} --decisions decisions.csv")
    parallel.shutdown()


def require_cleanlab() -> None:
    """ConfigError where it is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise ConfigError("--with-cleanlab needs cleanlab; install it: pip install cleanlab")


def _tell(found: ImageAudit, summary: dict[str, Any]) -> None:
    """The worst labels, how right the audit is where that is known, and the summary."""
    from rmd_dist.audit.measure import detection_lines
    from rmd_dist.audit.write import lines
    from rmd_dist.data.images.listing import shown

    subject, audit = found.subject, found.audit
    worst = [row for row in audit.order[:WORST] if audit.flagged[row]]
    rows = [
        [
            shown(subject.title(int(subject.rows[row]))),
            shown(subject.classes[audit.given[row]]),
            shown(subject.classes[audit.suggested[row]]),
            f"{audit.p_given[row]:.2%}",
        ]
        for row in worst
    ]
    if rows:
        print_table("the worst labels", ["image", "given", "suggested", "given is right"], rows)
    if subject.clean is not None:
        figures = detection_lines(audit, subject.clean[subject.rows])
        print_table("against the true labels", ["measure", "value"], figures)
    print_table("audit", ["", ""], [[shown(cell) for cell in line] for line in lines(summary)])


def apply_decisions(words: Sequence[str]) -> None:
    """Write corrected.csv from the decisions of a review."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} apply", description="Write the labels that a review decided on."
    )
    parser.add_argument("audit", type=path, help="folder of the audit")
    parser.add_argument("--decisions", type=path, required=True, help="file that its page downloaded")
    parser.add_argument(
        "--accept-above",
        type=float,
        help="of flagged labels that nobody decided on, take suggestions of this probability",
    )
    parser.add_argument("--out", type=path, help="file to write (corrected.csv in the audit's folder)")
    args = parser.parse_args(words)
    from rmd_dist.audit.apply import apply
    from rmd_dist.audit.listing import CORRECTED
    from rmd_dist.audit.write import read_summary

    out = args.out or args.audit / CORRECTED
    done = apply(args.audit, args.decisions, args.accept_above, out)
    print(f"{out}: {', '.join(f'{count} {kind}' for kind, count in sorted(done.items()))}")
    print(f"now: rmd distill --dataset {read_summary(args.audit)['place']} --labels {out}")
