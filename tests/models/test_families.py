"""timm's families, the smallest of each, as student and as teacher: each works or is refused in one line."""

from __future__ import annotations

import pytest
import timm
import torch

from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.models.export import create
from rmd_dist.models.student import Encoder, Student
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks import DistillTask

ONE_LAYER = "not one Linear layer on the features"
SLOW = pytest.mark.slow

# Student of images of so many pixels, features (None: refused as a student), what the refusal says.
QUICK = [
    ("resnet18", 32, 512, None),
    ("vit_tiny_patch16_224", 64, 192, None),
    ("vit_tiny_patch16_224", 40, None, "sides must be multiples of its patches' 16 x 16"),
    ("deit_tiny_distilled_patch16_224", 64, None, ONE_LAYER),
    ("eva02_tiny_patch14_224", 56, 192, None),
    ("convnext_atto", 64, 320, None),
    ("efficientnet_lite0", 64, 1280, None),
    ("mobilenetv3_small_050", 32, 1024, None),
    ("ghostnet_050", 64, 1280, None),
    ("xcit_nano_12_p16_224", 64, 128, None),
    ("edgenext_xx_small", 64, 168, None),
    ("mobilevit_xxs", 64, 320, None),
    ("levit_128s", 64, None, ONE_LAYER),
]
OTHERS = [
    ("swin_tiny_patch4_window7_224", 64, 768, None),
    ("vgg11", 64, 4096, None),
    ("inception_v3", 96, 2048, None),
    ("inception_v3", 64, None, "Kernel size"),
    ("mixer_s32_224", 64, 512, None),
    ("naflexvit_base_patch16_gap", 64, 768, None),
    ("beit_base_patch16_224", 64, 768, None),
    ("vit_small_patch14_dinov2", 56, 384, None),
    ("vit_small_patch14_dinov2", 64, None, "multiples of its patches' 14 x 14"),
    ("resnetv2_50", 64, None, ONE_LAYER),
    ("volo_d1_224", 64, None, "not those of one Linear layer on its pooled features"),
    ("crossvit_tiny_240", 64, None, ONE_LAYER),
    ("maxvit_rmlp_pico_rw_256", 64, 256, None),
    ("densenet121", 64, 1024, None),
]
TABLE = [*QUICK, *(pytest.param(*row, marks=SLOW) for row in OTHERS)]


def task_of(student: Student, teacher: Encoder | None) -> DistillTask:
    """As much of a task as trying its models out takes."""
    task = DistillTask.__new__(DistillTask)
    parts = {"module": student, "teacher": teacher, "compute": Compute()}
    task.__dict__ |= parts | {"preprocess": Preprocess.of(student)}
    task.__dict__["teacher_preprocess"] = Preprocess.of(teacher or student)
    return task


def wanted(size: int) -> dict[str, object]:
    return Preprocess((size, size), (0.5,) * 3, (0.25,) * 3).to_cfg()


@pytest.mark.parametrize(("name", "size", "features", "told"), TABLE)
def test_each_is_a_student_or_is_refused_in_one_line(name, size, features, told):
    def tried() -> Student:
        student = Student(create(name, 5, wanted(size)))
        task_of(student, None).try_out(size)
        return student

    if told is not None:
        with pytest.raises((ConfigError, RuntimeError, ValueError), match=told):
            tried()
        return
    student = tried()
    logits, found = student.eval()(torch.rand(2, 3, size, size))
    assert (logits.shape, found.shape, student.width) == ((2, 5), (2, features), features)


@pytest.mark.parametrize("name", [*dict.fromkeys(row[0] for row in QUICK)])
def test_each_is_a_teacher_at_its_own_size(name):
    model = timm.create_model(name)
    model.reset_classifier(0)
    teacher = Encoder(model).eval()
    size = teacher.pretrained_cfg["input_size"][1]
    task_of(Student(create("resnet18_cifar_w16_s2", 5, wanted(16))), teacher).try_out(16)
    assert Preprocess.of(teacher).size == (size, size)


@SLOW
@pytest.mark.parametrize("name", [*dict.fromkeys(row[0] for row in OTHERS)])
def test_so_are_the_others(name):
    test_each_is_a_teacher_at_its_own_size(name)


def test_a_teacher_without_pooled_features_is_refused_by_name():
    teacher = Encoder(timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="")).eval()
    task = task_of(Student(create("resnet18_cifar_w16_s2", 5, wanted(16))), teacher)
    with pytest.raises(
        ConfigError, match=r"teacher, a vit_tiny_patch16_224, .* are \(197, 192\) of an image"
    ):
        task.try_out(16)


def test_a_model_that_cannot_be_built_for_a_size_is_one_line(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("integer modulo by zero\nsecond line")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        ConfigError, match="'resnet18' cannot be built for images of 8 x 8 pixels: integer"
    ) as told:
        create("resnet18", 5, wanted(8))
    assert "\n" not in str(told.value)
