"""Config files and flags: precedence, round trip, and one clear line for every mistake."""

import functools
import math
import re
from typing import get_args, get_type_hints

import pytest

from rmd_dist.config import DistillConfig, EvaluateConfig, PretrainConfig
from rmd_dist.config.checks import validate
from rmd_dist.config.cli import parse
from rmd_dist.config.convert import flatten, save_yaml
from rmd_dist.config.fields import facts_of
from rmd_dist.config.presets import FOLDER, find, names
from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import RunFolder

CONFIGS = (PretrainConfig, DistillConfig, EvaluateConfig)


def kind_of(cls, key):
    """The type of a dotted key."""
    for part in key.split("."):
        cls = get_type_hints(cls)[part]
    return cls


def another(cls, key):
    """A value of a key other than its default, of its type and within its range."""
    facts, default, kind = facts_of(cls)[key], flatten(cls())[key], kind_of(cls, key)
    kinds = {kind, *get_args(kind)}
    if bool in kinds:
        return not default
    if isinstance(default, dict):
        return {"q": 0.5}
    if key == "student_init":
        return "teacher"
    if key == "noise.protocol":
        return "file"  # the one that goes with labels of a file
    if isinstance(default, list):
        return ["optim", "data"] if str in kinds else [0.25, 0.5]
    if kinds & {int, float}:
        more = max(facts.low, 1) if default is None else 2 * default or 1
        return more if more <= facts.high else facts.low if default == facts.high else facts.high
    return next(
        (choice for choice in get_args(kind) if isinstance(choice, str) and choice != default), "other"
    )


def put(config, key, value):
    """`config` with one key set, unchecked."""
    *groups, name = key.split(".")
    setattr(functools.reduce(getattr, groups, config), name, value)
    return config


def test_defaults_are_the_papers_recipe():
    rm, rgrl = parse(PretrainConfig, []), parse(DistillConfig, [])
    assert (rm.optim.epochs, rm.optim.lr, rm.data.batch_size, rm.optim.schedule) == (1000, 0.03, 64, "cosine")
    assert (rgrl.optim.epochs, rgrl.optim.lr, rgrl.optim.schedule) == (240, 0.001, "multistep")
    assert (rgrl.graph.node_weight, rgrl.graph.edge_weight) == (0.8, 0.35)
    assert parse(DistillConfig, ["--dataset", "cifar100"]).optim.lr == 0.01
    for config in (rm, rgrl):
        assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 5e-4)


def test_command_line_wins_over_files_and_later_files_over_earlier(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("K: 0.5\nloss: gce\noptim: {lr: 0.5, epochs: 7}\n")
    second.write_text("optim: {lr: 0.25}\n")
    words = ["--config", str(first), "--config", str(second), "--K", "0.125", "--loss_options.q", "0.3"]
    config = parse(DistillConfig, words)
    assert (config.K, config.loss, config.optim.lr, config.optim.epochs) == (0.125, "gce", 0.25, 7)
    assert config.loss_options == {"q": 0.3}


def test_dashes_and_short_names_reach_their_keys():
    words = ["--max-steps=3", "--noise-rate", "0.2", "--student-init", "teacher", "--log-every", "7"]
    config = parse(DistillConfig, words)
    assert config.run.log_every == 7
    assert (config.run.max_steps, config.noise.rate, config.student_init) == (3, 0.2, "teacher")


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_name_reaches_its_key(cls):
    """The full one; the last part, where no other key ends in it; the short one that stands in the field."""
    facts = facts_of(cls)
    last = [key.split(".")[-1] for key in facts]
    short = {key.split(".")[-1]: key for key in facts if last.count(key.split(".")[-1]) == 1}
    short |= {fact.short: key for key, fact in facts.items() if fact.short}
    for flags in (
        {key: key for key in facts},
        {name: key for name, key in short.items() if name not in facts},
    ):
        words = ["--objective", "simclr"] if cls is PretrainConfig else []  # whose settings need it
        for name, key in flags.items():
            value = another(cls, key)
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
        config = parse(cls, words)
        for key in flags.values():
            found = functools.reduce(getattr, key.split("."), config)
            assert (list(found) if isinstance(found, tuple) else found) == another(cls, key), key


@pytest.mark.parametrize("cls", CONFIGS)
def test_the_ends_of_every_range_are_allowed_and_nothing_beyond(cls):
    for key, facts in facts_of(cls).items():
        for end, beyond in ((facts.low, -math.inf), (facts.high, math.inf)):
            if math.isinf(end):
                continue
            whole = float not in {kind_of(cls, key), *get_args(kind_of(cls, key))}
            try:
                validate(put(cls(), key, end))
            except ConfigError as error:  # of the values of two keys together
                assert "out of range" not in str(error), key
            outside = end + int(math.copysign(1, beyond)) if whole else math.nextafter(end, beyond)
            with pytest.raises(ConfigError, match=f"^{re.escape(key)} = .* is out of range; allowed: "):
                validate(put(cls(), key, outside))


@pytest.mark.parametrize("cls", [PretrainConfig, DistillConfig])
def test_a_run_continues_with_other_values_of_free_keys_and_of_no_other(cls, tmp_path):
    def config():
        return put(put(cls(), "run.root", str(tmp_path)), "run.name", "x")

    first = RunFolder(config())
    first.open()
    first.begin(0)
    first.close()
    for key, facts in facts_of(cls).items():
        if key in ("run.root", "run.name"):
            continue  # another folder is another run
        folder = RunFolder(put(config(), key, another(cls, key)))
        try:
            folder.open()
        except ConfigError as error:
            assert not facts.free and f"{key}" in str(error), (key, error)
        else:
            assert facts.free or facts.path, key  # a file counts by its content, wherever it lies
        finally:
            folder.close()


@pytest.mark.parametrize("cls", [PretrainConfig, DistillConfig])
def test_saved_config_reads_back_the_same(cls, tmp_path):
    config = parse(cls, ["--lr", "0.123", "--optim.milestones", "[0.3, 0.6]", "--seed", "5"])
    save_yaml(config, tmp_path / "c.yaml")
    assert parse(cls, ["--config", str(tmp_path / "c.yaml")]) == config


def test_flatten_gives_dotted_keys():
    flat = flatten(parse(DistillConfig, ["--loss_options.q", "0.5"]))
    assert flat["optim.lr"] == 0.001 and flat["loss_options.q"] == 0.5 and flat["K"] == 1.0


MISTAKES = [
    (["--lr", "fast"], ["optim.lr", "fast", "float"]),
    (["--lr", "-1"], ["optim.lr", "-1", "0 to inf"]),
    (["--lr", "nan"], ["optim.lr", "nan"]),
    (["--student-init", "techer"], ["student_init", "techer", "random, teacher"]),
    (["--optim.learning_rate", "1"], ["optim.learning_rate", "did you mean"]),
    (["--bogus", "1"], ["bogus", "--help"]),
    (["--noise-rate", "1.5"], ["noise.rate", "1.5", "0 to 1"]),
    (["--batch-size", "10", "--accumulation", "3"], ["batch_size", "accumulation", "multiple"]),
    (["--optim.milestones", "[0.9, 0.5]"], ["milestones", "rising"]),
    (["--augment.crop_scale", "[0, 1]"], ["augment.crop_scale", "rise within (0, 1]"]),
    (["--config", "/nowhere/x.yaml"], ["/nowhere/x.yaml"]),
    (["--targets", "relations"], ["targets.average", "--ema-decay"]),
    (["--head-init", "relations"], ["head_init", "--student-init teacher"]),
    (["--unlabelled", "true"], ["targets.average, ramp and unlabelled", "--targets relations"]),
    (["--average", "0.9"], ["targets.average, ramp and unlabelled", "--targets relations"]),
    (["--student-init", "timm:resnet18.a1_in1k"], ["student_init = timm:resnet18.a1_in1k is no path"]),
    (["--augment.count", "2"], ["augment.count = 2", "leave it out"]),
    (["--nesterov", "true", "--momentum", "0"], ["optim.nesterov", "optim.momentum = 0"]),
    (["--K"], ["--K needs a value"]),
    (["--lr", "--K", "1"], ["--lr needs a value"]),
    (["stray"], ["unknown option 'stray'"]),
    (["--optim", "other.yaml"], ["optim = 'other.yaml' must be a group of keys"]),
    (["--config", "digits/distil"], ["neither a file nor a preset", "did you mean digits/distill"]),
]


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=lambda v: " ".join(v)[:30])
def test_a_mistake_is_one_line_with_the_remedy(words, named):
    with pytest.raises(ConfigError) as caught:
        parse(DistillConfig, words)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(("key", "value"), [("crop_scale", "[0.5, 1.5]"), ("blur_sigma", "[2.0, 0.1]")])
def test_ranges_of_views_rise(key, value):
    with pytest.raises(ConfigError, match=rf"^views\.{key} = .* must rise within"):
        parse(PretrainConfig, [f"--views.{key}", value])
    assert parse(PretrainConfig, [f"--views.{key}", "[0.5, 0.7]"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optim: {speed: 3}\n", "optim.speed"),
        ("optim: [\n", "bad.yaml cannot be read as a configuration: while parsing"),
        ("optim: 3\n", "bad.yaml: optim = 3 must be a group of keys"),
        ("augment: other.yaml\n", "bad.yaml: augment = 'other.yaml' must be a group of keys"),
        ("student_init: techer\n", "random, teacher"),
        ("K: null\n", "K = null is not valid; allowed: float"),
        ("frobnicate: 1\n", "bad.yaml: unknown option 'frobnicate'"),
        ("- 1\n", "is not a configuration"),
    ],
)
def test_a_bad_file_is_one_line(text, named, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(DistillConfig, ["--config", str(path)])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_switch_alone_is_on():
    assert parse(DistillConfig, ["--cpu"]).run.cpu
    config = parse(DistillConfig, ["--compile", "--lr", "0.5", "--channels-last", "false"])
    assert config.model.compile and config.optim.lr == 0.5 and not config.model.channels_last


def test_lists_are_written_with_commas_and_mappings_key_by_key():
    words = ["--milestones", "0.5,0.75", "--resume-allow=K", "--resume-allow", "optim.lr,data"]
    config = parse(DistillConfig, [*words, "--loss_options.q", "0.5", "--loss_options.k", "1e-1"])
    assert config.optim.milestones == (0.5, 0.75)
    assert config.run.resume_allow == ("K", "optim.lr", "data")
    assert config.loss_options == {"q": 0.5, "k": 0.1}
    config = parse(DistillConfig, ["--optim", "{lr: 0.5, epochs: 2}", "--milestones", "[0.5]"])
    assert (config.optim.lr, config.optim.epochs, config.optim.milestones) == (0.5, 2, (0.5,))


def test_flags_win_wherever_they_stand(tmp_path):
    (tmp_path / "a.yaml").write_text("K: 0.5\nloss_options: {q: 0.1, k: 2}\n")
    words = ["--K", "2", "--loss_options.q", "0.3", f"--config={tmp_path / 'a.yaml'}"]
    config = parse(DistillConfig, words)
    assert (config.K, config.loss_options) == (2.0, {"q": 0.3, "k": 2.0})


def test_the_whole_configuration_can_be_printed(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(DistillConfig, ["--K", "0.125", "--print-config"])
    assert not ended.value.code
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    expected = parse(DistillConfig, ["--K", "0.125"])
    assert parse(DistillConfig, ["--config", str(tmp_path / "c.yaml")]) == expected


def test_presets_are_found_by_name_after_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = parse(DistillConfig, ["--config", "digits/distill"])
    assert by_name == parse(DistillConfig, ["--config", "digits/distill.yaml"])
    assert by_name.data.dataset == "digits" and by_name.optim.epochs == 40
    (tmp_path / "digits/distill").mkdir(parents=True)  # a folder, as of results, hides no preset
    assert find("digits/distill") == FOLDER / "digits/distill.yaml"
    (tmp_path / "digits/distill.yaml").write_text("K: 3\n")
    assert parse(DistillConfig, ["--config", "digits/distill.yaml"]).K == 3.0


def test_every_preset_has_a_name():
    known = names()
    assert {"digits/study", "paper/reduced/table1", "accelerate/cpu2"} <= set(known)
    assert all(find(name).is_file() for name in known)


@pytest.mark.parametrize(
    "argv", [["runs/x", "--cpu"], ["--dataset", "digits", "runs/x"], ["--checkpoint", "runs/x"]]
)
def test_the_checkpoint_may_stand_first_or_last(argv):
    assert parse(EvaluateConfig, argv, positional="checkpoint").checkpoint == "runs/x"


def test_paths_of_files_and_flags_are_written_out(tmp_path, monkeypatch):
    """Wherever a configuration has one; `random` and `auto` are none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BIG", "/big")
    (tmp_path / "c.yaml").write_text("run: {root: ~/runs}\ndata: {source: '${BIG}/cifar.tar.gz'}\n")
    config = parse(DistillConfig, ["--config", "~/c.yaml", "--data_root=$BIG/data", "--teacher", "random"])
    assert (config.run.root, config.data.source) == (str(tmp_path / "runs"), "/big/cifar.tar.gz")
    assert (config.data.root, config.teacher, config.run.resume) == ("/big/data", "random", "auto")
    config = parse(EvaluateConfig, ["$BIG/runs/a", "--out=~/e.json"], positional="checkpoint")
    assert (config.checkpoint, config.out) == ("/big/runs/a", str(tmp_path / "e.json"))
    with pytest.raises(ConfigError, match=r"\$NOWHERE is not known"):
        parse(PretrainConfig, ["--runs", "$NOWHERE/runs"])


def test_every_key_that_is_a_path_is_marked():
    """By its name or its help: a new one must not be forgotten."""
    for cls in (PretrainConfig, DistillConfig, EvaluateConfig):
        paths = {key for key, facts in facts_of(cls).items() if facts.path}
        named = {key for key in facts_of(cls) if key.split(".")[-1] in PATHS}
        named |= {key for key in facts_of(cls) if key in ("data.dataset", "dataset")}  # a name, or a path
        assert paths == named


PATHS = (
    "root",
    "labels",
    "source",
    "teacher_weights",
    "resume",
    "teacher",
    "checkpoint",
    "out",
    "student_init",
)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run: {precision: no}", "run.precision", "no"),
        ("run: {name: 007}", "run.name", "007"),
        ("run: {name: 7}", "run.name", "7"),
        ("run: {name: off}", "run.name", "off"),
        ("run: {name: 12:30}", "run.name", "12:30"),
        ("run: {name: 2026-01-02}", "run.name", "2026-01-02"),
        ("run: {name: 0x1f_}", "run.name", "0x1f_"),
        ("run: {name: '1e3'}", "run.name", "1e3"),
        ("model: {compile: yes}", "model.compile", True),
        ("model: {compile: Off}", "model.compile", False),
        ("optim: {lr: 1e-3}", "optim.lr", 0.001),
        ("optim: {lr: .5}", "optim.lr", 0.5),
        ("optim: {lr: 1}", "optim.lr", 1.0),
        ("run: {name: ~}", "run.name", None),
        ("run: {name: }", "run.name", None),
        ("", "run.name", None),
        ("# nothing yet\n", "run.name", None),
    ],
)
def test_words_of_a_file_mean_what_they_say(text, key, value, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    config = parse(PretrainConfig, ["--config", str(tmp_path / "c.yaml")])
    assert flatten(config)[key] == value


@pytest.mark.parametrize("text", ["[]", "0", "false", "''", "text"])
def test_what_has_no_keys_is_no_configuration(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is not a configuration: give keys"):
        parse(PretrainConfig, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("value", ["1e3", "true", "1.50"])
def test_a_number_where_text_is_meant_is_told_to_be_quoted(value, tmp_path):
    """1.50 would become the text 1.5."""
    (tmp_path / "c.yaml").write_text(f"run: {{name: {value}}}")
    with pytest.raises(ConfigError, match=r"c\.yaml: run\.name = .* write it in quotes, as name: '\.\.\.'"):
        parse(PretrainConfig, ["--config", str(tmp_path / "c.yaml")])


def test_flags_are_taken_as_they_are():
    config = parse(PretrainConfig, "--precision no --name 1e3 --compile off --seed 7".split())
    assert (config.run.precision, config.run.name, config.model.compile) == ("no", "1e3", False)


def test_labels_of_a_file_are_named_one_way(tmp_path):
    file = str(tmp_path / "l.csv")
    for words in (["--labels", file], ["--noise", f"file:{file}"], ["--labels", file, "--noise", "file"]):
        noise = parse(DistillConfig, words).noise
        assert (noise.protocol, noise.labels) == ("file", file)
    with pytest.raises(ConfigError, match="give one of them"):
        parse(DistillConfig, ["--labels", file, "--noise", "pairflip"])
    with pytest.raises(ConfigError, match="needs a file; give --labels FILE"):
        parse(DistillConfig, ["--noise", "file"])


def test_own_images_are_not_made_noisy_and_models_fit_their_size(tmp_path):
    photos = str(tmp_path)
    for words, model in (
        ([], "resnet18_cifar"),
        (["--image-size", "96"], "resnet18"),
        (["--dataset", photos], "resnet18"),
        (["--dataset", photos, "--image-size", "48"], "resnet18_cifar"),
        (["--dataset", photos, "--model", "vgg11"], "vgg11"),
    ):
        config = parse(DistillConfig, words)
        assert config.model.name == model, words
        assert config.noise.protocol == ("none" if photos in words else "symmetric"), words


def test_settings_of_another_objective_are_refused():
    with pytest.raises(ConfigError, match="are of another objective; give --objective simclr"):
        parse(PretrainConfig, ["--temperature", "0.5"])
    found = parse(PretrainConfig, ["--objective", "simclr", "--temperature", "0.5", "--dim", "64"])
    assert (found.simclr.temperature, found.simsiam.dim) == (0.5, 64)
