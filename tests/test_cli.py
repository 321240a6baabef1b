"""Config files and flags: precedence, round trip, and one clear line for every mistake."""

import pytest

from rmd_dist.cli import flatten, full_keys, parse, save_yaml
from rmd_dist.config import SHORT_NAMES, ConfigError, DistillConfig, EvaluateConfig, PretrainConfig
from rmd_dist.config_check import RANGES


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


def test_every_short_name_is_a_key():
    known = {*full_keys(PretrainConfig), *full_keys(DistillConfig)}
    assert set(SHORT_NAMES.values()) <= known


def test_every_range_is_of_a_key():
    known = {*full_keys(PretrainConfig), *full_keys(DistillConfig), *full_keys(EvaluateConfig)}
    assert set(RANGES) <= known


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
    (["--dataset", "imagenet"], ["data.dataset", "imagenet", "cifar10, cifar100, digits"]),
    (["--optim.learning_rate", "1"], ["optim.learning_rate", "did you mean"]),
    (["--bogus", "1"], ["bogus", "--help"]),
    (["--noise-rate", "1.5"], ["noise.rate", "1.5", "0 to 1"]),
    (["--batch-size", "10", "--accumulation", "3"], ["batch_size", "accumulation", "multiple"]),
    (["--optim.milestones", "[0.9, 0.5]"], ["milestones", "rising"]),
    (["--config", "/nowhere/x.yaml"], ["/nowhere/x.yaml"]),
    (["--student-init", "teacher", "--K", "0"], ["student_init", "--teacher"]),
    (["--K"], ["--K"]),
]


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=lambda v: " ".join(v)[:30])
def test_a_mistake_is_one_line_with_the_remedy(words, named):
    with pytest.raises(ConfigError) as caught:
        parse(DistillConfig, words)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optim: {speed: 3}\n", "optim.speed"),
        ("optim: [\n", "pars"),
        ("optim: 3\n", "optim"),
        ("data: {dataset: mnist}\n", "cifar10, cifar100, digits"),
        ("frobnicate: 1\n", "frobnicate"),
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


@pytest.mark.parametrize(
    "argv", [["runs/x", "--cpu"], ["--dataset", "digits", "runs/x"], ["--checkpoint", "runs/x"]]
)
def test_the_checkpoint_may_stand_first_or_last(argv):
    assert parse(EvaluateConfig, argv, positional="checkpoint").checkpoint == "runs/x"
