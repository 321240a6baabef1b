"""Tables and figures of a study, finished or not: python launch/report.py STUDY [--out DIR]

Writes report.md with its pictures, cells.csv, and report.html, one page that needs no other file.
"""

import argparse
from pathlib import Path

from rmd_dist.cli import run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("study", type=Path, help="folder of the study, such as studies/table1")
    parser.add_argument("--storage", help="sqlite, journal, or the database URL the study was given")
    parser.add_argument("--out", type=Path, help="folder of the report (default: STUDY/report)")
    parser.add_argument("--configs", help="folder of the YAML files that the printed commands name")
    args = parser.parse_args()

    from rmd_dist.study.folder import read_study
    from rmd_dist.study.publish import write_report
    from rmd_dist.study.report import make_report

    report = make_report(read_study(args.study, args.storage), args.configs)
    for path in write_report(report, args.out or args.study / "report"):
        print(path)
    print(report.summary)


if __name__ == "__main__":
    run(main)
