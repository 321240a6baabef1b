"""From a configuration to the parts of a run, each built apart and handed to its task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.config import AnyConfig, CropFlipConfig, DistillConfig, PretrainConfig, ViewConfig, crops_of
from rmd_dist.data.dataset import Dataset, DatasetInfo
from rmd_dist.data.labels import Labels, make_labels
from rmd_dist.data.loader import Loader, build_loader
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import Splits, choose
from rmd_dist.errors import ConfigError
from rmd_dist.losses import RelationLoss, build_loss, nt_xent, simsiam_loss
from rmd_dist.models import SimCLR, SimCLROutput, SimSiam, SimSiamOutput
from rmd_dist.models.export import RENDERED, create
from rmd_dist.models.pretrained import TimmEncoder
from rmd_dist.models.student import Encoder, Student
from rmd_dist.models.unwrap import classifiers
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.numerics import cast_weights
from rmd_dist.tasks.base import Task
from rmd_dist.tasks.distill import DistillTask
from rmd_dist.tasks.pretrain import PretrainTask
from rmd_dist.tasks.targets import RelationTargets, Search, check_labels
from rmd_dist.tasks.teacher import FrozenEncoder, TeacherSource, named_source, open_source
from rmd_dist.tasks.teacher_table import TeacherTable, open_table


@dataclass(frozen=True)
class Parts:
    """What a trainer needs of a configuration."""

    task: Task
    loader: Loader
    """Augmented micro-batches of this rank in the global order."""
    num_classes: int
    """Of the exported model; 0: an encoder."""
    about: dict[str, Any]
    """What manifests and exported models say of the parts."""


def build_parts(config: AnyConfig, compute: Compute, teacher: TeacherSource = None) -> Parts:
    """The parts of a run; weights are drawn from torch's generator. Raises ConfigError if they do not fit."""
    return BUILDERS[type(config)](config, compute, teacher)


def build_pretraining(config: PretrainConfig, compute: Compute, _: TeacherSource) -> Parts:
    """SimSiam or SimCLR on the data set's images; it has no teacher."""
    train, test, splits = build_data(config)
    encoder = build_model(config, train.info, num_classes=0)
    model, objective = OBJECTIVES[config.objective](config, encoder)
    task = PretrainTask(model, objective, train, test, splits, config.eval, compute)
    about = _about(config, train, splits, encoder)
    return Parts(task, train_loader(config, train, splits, config.views, compute), 0, about)


def _simsiam(config: PretrainConfig, encoder: Any) -> tuple[SimSiam, Callable[[SimSiamOutput], Tensor]]:
    model = SimSiam(encoder, config.simsiam.dim, config.simsiam.hidden_dim)
    return model, lambda output: parallel.global_mean(simsiam_loss(output.p, output.z))


def _simclr(config: PretrainConfig, encoder: Any) -> tuple[SimCLR, Callable[[SimCLROutput], Tensor]]:
    own = config.simclr
    return SimCLR(encoder, own.dim, own.hidden_dim), lambda output: nt_xent(output.z, own.temperature)


OBJECTIVES: dict[str, Callable[[PretrainConfig, Any], tuple[Any, Callable[[Any], Tensor]]]] = {
    "simsiam": _simsiam,
    "simclr": _simclr,
}
"""What is trained around an encoder, and the loss, over all ranks, of what that gives."""


def build_distillation(config: DistillConfig, compute: Compute, teacher: TeacherSource) -> Parts:
    """A student on noisy labels, and its teacher."""
    train, test, splits = build_data(config, config.validation)
    labels = build_labels(config, train)
    labelled = splits.without(labels.left_out)
    # Images without a label join in training alone.
    splits = replace(labelled, train=splits.train) if config.targets.unlabelled else labelled
    _tell_left_out(labels, config.targets.unlabelled)
    num_classes = train.info.num_classes
    student = Student(build_model(config, train.info, num_classes))
    loss = build_loss(config.loss, num_classes, **config.loss_options)
    graph = config.graph
    relation = RelationLoss(
        graph.node_weight, graph.edge_weight, graph.form, graph.reference_batch, graph.node_target
    )
    frozen, taught = build_teacher(config, train.info, student, teacher) if teacher else (None, {})
    started = _start_student(config, train.info, student, frozen, taught.get("teacher_sha256"))
    taught |= {"student_sha256": started.sha256} if started and config.student_init != "teacher" else {}
    search = build_search(config, compute, train, labels, splits, student, frozen, taught, started)
    targets = None
    if config.targets.kind == "relations":
        targets = RelationTargets(labels, num_classes, config.targets, compute.device)
    if frozen is not None:
        compute.placed(frozen).eval().requires_grad_(False)
        cast_weights(frozen, compute.autocast)
        if graph.projector == "linear" and config.K and graph.node_weight:  # else nothing would train it
            student.project_to(frozen.width)
    crops = crops_of(config)
    task = DistillTask(
        student, frozen, loss, relation, config.K, labels, train, test, splits, config.eval, compute,
        targets, search, crops=crops,
    )  # fmt: skip
    counts = {"validation_samples": len(splits.validation)}
    noise = {"noise": labels.manifest, "labels_sha256": labels.manifest["labels_sha256"]}
    about = _about(config, train, splits, student) | counts | noise | taught
    # Of images of varying sizes the teacher gets the same crop at its own size.
    also = max(task.teacher_preprocess.size) if train.store and frozen is not None and config.K else None
    augment = replace(config.augment, count=crops if crops > 1 else None)
    table = None
    if frozen is not None and config.K and graph.teacher_table:
        table = build_table(config, train, splits, frozen, taught, compute)
    loader = train_loader(config, train, splits, augment, compute, also, table)
    return Parts(task, loader, num_classes, about)


BUILDERS: dict[type, Callable[[Any, Compute, TeacherSource], Parts]] = {
    PretrainConfig: build_pretraining,
    DistillConfig: build_distillation,
}
"""Kind of configuration -> what builds its parts."""


def build_data(config: AnyConfig, validation: float = 0.0) -> tuple[Dataset, Dataset, Splits]:
    """(training split, test split, which of their samples are used); a share of `validation` is held out."""
    data = config.data
    # With ffcv the betons stand already (engine.start.prepare_data), checked against the source.
    source = Path(data.source) if data.source and data.loader == "memory" else None
    train, test = (
        open_dataset(data.dataset, split, root=Path(data.root), source=source, loader=data.loader)
        for split in ("train", "test")
    )
    splits = choose(
        len(train),
        len(test),
        train_samples=data.train_samples,
        test_samples=data.test_samples,
        validation=validation,
        probe_samples=config.eval.train_samples,
        groups=train.files.groups if train.files else None,
    )
    return train, test, splits


def build_labels(config: DistillConfig, train: Dataset) -> Labels:
    """The given, noisy labels of the training split."""
    noise = config.noise
    file = Path(noise.labels) if noise.labels else None
    return make_labels(train, noise.protocol, noise.rate, noise.seed, config.data.root, file)


def build_model(config: AnyConfig, info: DatasetInfo, num_classes: int) -> Any:
    """The configured timm model, untrained, for the data set's images."""
    return create(config.model.name, num_classes, _wanted(config, info).to_cfg())


def _wanted(config: AnyConfig, info: DatasetInfo) -> Preprocess:
    """What a model gets that is trained on a data set from the start."""
    return Preprocess.for_dataset(info, config.data.image_size)


def build_teacher(
    config: DistillConfig, info: DatasetInfo, student: Student, source: Path | TimmEncoder | Literal["random"]
) -> tuple[Encoder, dict[str, Any]]:
    """(the teacher's encoder, what manifests say of it).

    Raises ConfigError if it does not fit the data set or the student.
    """
    if source == "random":
        teacher, about = Encoder(build_model(config, info, num_classes=0)), {"teacher": "random"}
    else:
        input, size = _wanted(config, info).to_cfg(), config.teacher_image_size
        frozen = open_source(source, info, config.model.name, input, image_size=size)
        teacher, about = frozen.module, {"teacher": frozen.name, "teacher_sha256": frozen.sha256}
    graph, name = config.graph, about["teacher"]
    if teacher.width != student.width and graph.node_weight and graph.projector == "none" and config.K:
        raise ConfigError(
            f"teacher {name} has {teacher.width} features, the student {student.width}: node matching "
            "needs equal widths; use the same --model for both, --graph.projector linear (nodes by a learned "
            "projection), or --graph.node_weight 0 (edges alone)"
        )
    wanted = teacher.pretrained_cfg
    return teacher, about | {"teacher_input": {key: wanted[key] for key in RENDERED if key in wanted}}


def _tell_left_out(labels: Labels, used: bool) -> None:
    if (left_out := labels.manifest.get("left_out")) and parallel.is_main():
        what = "trained on without one" if used else "left out"
        print(f"labels: {left_out} of {len(labels.given)} training images have none: {what}", flush=True)


def _start_student(
    config: DistillConfig, info: DatasetInfo, student: Student, teacher: Encoder | None, sha256: str | None
) -> FrozenEncoder | None:
    """Give the student the weights that it starts with; returns whose they are, None: nobody's."""
    if config.student_init == "random":
        return None
    if config.student_init == "teacher":
        assert teacher is not None
        start = FrozenEncoder(teacher, "teacher", sha256 or "")
    else:
        source = named_source(config.student_init, None, "student_init")
        input = _wanted(config, info).to_cfg()
        start = open_source(source, info, config.model.name, input, "student_init")
    _start_as(student, start.module)
    return start


def _start_as(student: Student, start: Encoder) -> None:
    """Give the student an encoder's weights, but for the classifier's, and images as they expect them."""
    state, own = start.model.state_dict(), student.model.state_dict()
    heads = tuple(f"{name}." for name in classifiers(student.model))
    body = {name: tensor.shape for name, tensor in own.items() if not name.startswith(heads)}
    if body != {name: tensor.shape for name, tensor in state.items()}:
        raise ConfigError(
            "student_init needs a student of the --model whose weights it starts with, also of the same size "
            "where a model is built for one size of image"
        )
    student.model.load_state_dict(state, strict=False)
    student.model.pretrained_cfg |= {key: start.pretrained_cfg[key] for key in ("mean", "std")}


def build_search(
    config: DistillConfig,
    compute: Compute,
    train: Dataset,
    labels: Labels,
    splits: Splits,
    student: Student,
    teacher: Encoder | None,
    taught: dict[str, Any],
    start: FrozenEncoder | None,
) -> Search | None:
    """What is to be sought of the labels before training. Raises ConfigError where nothing can be found."""
    related = config.targets.kind == "relations"
    if not related and config.head_init == "random":
        return None
    check_labels(
        labels.given[splits.train], "targets = relations" if related else f"head_init = {config.head_init}"
    )
    if taught.get("teacher") == "random" and (related or config.student_init == "teacher"):
        raise ConfigError(
            "teacher = random: features of an untrained encoder say little about labels, by which "
            f"{'targets = relations' if related else 'head_init = ' + config.head_init} would go; give "
            "--teacher PATH of a pretraining, or timm:NAME with --weights FILE"
        )
    # Copies: the task's teacher may be cast to half precision, its student is placed and trained.
    source = begun = None
    if related:
        assert teacher is not None
        source = FrozenEncoder(copy.deepcopy(teacher), taught["teacher"], taught["teacher_sha256"])
    if config.head_init != "random":
        assert start is not None
        begun = replace(start, module=Encoder(copy.deepcopy(student.model)))
    return Search(
        train, labels.given, splits.train, Path(config.data.root), compute, source, begun, config.head_init
    )


def build_table(
    config: DistillConfig,
    train: Dataset,
    splits: Splits,
    teacher: Encoder,
    taught: dict[str, Any],
    compute: Compute,
) -> TeacherTable:
    """The teacher's features of all crops of the samples that are trained on."""
    if train.store is not None or config.data.image_size not in (None, train.info.image_size):
        raise ConfigError(
            "graph.teacher_table: crops that are resized have no end and no table; leave it out, or train "
            "on images of one size as they are"
        )
    if taught["teacher"] == "random":
        raise ConfigError(
            "graph.teacher_table keeps features by the weights' SHA-256, and teacher = random has no file; "
            "leave one of the two out"
        )

    def tell(what: str) -> None:
        if parallel.is_main():
            print(what, flush=True)

    encoder = FrozenEncoder(teacher, taught["teacher"], taught["teacher_sha256"])
    samples, root = np.sort(splits.train), Path(config.data.root)
    return open_table(encoder, train, samples, config.augment, config.run.seed, root, compute, tell)


def train_loader(
    config: AnyConfig,
    train: Dataset,
    splits: Splits,
    augment: ViewConfig | CropFlipConfig,
    compute: Compute,
    also: int | None = None,
    taught: TeacherTable | None = None,
) -> Loader:
    """Augmented micro-batches of this rank in the global order, each view in a second size `also`, too.

    With what is `taught` of it.
    """
    size = config.data.image_size or train.info.image_size
    return build_loader(
        train,
        sizes=(size,) if also in (None, size) else (size, also),
        augment=augment,
        batch_size=config.data.batch_size // config.optim.accumulation,
        seed=config.run.seed,
        indices=splits.train,
        workers=compute.workers,
        pinned=compute.device.type == "cuda",
        taught=taught,
        device=compute.device if config.data.render == "device" else None,
    )


def _about(config: AnyConfig, train: Dataset, splits: Splits, model: Any) -> dict[str, Any]:
    return {
        "stage": config.stage,
        "dataset": train.info.name,
        "data_sha256": train.sha256,
        "train_samples": len(splits.train),
        "classes": list(train.info.classes),
        "input": Preprocess.of(model).to_cfg(),
    } | ({"stored": dict(train.info.stored)} if train.info.stored else {})
