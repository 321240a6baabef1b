"""decisions.csv is read as it was written, as a spreadsheet program saved it, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmd_dist.audit import decisions
from rmd_dist.audit.decisions import Decision, read_decisions
from rmd_dist.errors import ConfigError
from tests.fuzz.mutate import bit, copy, cut, insert, longer, remove

FUZZ = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CLASSES = ("cat", 'a "dog", big', "two\nlines", "bad\udcff")
TEXT = (
    "audit,index,path,decision,label\r\n"
    "0f3a,7,a.png,keep,cat\r\n"
    '0f3a,0,"b, c.png",relabel,"a ""dog"", big"\r\n'
    "0f3a,9,,drop,\r\n"
    '0f3a,3,d.png,unsure,"two\nlines"\r\n'
    "0f3a,4,e.png,relabel,bad\ufffd\r\n"
)
WANTED = [
    Decision(7, "keep", 0),
    Decision(0, "relabel", 1),
    Decision(9, "drop", -1),
    Decision(3, "unsure", 2),
    Decision(4, "relabel", 3),
]


def read(folder: Path, content: str | bytes, audit: str = "0f3a", count: int = 10) -> list[Decision]:
    file = folder / "decisions.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_decisions(file, audit, CLASSES, count)


def with_delimiter(delimiter: str) -> str:
    """TEXT as a spreadsheet program saves it: every value in quotes is legal everywhere."""
    return (
        TEXT.replace('"b, c.png"', "@")
        .replace('"a ""dog"", big"', "%")
        .replace(",", delimiter)
        .replace("@", '"b, c.png"')
        .replace("%", '"a ""dog"", big"')
    )


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT.replace("\r\n", "\n"),
        TEXT.replace("\r\n", "\n").replace("\n", "\r\n"),
        "\ufeff" + TEXT,
        with_delimiter(";"),
        "\ufeff" + with_delimiter("\t"),
        TEXT.replace("keep", "Keep ").replace("0f3a", "0F3A"),
        TEXT + "\r\n,,,,\r\n",
    ],
    ids=["page", "LF", "CRLF in names", "BOM", "semicolons", "tabs", "case", "blank lines"],
)
def test_what_a_spreadsheet_saves_is_read(tmp_path: Path, content: str) -> None:
    """All the same decisions."""
    assert read(tmp_path, content) == WANTED


def test_columns_may_be_moved(tmp_path: Path) -> None:
    """They go by their names."""
    assert read(tmp_path, "label,Index,audit,decision,path\ncat,2,0f3a,keep,\n") == [Decision(2, "keep", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"\xef\xbb\xbf\r\n", "is empty; download it again"),
        (TEXT.splitlines()[0], "holds no decision"),
        (TEXT.replace("index", "number"), "has the columns 'audit, number, path.*give the file"),
        (TEXT.replace("0f3a,9", "77aa,9"), "line 4 is of audit '77aa', this is '0f3a'"),
        (TEXT.replace("drop", "delete"), "line 4: 'delete' is no decision; write one of keep, relabel"),
        (TEXT.replace("keep,cat", "keep,cow"), "line 2: 'cow' is no class of the audit; it has 'cat'"),
        (TEXT.replace("a,9,", "a,10,"), "line 4: '10' is no image of the audit, which has 0 to 9"),
        (TEXT.replace("a,9,", "a,-1,"), "line 4: '-1' is no image"),
        (TEXT.replace("a,9,", "a,²,"), "line 4: '²' is no image"),
        (TEXT.replace("a,9,", "a,7,"), "line 4 decides on image 7 as line 2 did; delete one"),
        (TEXT.replace(",drop,", ",drop"), "line 4 has 4 of 5 columns"),
        (TEXT[:-20] + '"open', "is no CSV"),
        (b"PK\x03\x04\xff\xfe", "is no text in UTF-8; save it as CSV"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, content: str | bytes, message: str) -> None:
    """In one line, with the remedy."""
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, content)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a folder, larger than any list of decisions."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read .*give the decisions\.csv"):
            read_decisions(path, "0f3a", CLASSES, 10)
    monkeypatch.setattr(decisions, "MAX_BYTES", 50)
    with pytest.raises(ConfigError, match="at most 50 are sensible"):
        read(tmp_path, TEXT)


@FUZZ
@given(
    st.integers(0, 1 << 30),
    st.lists(st.sampled_from([bit, copy, cut, insert, longer, remove]), min_size=1, max_size=3),
)
def test_no_input_does_more_than_raise_config_error(tmp_path: Path, seed: int, ways: list) -> None:  # type: ignore[type-arg]
    """A spoilt file gives an error of one line, or decisions that can be."""
    content = TEXT.encode()
    for way in ways:
        content = way(content, random.Random(seed))
    try:
        found = read(tmp_path, content)
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert len({decision.index for decision in found}) == len(found) > 0
    for decision in found:
        assert 0 <= decision.index < 10
        assert (decision.label == -1) == (decision.kind == "drop")
        assert decision.label < len(CLASSES)


@FUZZ
@given(st.text(alphabet=st.sampled_from('0f3a,;\t\r\n"\0 \ufeffindexkeeplabeldropauditpath'), max_size=80))
def test_no_text_does_more_than_raise_config_error(tmp_path: Path, text: str) -> None:
    """Behind a header that is right."""
    try:
        read(tmp_path, "audit,index,path,decision,label\n" + text)
    except ConfigError as error:
        assert str(error).isprintable()
