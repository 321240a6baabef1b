"""Typed configuration: one dataclass per concern, a YAML file first, the command line on top.

Precedence, weakest first: the dataclass defaults (the paper's recipe), each ``--config FILE`` in
turn (a YAML of deltas), the command line. Unknown keys and bad values end in one clear line. Every
field is reachable by its full name (``--optim.lr 0.1``), on the command line also by its last part where
that is unique (``--lr 0.1``) and by ``SHORT_NAMES``. Dashes and underscores are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DATASETS = ("cifar10", "cifar100", "digits")


class ConfigError(ValueError):
    """A value or a combination that cannot work; the message names it, what is allowed and the remedy.

    Raised by every module for a mistake of the user's; launch scripts print it without a traceback. Always
    one plain line: control characters, which may come from a file's content, are written as escapes, and
    of a very long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if not message.isprintable():
            message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if len(message) > 2000:
            message = f"{message[:1400]} ... {message[-400:]}"
        super().__init__(message)


@dataclass
class DataConfig:
    """Where samples come from and how they are batched."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """Data set; `digits` (scikit-learn's) needs no files."""

    root: str = "data"
    """Folder of betons and archives."""

    source: str | None = None
    """Official python archive (tar.gz) or its unpacked folder; unset: look in `root`, then download."""

    loader: Literal["ffcv", "memory"] = "ffcv"
    """`ffcv` reads a mapped beton; `memory` serves the same batches from the archive, without ffcv."""

    batch_size: int = 64
    """Images of one optimizer step, over all ranks and accumulation micro-steps."""

    workers: int = 0
    """Augmentation threads of each rank; 0: the cores this process may use, shared among its ranks."""

    train_samples: int | None = None
    """Train on a random subset of this size, the same for every seed; unset: all."""

    test_samples: int | None = None
    """Evaluate on the first so many test images; unset: all."""


@dataclass
class ViewConfig:
    """SimSiam's random views (paper section 3.2; Chen & He 2021, CIFAR recipe: no blur)."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of RandomResizedCrop, as a share of the image."""

    brightness: float = 0.4
    """ColorJitter: factor drawn from [1 - b, 1 + b]."""

    contrast: float = 0.4
    """ColorJitter: factor drawn from [1 - c, 1 + c]."""

    saturation: float = 0.4
    """ColorJitter: factor drawn from [1 - s, 1 + s]."""

    hue: float = 0.1
    """ColorJitter: hue shift drawn from [-h, h], h in [0, 0.5]."""

    jitter_p: float = 0.8
    """Chance of applying ColorJitter at all."""

    grayscale_p: float = 0.2
    """Chance of dropping the colours."""

    flip_p: float = 0.5
    """Chance of a horizontal flip."""


@dataclass
class CropFlipConfig:
    """Augmentation of supervised training: random crop with zero padding, horizontal flip."""

    padding: int = 4
    """Zero pixels added on each side before the crop of the original size."""

    flip_p: float = 0.5
    """Chance of a horizontal flip."""


@dataclass
class NoiseConfig:
    """Label noise; its seed is its own, so that runs of other training seeds see the same labels."""

    protocol: str = "symmetric"
    """none, symmetric, symmetric-inclusive, asymmetric, asymmetric-idblock, pairflip or human:NAME."""

    rate: float = 0.4
    """Nominal share of wrong labels, in [0, 1]; human label files bring their own."""

    seed: int = 0
    """Seed of the noise alone."""


@dataclass
class ModelConfig:
    """The encoder, and how torch runs it."""

    name: str = "resnet18_cifar"
    """timm model name; `resnet18_cifar` and small siblings (`_w16`, `_w16_s2`, `_w32_s2`) are ours."""

    channels_last: bool = True
    """Channels-last memory format."""

    compile: bool = False
    """torch.compile the trained module."""


@dataclass
class SimSiamConfig:
    """Projector and predictor (CIFAR form of SimSiam)."""

    dim: int = 2048
    """Width of the projector and of z and p."""

    hidden_dim: int = 512
    """Width of the predictor's hidden layer."""


@dataclass
class GraphConfig:
    """Relation-graph loss: L_graph = node_weight L_node + edge_weight L_edge (paper equation 10)."""

    node_weight: float = 0.8
    """Weight of node matching."""

    edge_weight: float = 0.35
    """Weight of edge matching."""

    form: Literal["auto", "rows", "gram"] = "auto"
    """How the graph is computed; equal in exact arithmetic, `auto` takes the cheaper."""

    reference_batch: int | None = 64
    """K means the same at any batch size: the loss expected of a graph of so many nodes; null: raw norm."""

    node_target: Literal["identity", "teacher"] = "identity"
    """`identity` is the paper's; `teacher` pulls the node matrix to the teacher's graph (ours)."""


@dataclass
class OptimConfig:
    """SGD and its schedule."""

    epochs: int = 240
    """Passes over the training samples."""

    lr: float | None = None
    """Peak learning rate; unset: the paper's for this stage and data set."""

    momentum: float = 0.9
    """SGD momentum."""

    weight_decay: float = 5e-4
    """L2 penalty of all parameters."""

    schedule: Literal["cosine", "multistep", "constant"] = "multistep"
    """Learning rate over time."""

    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """multistep: shares of training after which lr is multiplied by gamma (150, 180, 210 of 240)."""

    gamma: float = 0.1
    """multistep: factor at each milestone."""

    warmup_epochs: float = 0.0
    """Linear warm-up from 0."""

    clip_norm: float | None = None
    """Greatest gradient norm; unset: no clipping."""

    accumulation: int = 1
    """Micro-steps of one optimizer step; batch norm and the graph cover one micro-step of all ranks."""


@dataclass
class EvalConfig:
    """What is measured while training, and how often."""

    every_epochs: int = 1
    """Evaluate after every so many epochs, and at the end; 0: at the end only."""

    batch_size: int = 512
    """Images of one evaluation batch on each rank."""

    train_samples: int = 10_000
    """Training samples used to measure memorisation and as the kNN bank; 0: all of them."""

    knn_k: int = 200
    """Neighbours of the weighted kNN."""

    knn_temperature: float = 0.1
    """Temperature of the kNN weights exp(similarity / T)."""

    pictures_every_minutes: float = 10.0
    """Draw confusion and relation matrices at most so often, and at the end; 0: at every evaluation."""


@dataclass
class CheckpointConfig:
    """When state is saved."""

    every_steps: int = 0
    """Save after every so many optimizer steps; 0: not by steps."""

    every_epochs: int = 1
    """Save after every so many epochs; 0: not by epochs. The end is always saved."""

    keep: int = 3
    """Checkpoints kept; older ones are deleted."""

    every_minutes: float = 0.0
    """Save after every so many minutes; 0: not by time."""

    asynchronous: bool = True
    """Write while training goes on; false: training waits until the file is on the disk."""


@dataclass
class RunConfig:
    """One run: its folder, its seed, its end."""

    root: str = "runs"
    """Runs are written to ROOT/STAGE/NAME."""

    name: str | None = None
    """Folder name of the run; unset: made from data set, model and the main settings."""

    seed: int = 0
    """Seed of weights, order and augmentation."""

    max_steps: int | None = None
    """Stop after so many optimizer steps; the schedule stays that of all epochs."""

    resume: str = "auto"
    """auto: continue from the newest checkpoint; never: refuse to touch an existing run; or a PATH."""

    resume_allow: tuple[str, ...] = ()
    """Keys that may differ from what the run began with, such as optim.lr, or a group of them (optim)."""

    precision: Literal["launch", "no", "tf32", "bf16", "fp16", "fp64"] = "launch"
    """`launch`: what accelerate launch was told; `no`: fp32 proper; `tf32`: on GPUs; fp64: for checks."""

    deterministic: bool = True
    """Equal runs give equal bits, which exact resume needs; false: the fastest kernels, which may not."""

    cpu: bool = False
    """Use the CPU even where there is a GPU."""

    threads: int = 0
    """torch's threads of each rank on a CPU; 0: its share of the cores (under accelerate launch)."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is nan or infinite: stop, or leave the step out."""

    log_every: int = 10
    """Optimizer steps between logged scalars; the first five steps are always logged."""


@dataclass
class PretrainConfig:
    """Relation modelling: SimSiam pretraining; never looks at a label."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=1000, lr=0.03, schedule="cosine"))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(every_epochs=10))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class DistillConfig:
    """Relation-guided representation learning: noisy labels, and the teacher's relation graph."""

    loss: str = "ce"
    """Classification loss, by name (rmd_dist.losses.LOSSES)."""

    loss_options: dict[str, float] = field(default_factory=dict)
    """Overrides of the loss's defaults, such as {q: 0.5}."""

    K: float = 1.0
    """Weight of the relation graph: L = L_task + K L_graph. 0: no teacher."""

    teacher: str | None = None
    """Run folder or encoder file of a pretraining run, or `random`; unset: the newest that fits."""

    student_init: Literal["random", "teacher"] = "random"
    """Where the student's weights start."""

    validation: float = 0.0
    """Share of the training samples held out, with their noisy labels, to select a checkpoint by."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: CropFlipConfig = field(default_factory=CropFlipConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class EvaluateConfig:
    """Figures of a model on disk: accuracy of a classifier, kNN and linear probe of an encoder."""

    checkpoint: str = ""
    """Run folder, exported model.safetensors, or a file of a run's checkpoints/ folder."""

    dataset: Literal["cifar10", "cifar100", "digits"] | None = None
    """Data set; unset: the one the model was trained on."""

    data_root: str = "data"
    """Folder of betons and archives."""

    source: str | None = None
    """Official python archive or its folder; unset: look in `data_root`, then download."""

    loader: Literal["ffcv", "memory"] = "ffcv"
    """`ffcv` reads a mapped beton, `memory` the archive itself."""

    model: str = "resnet18_cifar"
    """timm model name, for weights that do not say what they are."""

    batch_size: int = 512
    """Images of one batch on each rank."""

    workers: int = 0
    """Loader threads of each rank; 0: its share of the cores."""

    train_samples: int = 0
    """Training samples of the kNN bank and the linear probe; 0: all."""

    test_samples: int | None = None
    """Evaluate on the first so many test images; unset: all."""

    knn_k: int = 200
    """Neighbours of the weighted kNN; capped by the bank's size."""

    knn_temperature: float = 0.1
    """Temperature of the kNN weights exp(similarity / T)."""

    linear_probe: bool = True
    """Fit a linear classifier on an encoder's features."""

    cpu: bool = False
    """Use the CPU even where there is a GPU."""

    out: str | None = None
    """Also write the figures to this JSON file."""


AnyConfig = PretrainConfig | DistillConfig

SHORT_NAMES = {
    "batch_size": "data.batch_size",
    "data_root": "data.root",
    "model": "model.name",
    "name": "run.name",
    "noise": "noise.protocol",
    "noise_rate": "noise.rate",
    "noise_seed": "noise.seed",
    "runs": "run.root",
    "seed": "run.seed",
    "train_samples": "data.train_samples",
}
"""Short names on the command line, beside the last part of a key where that is unique (--lr)."""
