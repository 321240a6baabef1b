"""Typed configuration: one dataclass per concern, a YAML file first, the command line on top.

Precedence, weakest first: the dataclass defaults (the paper's recipe), each ``--config FILE`` in
turn (a YAML of deltas), the command line. Unknown keys and bad values end in one clear line. Every
field is reachable by its full name (``--optim.lr 0.1``), on the command line also by its last part where
that is unique (``--lr 0.1``) and by the short name that stands in the field. Dashes and underscores are
the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rmd_dist.config.fields import setting
from rmd_dist.config.running import CheckpointConfig, EvalConfig, RunConfig


@dataclass
class SourceConfig:
    """Where samples are read from."""

    root: str = setting("data", short="data_root", free=True, path=True)
    """Folder of betons and archives."""

    source: str | None = setting(None, free=True, path=True)
    """Official python archive (tar.gz) or its unpacked folder; unset: look in `root`, then download."""

    loader: Literal["ffcv", "memory"] = setting("ffcv", free=True)
    """`ffcv` reads a mapped beton; `memory` serves the same batches from the archive, without ffcv."""

    workers: int = setting(0, low=0, high=1024, free=True)
    """Threads of each rank that prepare images; 0: the cores this process may use, shared among its ranks."""

    test_samples: int | None = setting(None, low=1, free=True, reported=True)
    """Evaluate on the first so many test images; unset: all."""


@dataclass
class DataConfig(SourceConfig):
    """Where samples come from and how they are batched."""

    dataset: str = setting("cifar10", study="datasets", path=True)
    """cifar10, cifar100, digits (scikit-learn's), a folder of images, or a table of paths and labels."""

    image_size: int | None = setting(None, low=8, high=1024, short="image_size", added_later=True)
    """Height and width of what models get, in pixels; unset: the data set's, 224 of own images."""

    batch_size: int = setting(64, low=1, short="batch_size")
    """Images of one optimizer step, over all ranks and accumulation micro-steps."""

    train_samples: int | None = setting(None, low=1, short="train_samples")
    """Train on a random subset of this size, the same for every seed; unset: all."""

    render: Literal["loader", "device"] = setting("loader", free=True)
    """Random views are made by the `loader`'s threads, or on the `device`, which then keeps all images."""


@dataclass
class ViewConfig:
    """Random views to pretrain on (paper section 3.2; Chen & He 2021: blur of large images, not of CIFAR)."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of RandomResizedCrop, as a share of the image."""

    brightness: float = setting(0.4, low=0)
    """ColorJitter: factor drawn from [1 - b, 1 + b]."""

    contrast: float = setting(0.4, low=0)
    """ColorJitter: factor drawn from [1 - c, 1 + c]."""

    saturation: float = setting(0.4, low=0)
    """ColorJitter: factor drawn from [1 - s, 1 + s]."""

    hue: float = setting(0.1, low=0, high=0.5)
    """ColorJitter: hue shift drawn from [-h, h], h in [0, 0.5]."""

    jitter_p: float = setting(0.8, low=0, high=1)
    """Chance of applying ColorJitter at all."""

    grayscale_p: float = setting(0.2, low=0, high=1)
    """Chance of dropping the colours."""

    flip_p: float = setting(0.5, low=0, high=1)
    """Chance of a horizontal flip."""

    count: int = setting(2, low=2, high=64, added_later=True)
    """Views of each image; with more than two SimSiam draws each to the mean of the others (FastSiam)."""

    blur_p: float | None = setting(None, low=0, high=1, added_later=True)
    """Chance of Gaussian blur, of images of varying sizes alone; unset: 0.5 above 64 pixels, else 0."""

    blur_sigma: tuple[float, float] = setting((0.1, 2.0), added_later=True)
    """Blur: standard deviation drawn between these, in pixels of 224; at another size in proportion."""


@dataclass
class CropFlipConfig:
    """Augmentation of supervised training: random crop (of CIFAR with zero padding), horizontal flip."""

    padding: int = setting(4, low=0, high=1024)
    """Zero pixels added on each side before the crop of the original size."""

    flip_p: float = setting(0.5, low=0, high=1)
    """Chance of a horizontal flip."""

    crop_scale: tuple[float, float] = setting((0.08, 1.0), added_later=True)
    """Varying sizes: area of RandomResizedCrop, as a share of the image; `padding` is not used there."""

    count: int | None = setting(None, low=2, high=16, added_later=True)
    """Crops of each image, of which `targets.average` sees all but the first; unset: 2 for it, else 1."""


@dataclass
class NoiseConfig:
    """Label noise; its seed is its own, so that runs of other training seeds see the same labels."""

    protocol: str = setting("auto", short="noise", study="noise", in_names=True)
    """none, symmetric, symmetric-inclusive, asymmetric, asymmetric-idblock, pairflip, human:NAME, file:PATH;
    auto: none for own images, symmetric for the others."""

    labels: str | None = setting(None, short="labels", path=True, added_later=True)
    """Labels to train on, by path or index (CSV) or for all training images in order (NPY): file:PATH. An
    empty label, in NPY -1, leaves its image out."""

    rate: float = setting(0.4, low=0, high=1, short="noise_rate", study="noise")
    """Nominal share of wrong labels, in [0, 1]; human label files bring their own."""

    seed: int = setting(0, low=0, high=2**63 - 1, short="noise_seed", study="seeds")
    """Seed of the noise alone."""


@dataclass
class ModelConfig:
    """The encoder, and how torch runs it."""

    name: str = setting("auto", short="model", in_names=True)
    """timm model name; `resnet18_cifar` and small siblings (`_w16`, `_w16_s2`, `_w32_s2`) are ours; auto:
    resnet18_cifar for images below 64 pixels, resnet18 above."""

    channels_last: bool = True
    """Channels-last memory format."""

    compile: bool = setting(False, free=True)
    """torch.compile the trained module."""


@dataclass
class SimSiamConfig:
    """Projector and predictor (CIFAR form of SimSiam)."""

    dim: int = setting(2048, low=1, short="dim")
    """Width of the projector and of z and p."""

    hidden_dim: int = setting(512, low=1, short="hidden_dim")
    """Width of the predictor's hidden layer."""


@dataclass
class SimCLRConfig:
    """SimCLR (Chen et al. 2020): its projector, and the loss."""

    dim: int = setting(128, low=1, added_later=True)
    """Width of z."""

    hidden_dim: int = setting(2048, low=1, added_later=True)
    """Width of the projector's hidden layer."""

    temperature: float = setting(0.2, low=1e-3, high=100, added_later=True)
    """Cosines of projections are divided by it before the softmax (Chen et al. on CIFAR-10: 0.5)."""


@dataclass
class GraphConfig:
    """Relation-graph loss: L_graph = node_weight L_node + edge_weight L_edge (paper equation 10)."""

    node_weight: float = setting(0.8, low=0)
    """Weight of node matching."""

    edge_weight: float = setting(0.35, low=0)
    """Weight of edge matching."""

    form: Literal["auto", "rows", "gram"] = "auto"
    """How the graph is computed; equal in exact arithmetic, `auto` takes the cheaper."""

    reference_batch: int | None = setting(64, low=2)
    """K means the same at any batch size: the loss expected of a graph of so many nodes; null: raw norm."""

    node_target: Literal["identity", "teacher"] = "identity"
    """`identity` is the paper's; `teacher` pulls the node matrix to the teacher's graph (ours)."""

    projector: Literal["none", "linear"] = setting("none", added_later=True)
    """`linear`: nodes match the student's features projected to the teacher's width, edges its own (ours)."""

    teacher_table: bool = setting(False, short="teacher_table", free=True)
    """Read the teacher's features of every crop from a table below `data.root`, which is built once."""


@dataclass
class TargetsConfig:
    """What a student is trained towards; ours: t ~ ((1 - a) q0 + a p) T[:, given label]."""

    kind: Literal["given", "relations"] = setting("given", short="targets", added_later=True)
    """`given`: the labels (the paper). `relations`: as corrected by q0, a regression of other images' labels
    on the teacher's features, by the noise matrix T, and by the student's own average p."""

    average: float = setting(0.5, low=0, high=1, short="average", added_later=True)
    """a: share of what the moving average of the student (`optim.ema_decay`) says of another crop."""

    ramp: float = setting(0.0, low=0, high=1, added_later=True)
    """Share of training over which a grows from 0."""

    unlabelled: bool = setting(False, short="unlabelled", added_later=True)
    """Train on the images that the labels leave out, too, towards (1 - a) q0 + a p."""


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = setting("sgd", short="optimizer", added_later=True)
    """`sgd` (the paper's), or another of timm's optimizers, such as adamw or lamb."""

    epochs: int = setting(240, low=1)
    """Passes over the training samples."""

    lr: float | None = setting(None, low=0)
    """Peak learning rate; unset: the paper's for this stage and data set."""

    momentum: float = setting(0.9, low=0, high=1)
    """Momentum of SGD and of what else has one."""

    nesterov: bool = setting(False, added_later=True)
    """Nesterov's momentum, of `sgd`."""

    weight_decay: float = setting(5e-4, low=0)
    """L2 penalty of all parameters."""

    schedule: Literal["cosine", "multistep", "constant"] = "multistep"
    """Learning rate over time."""

    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """multistep: shares of training after which lr is multiplied by gamma (150, 180, 210 of 240)."""

    gamma: float = setting(0.1, low=0, high=1)
    """multistep: factor at each milestone."""

    warmup_epochs: float = setting(0.0, low=0)
    """Linear warm-up from 0."""

    clip_norm: float | None = setting(None, low=1e-12)
    """Greatest gradient norm; unset: no clipping."""

    ema_decay: float = setting(0.0, low=0, high=0.999999, added_later=True)
    """Measure and export an exponential moving average of the weights, of this decay a step; 0: none."""

    accumulation: int = setting(1, low=1)
    """Micro-steps of one optimizer step; batch norm and the graph cover one micro-step of all ranks."""


@dataclass
class PretrainConfig:
    """Relation modelling: pretraining that never looks at a label, by SimSiam as in the paper, or SimCLR."""

    stage = "pretrain"

    objective: Literal["simsiam", "simclr"] = setting("simsiam", added_later=True)
    """`simsiam` (the paper's): a view predicts the other view; `simclr`: each view is told from the batch's
    other images, which teaches more in the same time (docs/gpu.md)."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig)
    simclr: SimCLRConfig = field(default_factory=SimCLRConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=1000, lr=0.03, schedule="cosine"))
    eval: EvalConfig = setting(default_factory=lambda: EvalConfig(every_epochs=10), free=True)
    checkpoint: CheckpointConfig = setting(default_factory=CheckpointConfig, free=True)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class DistillConfig:
    """Relation-guided representation learning: noisy labels, and the teacher's relation graph."""

    stage = "distill"

    loss: str = setting("ce", study="losses", in_names=True)
    """Classification loss, by name (rmd_dist.losses.LOSSES)."""

    loss_options: dict[str, float] = field(default_factory=dict)
    """Overrides of the loss's defaults, such as {q: 0.5}."""

    K: float = setting(1.0, low=0)
    """Weight of the relation graph: L = L_task + K L_graph. 0: no teacher."""

    teacher: str | None = setting(None, path=True)
    """Run folder, encoder file, `timm:NAME[.TAG]` or `random`; unset: the newest pretraining that fits."""

    teacher_weights: str | None = setting(None, short="weights", path=True, added_later=True)
    """File of a `timm:` teacher's weights, safetensors or torch.save's; unset: timm's cache or hub."""

    teacher_image_size: int | None = setting(None, low=8, high=1024, added_later=True)
    """Pixels, square, that the teacher gets images in; unset: as its weights want them."""

    student_init: str = setting("random", path=True)
    """Where the student's weights start: `random`, `teacher`, or the run folder or file of an encoder."""

    head_init: Literal["random", "given", "relations"] = setting("random", added_later=True)
    """Where the classifier's start; else a regression on the features that the student starts with: of the
    `given` labels, or through the noise matrix (`relations`) of the true classes."""

    validation: float = setting(0.0, low=0, high=0.9)
    """Share of the training samples held out, with their noisy labels, to select a checkpoint by."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: CropFlipConfig = field(default_factory=CropFlipConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = setting(default_factory=EvalConfig, free=True)
    checkpoint: CheckpointConfig = setting(default_factory=CheckpointConfig, free=True)
    run: RunConfig = field(default_factory=RunConfig)


AnyConfig = PretrainConfig | DistillConfig
