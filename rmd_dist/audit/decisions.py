"""decisions.csv, which the page of an audit lets a person download: what is to be done with which image."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rmd_dist.errors import ConfigError, a_few
from rmd_dist.files import read_bytes

Kind = Literal["keep", "relabel", "drop", "unsure"]
COLUMNS = ("audit", "index", "path", "decision", "label")
MAX_BYTES = 64 << 20  # a million decisions with long paths have about as many


@dataclass(frozen=True)
class Decision:
    """What a person decided about one image."""

    index: int
    """Number of the image in the audit."""
    kind: Kind
    label: int
    """Class number that the image has after it: the given one of keep and unsure; -1 for drop."""


def read_decisions(file: Path, audit_id: str, classes: Sequence[str], count: int) -> list[Decision]:
    """The decisions in `file` about an audit of `count` images with `classes`, as they stand there.

    A spreadsheet program may have saved the file: with CRLF, a byte order mark, semicolons or tabs, its
    columns in another order. Raises ConfigError if it is missing, no such table, empty, of another audit, or
    says what cannot be: an unknown decision or class, an image that the audit lacks, or one twice.
    """
    numbers = {_folded(name): number for number, name in enumerate(classes)}
    numbers |= {name: number for number, name in enumerate(classes)}
    lines: dict[int, int] = {}
    decisions = []
    for line, row in _rows(file):
        where = f"{file}, line {line}"
        if row["audit"].strip().lower() != audit_id.lower():
            raise ConfigError(
                f"{where} is of audit {row['audit']!r:.80}, this is {audit_id!r}; give the decisions that "
                "the page of this audit downloaded"
            )
        index = _index(row["index"], count, where)
        if index in lines:
            raise ConfigError(f"{where} decides on image {index} as line {lines[index]} did; delete one")
        lines[index] = line
        kind = _kind(row["decision"], where)
        label = -1 if kind == "drop" else _label(row["label"], numbers, where)
        decisions.append(Decision(index, kind, label))
    if not decisions:
        raise ConfigError(f"{file} holds no decision; decide on the page of the audit, and download it again")
    return decisions


def _index(text: str, count: int, where: str) -> int:
    digits = text.strip()
    if not re.fullmatch(r"[0-9]{1,18}", digits) or int(digits) >= count:
        raise ConfigError(
            f"{where}: {text!r:.80} is no image of the audit, which has 0 to {count - 1}; download it again"
        )
    return int(digits)


def _kind(text: str, where: str) -> Kind:
    for kind in get_args(Kind):
        if text.strip().lower() == kind:
            return kind  # type: ignore[no-any-return]
    raise ConfigError(f"{where}: {text!r:.80} is no decision; write one of {', '.join(get_args(Kind))}")


def _label(text: str, numbers: dict[str, int], where: str) -> int:
    number = numbers.get(text, numbers.get(_folded(text)))
    if number is None:
        known = a_few([repr(name)[:60] for name in numbers])
        raise ConfigError(f"{where}: {text!r:.80} is no class of the audit; it has {known}")
    return number


def _folded(name: str) -> str:
    """`name` as it comes back: browsers replace bytes that are no UTF-8, spreadsheets change line ends."""
    return re.sub("[\ud800-\udfff]", "\ufffd", name).replace("\r\n", "\n").replace("\r", "\n")


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, value by column) of each row that is not blank."""
    text = _text(file)
    if not text.strip():
        raise ConfigError(f"{file} is empty; download it again from the page of the audit")
    delimiter = max(",;\t", key=text.splitlines()[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        if sorted(filter(None, header)) != sorted(COLUMNS):
            raise ConfigError(
                f"{file} has the columns {', '.join(header)!r:.200}, decisions have {', '.join(COLUMNS)}; "
                "give the file that the page of the audit downloaded"
            )
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{file}, line {reader.line_num} has {len(row)} of {len(header)} columns; "
                    "download it again"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{file}, line {reader.line_num} is no CSV ({error}); download it again") from error


def _text(file: Path) -> str:
    try:
        return read_bytes(file, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read {file} ({error.strerror}); give the decisions.csv that the page downloaded"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{file} is no text in UTF-8; save it as CSV in UTF-8, or download it again"
        ) from error
