"""Studies' YAML files: what they build on, what is refused, and the cells that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd_dist.config import ConfigError, DistillConfig
from rmd_dist.study.cells import CLEAN, choose, plan
from rmd_dist.study.spec import load_spec
from tests.study.small import SPEC, spec

ROOT = Path(__file__).parents[2]
PRESETS = sorted([*ROOT.glob("configs/paper/**/*.yaml"), *ROOT.glob("configs/tune/*.yaml")])


def test_a_file_holds_only_what_differs_from_those_it_extends(tmp_path):
    (tmp_path / "base.yaml").write_text(SPEC)
    (tmp_path / "more.yaml").write_text(
        "distill: {optim: {epochs: 9}}\nteachers: {digits: t/model.safetensors}\n"
    )
    child = spec(
        tmp_path, "extends: [base.yaml, more.yaml]\nlosses: [mae]\nnoise: {pairflip: [0.2]}\n", "child"
    )
    assert (child.name, child.losses, child.seeds) == ("child", ("mae",), (0, 1))
    assert child.noise == {"pairflip": (0.2,)}  # a choice is replaced, settings are merged
    assert child.distill["optim"] == {"epochs": 9, "lr": 0.1}
    assert child.teachers == {"digits": str(tmp_path / "t/model.safetensors")}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("lossess: [ce]", "unknown option 'lossess'; did you mean losses"),
        ("losses: [cee]", "'cee' is not known; use some of ce, gce"),
        ("losses: []", "losses is empty"),
        ("noise: {symetric: [0.1]}", "'symetric' is not known"),
        ("noise: {symmetric: []}", "a protocol without a rate"),
        ("datasets: [mnist]", "mnist"),
        (
            "distill: {optim: {epoch: 3}}",
            "small: ce, none: unknown option 'optim.epoch'; did you mean optim.epochs",
        ),
        ("distill: {optim: {epochs: 0}}", "optim.epochs = 0 is out of range"),
        ('methods: {"": {K: {gce: 1}}}', "K has none of digits, ce, symmetric, symmetric0.4 and no default"),
        ("seeds: [a]", "seeds"),
        ("extends: small.yaml", "goes round in a circle"),
        ("extends: absent.yaml", "cannot be read as a study"),
        ("per_dataset: {digits: {distil: {}}}", "per_dataset.digits.distil is not known"),
        ("tune: {low: 2, high: 1}", "0 < low < high"),
        ("name: ../x", "must be of letters"),
        ("- a list", "is not a study"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, change, told):
    text = change if change.startswith("-") else f"{SPEC}\n{change}\n"
    key = change.split(":")[0]
    kept = "\n".join(line for line in SPEC.splitlines() if not line.startswith(f"{key}:"))
    text = text if change.startswith("-") else f"{kept}\n{change}\n"
    if key == "methods":
        text = "\n".join(line for line in text.splitlines() if not line.startswith('  "'))
    with pytest.raises(ConfigError) as error:
        plan([spec(tmp_path, text)])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_the_grid_has_each_run_once_and_one_pretraining(tmp_path):
    cells, (table,) = plan([spec(tmp_path)])
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys)) == 1 + 2 + 8  # teacher, clean CE, 2 losses x 2 methods x 2 seeds
    assert keys[0] == "digits-simsiam-seed0"
    by_key = {cell.key: cell for cell in cells}
    taught = [e for e in table.entries if e.method == "+RMDNet"]
    assert {(e.loss, e.K) for e in taught} == {("ce", 1.0), ("gce", 0.5)}
    assert all(by_key[e.key].needs == keys[0] for e in taught)
    assert all(by_key[e.key].needs is None for e in table.entries if e.method in ("", CLEAN))
    config = by_key["digits-gce-symmetric0.4-K0.5-seed1"].config
    assert isinstance(config, DistillConfig)
    assert (config.loss, config.run.seed, config.noise.seed, config.noise.rate) == ("gce", 1, 1, 0.4)
    assert by_key[keys[0]].steps == 1437 // 64 * 2


def test_tables_share_cells_that_are_the_same_run(tmp_path):
    other = spec(tmp_path, SPEC.replace("[ce, gce]", "[ce]"), "other")
    changed = spec(tmp_path, SPEC.replace("epochs: 3", "epochs: 4"), "changed")
    alone, _ = plan([spec(tmp_path)])
    both, tables = plan([spec(tmp_path), other])
    assert both == alone
    assert {e.key for e in tables[1].entries} < {e.key for e in tables[0].entries}
    apart, _ = plan([spec(tmp_path), changed])
    assert len(apart) == 1 + 2 * 10  # only the teacher is shared
    with pytest.raises(ConfigError, match="two tables are called small"):
        plan([spec(tmp_path), spec(tmp_path)])


def test_an_untrained_teacher_needs_no_pretraining(tmp_path):
    text = SPEC.replace('"+RMDNet": {K: {ce: 1, default: 0.5}}', '"+RGRL": {K: 1, teacher: random}')
    cells, _ = plan([spec(tmp_path, text)])
    assert {cell.stage for cell in cells} == {"distill"}
    assert "digits-ce-symmetric0.4-K1-random-teacher-seed0" in [cell.key for cell in cells]


def test_K_is_looked_up_from_the_outside_in():
    table = {"cifar10": {"symmetric0.2": 1, "default": 0.1}, "default": 0.01}
    assert choose(table, ("cifar10", "ce", "symmetric", "symmetric0.2"), "") == 1
    assert choose(table, ("cifar10", "ce", "pairflip", "pairflip0.2"), "") == 0.1
    assert choose(table, ("cifar100", "ce", "pairflip", "pairflip0.2"), "") == 0.01


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_presets_plan(path):
    if path.name == "settings.yaml":
        pytest.skip("what others extend")
    cells, (table,) = plan([load_spec(path)])
    assert table.entries
    assert len({cell.key for cell in cells}) == len(cells)


def test_the_full_table_has_every_place_of_the_paper():
    _, (table,) = plan([load_spec(ROOT / "configs/paper/table1.yaml")])
    places = {(e.dataset, e.label, e.noise, e.rate) for e in table.entries if e.method != CLEAN}
    assert len(places) == 2 * 10 * 9
