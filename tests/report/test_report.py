"""Reports of made-up studies: their numbers, what is unfinished, and the page."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rmd_dist.commands.report import main
from rmd_dist.errors import ConfigError
from rmd_dist.report.build import Report, Section, make_report
from rmd_dist.report.pictures import Picture, new_figure
from rmd_dist.report.plots import K_positions
from rmd_dist.report.render import to_html, to_markdown
from rmd_dist.report.results import Results
from rmd_dist.report.tables import Grid, TableCell, accuracy_grid, gain_grid, gap_grid
from rmd_dist.report.write import write_report
from rmd_dist.study.cells import CLEAN, Entry, plan
from rmd_dist.study.folder import Study, read_specs, read_study, write_specs
from rmd_dist.study.spec import Embedding
from tests.study.synthetic import make_study, name_of, small_spec

FAILED, WAITING = "digits-gce-symmetric0.4-K1-seed1", "digits-ce-symmetric0.4-K0-seed2"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def accuracy(entry: Entry) -> float:
    """Clean 0.90; CE 0.70, GCE 0.75, with RMDNet 0.06 and 0.03 more; seeds 0.01 apart; 0.1 less at rate 0.4.

    The gain itself grows by 0.01 with the seed.
    """
    if entry.method == CLEAN:
        return 0.90 + 0.01 * entry.seed
    gain = {"ce": 0.06, "gce": 0.03}[entry.loss] + 0.01 * entry.seed if entry.method else 0.0
    base = 0.70 if entry.loss == "ce" else 0.75
    return base + 0.01 * entry.seed - 0.1 * (entry.rate == 0.4) + gain


class Page(HTMLParser):
    """Checks that elements close in order; collects what refers to elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a failed and a waiting cell, and its report."""
    folder = tmp_path_factory.mktemp("studies") / "small"
    spec = small_spec(title="Losses <with> & without", embedding=Embedding(classes=("3", "8")))
    make_study(folder, [spec], accuracy, failed={FAILED}, waiting={WAITING}, curves=True)
    write_report(make_report(read_study(folder)), folder / "report")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    study = read_study(folder)
    return Results(study, study.tables[0])


def test_accuracies(results: Results) -> None:
    """Mean and sample deviation; seeds that are missing are counted, not passed over."""
    texts = {row[0].text: [cell.text for cell in row[2:]] for row in accuracy_grid(results).rows}
    assert texts == {
        "CE": ["71.00 ± 1.00 (3)", "60.50 ± 0.71 (2 of 3)"],
        "GCE": ["76.00 ± 1.00 (3)", "66.00 ± 1.00 (3)"],
        "CE+RMDNet": ["78.00 ± 2.00 (3)", "68.00 ± 2.00 (3)"],
        "GCE+RMDNet": ["80.00 ± 2.00 (3)", "70.00 ± 2.83 (2 of 3)"],
    }
    assert "CE on clean labels, digits: 91.00 ± 1.00 (3)." in accuracy_grid(results).notes


def test_gains(results: Results) -> None:
    """Paired by seed: 6, 7, 8 points, whose interval is 7 ± 4.3027 / sqrt 3."""
    grid = gain_grid(results)
    assert grid is not None
    texts = {row[0].text: [cell.text for cell in row[2:]] for row in grid.rows}
    assert texts["CE+RMDNet"] == ["+7.00 [+4.52, +9.48] (3)", "+6.50 [+0.15, +12.85] (2 of 3)"]
    assert texts["GCE+RMDNet"][0] == "+4.00 [+1.52, +6.48] (3)"
    assert grid.rows[0][2].significant and not grid.rows[1][3].significant


def test_shares_of_the_gap(results: Results) -> None:
    """CE loses 20 points to noise at 0.2 and regains 6, 7, 8 of them."""
    grid = gap_grid(results)
    assert grid is not None
    texts = {row[0].text: [cell.text for cell in row[2:]] for row in grid.rows}
    assert texts == {
        "GCE": ["25 ± 0 (3)", "17 ± 0 (2 of 3)"],
        "CE+RMDNet": ["35 ± 5 (3)", "22 ± 2 (2 of 3)"],
        "GCE+RMDNet": ["45 ± 5 (3)", "27 (1 of 3)"],
    }


def test_no_damage_no_share(tmp_path: Path) -> None:
    """Where CE is as good on noisy labels the share is called undefined."""
    spec = small_spec(losses=("ce",), noise={"symmetric": (0.2,)}, seeds=(0, 1))
    study = read_study(make_study(tmp_path / "s", [spec], lambda entry: 0.9 + 0.01 * entry.K))
    grid = gap_grid(Results(study, study.tables[0]))
    assert grid is not None and [cell.text for cell in grid.rows[0][2:]] == ["undefined"]


def test_ce_of_another_table(tmp_path: Path) -> None:
    """A table without CE takes its runs from a table of the same conditions, and from no other."""
    few = {"noise": {"symmetric": (0.2,)}, "seeds": (0, 1)}
    own = small_spec(name="K", losses=("gce",), layout="K", **few)
    study = read_study(make_study(tmp_path / "a", [own, small_spec(losses=("ce",), **few)], accuracy))
    grid = gap_grid(Results(study, study.tables[0]))
    assert grid is not None and [c.text for c in grid.rows[0]] == ["GCE", "1", "42 ± 4 (2)"]
    other = small_spec(losses=("ce",), distill={"optim": {"epochs": 5, "lr": 0.05}}, **few)
    study = read_study(make_study(tmp_path / "b", [own, other], accuracy))
    assert gap_grid(Results(study, study.tables[0])) is None


def test_papers_numbers_beside_ours(tmp_path: Path) -> None:
    """Table 1, CIFAR-10, and the difference of the paper's two numbers beside our gain."""
    spec = small_spec(datasets=("cifar10",), losses=("ce",), table=1, seeds=(0,))
    study = read_study(make_study(tmp_path / "s", [spec], accuracy))
    results = Results(study, study.tables[0])
    gains = gain_grid(results)
    assert [cell.paper for cell in accuracy_grid(results).rows[0][2:]] == ["80.73", "62.12"]
    assert gains is not None and [cell.paper for cell in gains.rows[0][2:]] == ["+4.47", "+8.88"]


def test_unfinished_cells_are_named(folder: Path) -> None:
    """In Markdown and in the page, each with its state and why, escaped."""
    markdown = (folder / "report" / "report.md").read_text()
    page = (folder / "report" / "report.html").read_text()
    assert "26 of 28 cells have finished" in markdown and "26 of 28 cells have finished" in page
    assert re.search(
        rf"\| `{FAILED}-[0-9a-f]{{6}}` \| failed \| loss was \\<nan\\> & the run stopped \|", markdown
    )
    assert re.search(rf"\| `{WAITING}-[0-9a-f]{{6}}` \| waiting \|", markdown)
    assert FAILED in page and "loss was &lt;nan&gt; &amp; the run stopped" in page
    assert "2 of its 27 cells are unfinished (1 waiting, 1 failed)" in page


def test_page_stands_alone(folder: Path) -> None:
    """Well-formed, nothing from elsewhere, every anchor there and no id twice, no script."""
    text = (folder / "report" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    pictures = [r for r in page.references if not r.startswith("#")]
    assert pictures and all(r.startswith("data:image/svg+xml;base64,") for r in pictures)
    assert not re.search(r"@import|url\(", text)
    assert len(page.ids) == len(set(page.ids))
    targets = [r[1:] for r in page.references if r.startswith("#")]
    assert targets and set(targets) <= set(page.ids)
    assert "Losses &lt;with&gt; &amp; without" in text


@pytest.fixture
def hostile() -> Report:
    """A report whose every text, each with its own number, would run a script if it were not escaped."""
    texts = (f"<script>alert({n})</script>&\"'" for n in range(99))
    cell = TableCell(next(texts), next(texts), next(texts), next(texts), partial=True, significant=True)
    stub = TableCell(next(texts))
    grids = [
        Grid(next(texts), [next(texts), next(texts)], [[stub, cell]], 1, [next(texts)], long=long)
        for long in (False, True)
    ]
    picture = Picture("name", next(texts), next(texts), new_figure(1, 1))
    section = Section("name", next(texts), [next(texts)], grids, [picture], verdict=[next(texts)])
    unfinished = [(next(texts), next(texts), next(texts))]
    return Report(next(texts), next(texts), [next(texts)], [section], unfinished, [])


def test_hostile_text_is_shown_not_run(hostile: Report) -> None:
    """Each of the texts stands in the page as it is, and none has become a tag."""
    page = Page()
    page.feed(to_html(hostile))
    shown = re.findall(r"<script>alert\((\d+)\)</script>&\"'", " ".join(page.texts))
    assert {int(number) for number in shown} == set(range(24))
    assert "script" not in page.tags and page.open == []
    assert "<script" not in to_html(hostile)


def test_markdown_escapes_what_is_no_code(hostile: Report) -> None:
    """HTML in Markdown would run too; in code it is text."""
    text = re.sub(r"```.*?```|`[^`]*`", "", to_markdown(hostile), flags=re.DOTALL)
    assert "\\<script\\>alert(0)\\</script\\>" in text
    assert not re.search(r"(?<!\\)<", text)


def test_markdown_has_its_pictures(folder: Path) -> None:
    """Headings from ## on; pictures lie beside it; what cannot be drawn is said in a line."""
    text = (folder / "report" / "report.md").read_text()
    assert re.findall(r"^#+", text, re.M)[0] == "##" and not re.search(r"^# ", text, re.M)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures == ["table1-digits-training.png", "table1-digits-memorisation.png"]
    assert all((folder / "report" / name).stat().st_size > 10_000 for name in pictures)
    assert "t-SNE of digits could not be drawn: " in text


def test_csv(folder: Path) -> None:
    """A row of each run, unfinished ones without figures."""
    with (folder / "report" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 2 * 2 * 2 * 3
    by_cell = {name_of(row["cell"]): row for row in rows}
    assert (by_cell[FAILED]["state"], by_cell[FAILED]["last"]) == ("failed", "")
    done = by_cell["digits-ce-symmetric0.2-K1-seed1"]
    wanted = {"method": "CE+RMDNet", "K": "1", "last": "78", "best_on_test": "80", "gap_share": "0.35"}
    assert {key: done[key] for key in wanted} == wanted
    assert (done["steps"], done["seconds"]) == (str(960 // 64 * 4), "90")


def test_embedding(tmp_path: Path) -> None:
    """Of runs with weights a picture is drawn, of samples that were given one of the two labels."""
    small = {"model": {"name": "resnet18_cifar_w16_s2"}, "data": {"loader": "memory"}}
    spec = small_spec(
        losses=("ce",),
        seeds=(0,),
        noise={"symmetric": (0.2,)},
        pretrain=small,
        distill=small,
        embedding=Embedding(classes=("3", "8"), samples=40, perplexity=8),
    )
    folder = make_study(tmp_path / "s", [spec], accuracy, models=True)
    section = make_report(read_study(folder)).sections[0]
    assert [picture.name for picture in section.pictures] == ["table1-digits-tsne"]
    assert "80 training images labelled 3 or 8" in section.pictures[0].caption
    assert section.pictures[0].data_url().startswith("data:image/png;base64,")


def test_positions_of_K() -> None:
    """0 stands left of the smallest K, the others by their logarithm."""
    at = K_positions([1.0, 0.0, 0.01])
    assert list(at) == [0.0, 0.01, 1.0] and at[0.01] == -2 and at[1.0] == 0 and at[0.0] < -2.3


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what it wrote and how much is unfinished, and what is no study."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "other.yaml").write_text("name: table1\n")
    (configs / "distill.yaml").write_text("noise: {protocol: symmetric}\n")  # of a run, not of a study
    main([str(folder), "--out", str(tmp_path), "--configs", str(configs)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [str(tmp_path / name) for name in ("report.md", "cells.csv", "report.html")]
    assert "26 of 28 cells" in printed[3]
    text = (tmp_path / "report.md").read_text()
    assert f"python launch/study.py {configs}/other.yaml --out studies/small" in text
    with pytest.raises(ConfigError, match="is not a study"):
        main([str(tmp_path)])


def test_first_method_stays_the_baseline(tmp_path: Path) -> None:
    """Gains are over the spec's first method, whatever the order of names."""
    spec = small_spec(methods={" plain": {"K": 0}, "+RMDNet": {"K": 1}, " again": {"K": 2}})
    write_specs(tmp_path, [spec])
    (table,) = plan(read_specs(tmp_path))[1]
    results = Results(Study(tmp_path, {}, [table], {}), table)
    found = [results.baseline(row) for row in results.rows]
    assert {row.label for row in found if row is not None} == {"CE plain", "GCE plain"}


def test_a_folder_that_cannot_be_written_is_told_in_one_line(folder: Path) -> None:
    """Here because its parent is a file."""
    report = make_report(read_study(folder))
    with pytest.raises(
        ConfigError, match=r"cannot write to .*cells.csv/x \(Not a directory\); give another --out"
    ):
        write_report(report, folder / "report/cells.csv/x")
