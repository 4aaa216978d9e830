"""The numbers of DINO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from training.pretrain.crops import CropConfig
from training.pretrain.dino.head import HeadConfig
from training.pretrain.schedules import Cosine, WarmUp


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """What DINO needs in addition to what every recipe has.

    Attributes:
        head: shape of the DINO head.
        crops: views and their augmentation.
        momentum: of the teacher.
        teacher_temperature: of the teacher's targets.
        student_temperature: of the student's softmax.
        centring: what keeps targets from collapsing.
        koleo: weight of the KoLeo loss.
        freeze_prototypes: share of the run during which prototypes stay.
    """

    name: ClassVar = "dino"
    head: HeadConfig
    crops: CropConfig
    momentum: Cosine = field(default_factory=lambda: Cosine(start=0.994, end=1.0))
    teacher_temperature: WarmUp = field(
        default_factory=lambda: WarmUp(start=0.04, end=0.07, share=0.3)
    )
    student_temperature: float = 0.1
    centring: Literal["sinkhorn", "centre"] = "sinkhorn"
    koleo: float = 0.1
    freeze_prototypes: float = 0.01
