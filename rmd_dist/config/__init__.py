"""Configuration: typed dataclasses, what may stand in them, YAML and command line into them."""

from rmd_dist.config.schema import (
    AnyConfig,
    CheckpointConfig,
    CropFlipConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    EvaluateConfig,
    GraphConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SimSiamConfig,
    ViewConfig,
)

__all__ = [
    "AnyConfig",
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
    "SimSiamConfig",
    "ViewConfig",
]
