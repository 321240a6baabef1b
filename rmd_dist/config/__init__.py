"""Configuration: typed dataclasses, what may stand in them, YAML and command line into them."""

from rmd_dist.config.measuring import AuditConfig, EvaluateConfig
from rmd_dist.config.running import CheckpointConfig, EvalConfig, RunConfig
from rmd_dist.config.schema import (
    AnyConfig,
    CropFlipConfig,
    DataConfig,
    DistillConfig,
    GraphConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    PretrainConfig,
    SimCLRConfig,
    SimSiamConfig,
    TargetsConfig,
    ViewConfig,
)
from rmd_dist.config.teachers import TIMM, crops_of, is_path, needs_teacher, starts_from_file

__all__ = [
    "TIMM",
    "AnyConfig",
    "AuditConfig",
    "CheckpointConfig",
    "CropFlipConfig",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "EvaluateConfig",
    "GraphConfig",
    "ModelConfig",
    "NoiseConfig",
    "OptimConfig",
    "PretrainConfig",
    "RunConfig",
    "SimCLRConfig",
    "SimSiamConfig",
    "TargetsConfig",
    "ViewConfig",
    "crops_of",
    "is_path",
    "needs_teacher",
    "starts_from_file",
]
