"""By which encoder a data set is audited: one that never saw its labels, and never a random one."""

from __future__ import annotations

from pathlib import Path

from rmd_dist.config import AuditConfig
from rmd_dist.config.checks import suitable_model
from rmd_dist.data.dataset import DatasetInfo
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.runs.folder import newest_finished
from rmd_dist.tasks.teacher import FrozenEncoder, named_source, open_source


def open_encoder(config: AuditConfig, info: DatasetInfo) -> FrozenEncoder:
    """The encoder that `config` names, else of the data set's newest pretraining; in eval mode.

    Raises ConfigError if there is none, it was trained on labels, or it cannot have such images.
    """
    source = named_source(_chosen(config, info), config.weights)
    # What is taken for files that do not say what they are.
    likely, input = suitable_model(info.image_size), Preprocess.for_dataset(info).to_cfg()
    encoder = open_source(source, info, likely, input, image_size=config.image_size)
    encoder.module.eval().requires_grad_(False)
    return encoder


def _chosen(config: AuditConfig, info: DatasetInfo) -> str:
    if config.teacher == "random":
        raise ConfigError(
            "teacher = random: features of an untrained encoder say little about labels; give "
            "--teacher PATH of a pretraining, or --model NAME --weights FILE of a timm model"
        )
    if config.teacher is not None:
        return config.teacher
    found = newest_finished(Path(config.runs), info.name, None)
    if found is None:
        raise ConfigError(
            f"no encoder was found for {info.name}: {config.runs}/pretrain has no finished run of it: "
            f"run rmd pretrain --dataset {config.dataset} first, or give --model NAME --weights FILE (timm's)"
        )
    return str(found)
