"""Tables and figures of a study, finished or not: rmd report STUDY [--references] [--out DIR]

Writes report.md with its pictures, cells.csv, and report.html, one page that needs no other file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rmd_dist.commands import path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("study", type=path, help="folder of the study, such as studies/table1")
    parser.add_argument("--storage", help=argparse.SUPPRESS)  # of versions that kept a database
    parser.add_argument("--out", type=path, help="folder of the report (default: STUDY/report)")
    parser.add_argument(
        "--configs", type=path, help="folder of the YAML files that the printed commands name"
    )
    parser.add_argument(
        "--references", action="store_true", help="show what the teacher's features do without a student, too"
    )
    where = parser.add_argument_group("for --references, where it is not as the runs had it")
    where.add_argument("--data-root", type=path, help="folder of betons and archives")
    where.add_argument("--source", type=path, help="official python archive or its folder")
    where.add_argument("--loader", choices=("ffcv", "memory"), help="how images are read")
    where.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    args = parser.parse_args(argv)

    from rmd_dist.files import check_output_folder
    from rmd_dist.report.build import make_report
    from rmd_dist.report.write import write_report
    from rmd_dist.study.folder import read_study

    study, out = read_study(args.study), args.out or args.study / "report"
    check_output_folder(out)
    references = None
    if args.references:
        from rmd_dist.report.references import find_references
        from rmd_dist.study.runner import Data

        root, source = (given and str(given) for given in (args.data_root, args.source))
        references = find_references(study, Data(root, source, args.loader, args.cpu), print)
    report = make_report(study, args.configs, references)
    for file in write_report(report, out):
        print(file)
    print(report.summary)
