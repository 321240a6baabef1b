"""Studies' YAML files: what they build on, what is refused, and the cells that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.convert import flatten
from rmd_dist.config.fields import facts_of
from rmd_dist.errors import ConfigError
from rmd_dist.study.cells import CLEAN, choose, plan
from rmd_dist.study.outlook import kind_of
from rmd_dist.study.spec import load_spec
from tests.study.small import SPEC, named, spec

ROOT = Path(__file__).parents[2]
PRESETS = sorted(
    [
        *ROOT.glob("configs/paper/**/*.yaml"),
        *ROOT.glob("configs/tune/*.yaml"),
        *ROOT.glob("configs/robust/reduced/*.yaml"),
    ]
)


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
            "small.yaml: distill: unknown option 'optim.epoch'; did you mean optim.epochs",
        ),
        ("distill: {optim: {epochs: 0}}", "optim.epochs = 0 is out of range"),
        ('methods: {"": {K: {gce: 1}}}', "K has none of symmetric0.4, symmetric, ce, digits and no default"),
        ("seeds: [a]", "seeds"),
        ("extends: small.yaml", "goes round in a circle"),
        ("extends: absent.yaml", "cannot be read as a study"),
        ("per_dataset: {digits: {distil: {}}}", "per_dataset.digits.distil is not known"),
        ("tune: {low: 2, high: 1}", "0 < low < high"),
        ("tune: {select: validation/acc}", "validation/acc"),
        ("tune: {among: methods, coarse: 3}", "low, high, coarse, fine are of the grid of K; leave them out"),
        ("seeds: [0, 0]", "seeds has a value twice"),
        ("distill: {loss: ce}", "distill.loss is set by the study; use losses"),
        ("distill: {noise: {rate: 0.1}}", "distill.noise.rate is set by the study; use noise"),
        ("distill: {noise.rate: 0.1}", "distill.noise.rate is set by the study; use noise"),
        ("pretrain: {data: {dataset: cifar10}}", "pretrain.data.dataset is set by the study; use datasets"),
        ("distill: {augment: other.yaml}", "distill: augment = 'other.yaml' must be a group of keys"),
        ("distill: {augment: 3}", "distill: augment = 3 must be a group of keys"),
        ("pretrain: {views: 3}", "pretrain: views = 3 must be a group of keys"),
        ("distill: other.yaml", "distill = 'other.yaml' must be a group of keys"),
        ("distill: {optim: {lr: fast}}", "distill: optim.lr = 'fast' is not valid; allowed: float | null"),
        ("distill: {K: null}", "distill: K = null is not valid; allowed: float"),
        ("distill: {optim: 5}", "distill: optim = 5 must be a group of keys"),
        ("per_dataset: {digits: {distill: 5}}", "must be a group of keys"),
        ('methods: {"": {K: {cee: 1, default: 0}}}', "'cee' is no data set, loss, noise"),
        ("noise: {symmetric: [1.4]}", "small: ce, symmetric: noise.rate = 1.4 is out of range"),
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


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_what_a_study_sets_is_refused_in_its_sections(tmp_path, stage):
    cls = {"pretrain": PretrainConfig, "distill": DistillConfig}[stage]
    owned = {key: facts.study for key, facts in facts_of(cls).items() if facts.study}
    assert {"run.seed", "data.dataset"} <= set(owned)
    default = flatten(cls())
    for key, axis in owned.items():
        text = yaml.safe_dump({stage: {key: default[key]}})
        kept = "\n".join(line for line in SPEC.splitlines() if not line.startswith(f"{stage}:"))
        if (stage, key) == ("pretrain", "run.seed"):
            assert spec(tmp_path, f"{kept}\n{text}").pretrain == {key: 0}  # of the one teacher
            continue
        with pytest.raises(ConfigError, match=f"{stage}.{key} is set by the study; use {axis}$"):
            spec(tmp_path, f"{kept}\n{text}")


def test_the_grid_has_each_run_once_and_one_pretraining(tmp_path):
    cells, (table,) = plan([spec(tmp_path)])
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys)) == 1 + 2 + 8  # teacher, clean CE, 2 losses x 2 methods x 2 seeds
    assert keys[0].startswith("digits-simsiam-seed0-")
    objective = f"{SPEC}\n" + yaml.safe_dump({"pretrain": {"objective": "simclr"}})
    assert plan([spec(tmp_path, objective)])[0][0].key.startswith("digits-simclr-seed0-")
    by_key = {cell.key: cell for cell in cells}
    taught = [e for e in table.entries if e.method == "+RMDNet"]
    assert {(e.loss, e.K) for e in taught} == {("ce", 1.0), ("gce", 0.5)}
    assert all(by_key[e.key].needs == keys[0] for e in taught)
    assert all(by_key[e.key].needs is None for e in table.entries if e.method in ("", CLEAN))
    config = by_key[named(keys, "digits-gce-symmetric0.4-K0.5-seed1")].config
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


def test_an_encoder_file_takes_the_place_of_pretraining_wherever_it_lies(tmp_path):
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "t.safetensors").write_bytes(b"weights")
        found.append(plan([spec(folder, f"{SPEC}\nteachers: {{digits: t.safetensors}}\n")])[0])
    here, there = found
    assert {cell.stage for cell in here} == {"distill"}
    taught = [cell.config.teacher for cell in here if cell.config.K]
    assert taught == [str(tmp_path / "a/t.safetensors")] * 4
    assert [cell.digest for cell in here] == [cell.digest for cell in there]
    with pytest.raises(ConfigError, match=r"gone.safetensors cannot be read .*--fresh-teachers"):
        plan([spec(tmp_path, f"{SPEC}\nteachers: {{digits: gone.safetensors}}\n")])


def test_an_untrained_teacher_needs_no_pretraining(tmp_path):
    text = SPEC.replace('"+RMDNet": {K: {ce: 1, default: 0.5}}', '"+RGRL": {K: 1, teacher: random}')
    cells, _ = plan([spec(tmp_path, text)])
    assert {cell.stage for cell in cells} == {"distill"}
    assert named([cell.key for cell in cells], "digits-ce-symmetric0.4-K1-random-teacher-seed0")


def test_keys_say_the_same_in_any_order_of_tables(tmp_path):
    """Two tables whose runs differ in lr alone: of one name, but for the digest."""
    a = spec(tmp_path, SPEC, "a")
    z = spec(tmp_path, SPEC.replace("lr: 0.1", "lr: 0.2"), "z")
    one, other = plan([a, z]), plan([z, a])
    assert {c.key: c.digest for c in one[0]} == {c.key: c.digest for c in other[0]}
    assert one[1] == other[1][::-1]
    lrs = {c.key: c.config.optim.lr for c in one[0]}
    assert {lrs[e.key] for e in one[1][1].entries} == {0.2}


@pytest.mark.parametrize("key", ["run: {max_steps: 5}", "eval: {every_epochs: 3}", "data: {test_samples: 9}"])
def test_what_decides_a_table_s_figures_tells_cells_apart(tmp_path, key):
    plain, _ = plan([spec(tmp_path)])
    changed, _ = plan([spec(tmp_path, SPEC.replace("distill: {", f"distill: {{{key}, "))])
    assert {c.key for c in plain} & {c.key for c in changed} == {plain[0].key}


def test_the_most_specific_entry_for_K_counts():
    names = ("symmetric0.2", "symmetric", "ce", "cifar10")
    table = {"cifar10": {"symmetric0.2": 1, "symmetric": 2, "default": 0.1}, "default": 0.01}
    assert choose(table, names, "") == 1
    assert choose(table, ("pairflip0.2", "pairflip", "ce", "cifar10"), "") == 0.1
    assert choose(table, ("pairflip0.2", "pairflip", "ce", "cifar100"), "") == 0.01


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


def test_what_the_time_of_a_step_depends_on(tmp_path):
    """An objective has times of its own, and so has a student with a teacher."""
    kinds = {}
    for objective in ("simsiam", "simclr"):
        text = f"{SPEC}\n" + yaml.safe_dump({"pretrain": {"objective": objective}})
        kinds[objective] = {kind_of(cell) for cell in plan([spec(tmp_path, text)])[0]}
    (simsiam,), (simclr,) = kinds["simsiam"] - kinds["simclr"], kinds["simclr"] - kinds["simsiam"]
    assert (simsiam[0], simsiam[3], simclr[3]) == ("pretrain", "", "simclr")
    assert {kind[3] for kind in kinds["simsiam"] if kind[0] == "distill"} == {"", "teacher"}
