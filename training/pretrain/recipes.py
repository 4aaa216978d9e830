"""Recipes: a run of self-supervised training is a function that returns all its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from training.encoder.network import Pooling
from training.encoder.vit import ViTConfig
from training.errors import RunError
from training.precision import PrecisionChoice
from training.pretrain.crops import CropConfig, View
from training.pretrain.dino.head import HeadConfig
from training.pretrain.schedules import Cosine, WarmUp


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what is learnt from given patches, except the seed.

    Attributes:
        name: of the recipe.
        method: of `training.pretrain.methods`.
        network: architecture of student and teacher.
        head: shape of the DINO head.
        crops: views and their augmentation.
        steps: optimiser steps.
        patches_per_step: patches of ALL workers together in one step; a multiple of the number of
            workers.
        learning_rate: of AdamW.
        weight_decay: of AdamW, on matrices.
        betas: of AdamW.
        momentum: of the teacher.
        teacher_temperature: of the teacher's targets.
        student_temperature: of the student's softmax.
        centring: what keeps targets from collapsing.
        koleo: weight of the KoLeo loss.
        freeze_prototypes: share of the run during which prototypes stay.
        clip: maximum norm of the gradient.
        precision: of the matrix products; "auto" is bf16 where all workers' devices compute it
            fast.
        pooling: how the exported encoder makes one embedding of its tokens.
        group: shards whose patches are shuffled together on each worker.
    """

    name: str
    network: ViTConfig
    head: HeadConfig
    crops: CropConfig
    steps: int
    patches_per_step: int
    learning_rate: Cosine
    weight_decay: Cosine = field(default_factory=lambda: Cosine(start=0.04, end=0.4))
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: Cosine = field(default_factory=lambda: Cosine(start=0.994, end=1.0))
    teacher_temperature: WarmUp = field(
        default_factory=lambda: WarmUp(start=0.04, end=0.07, share=0.3)
    )
    student_temperature: float = 0.1
    centring: Literal["sinkhorn", "centre"] = "sinkhorn"
    koleo: float = 0.1
    freeze_prototypes: float = 0.01
    clip: float = 3.0
    precision: PrecisionChoice = "auto"
    pooling: Pooling = "cls+mean"
    method: str = "dino"
    group: int = 8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card."""
        return asdict(self)


def demo() -> Recipe:
    """A tiny network in about 90 s on 2 CPU cores; crops stay near the patch's own resolution, at
    which it will embed.

    In so few steps the DINO loss comes down to that of guessing, log(prototypes), and hardly
    further: class tokens of one stain start at a cosine of 0.97, so targets are nearly uniform.
    KoLeo does most of the work: linear probe on 160 tiles 0.80 with it, 0.72 without (110 steps,
    256 prototypes, one seed, spread over folds 0.06). What gained nothing beyond that spread in
    single runs of 110 or 170 steps: learning rates of 1e-3 and 2e-3, KoLeo of 0.3 or more, 64 to
    256 prototypes, centring, a standardised bottleneck, whole-patch crops at half resolution.
    """
    return Recipe(
        name="demo",
        network=ViTConfig(size=112, dim=192, depth=4, heads=3, layer_scale=None),
        head=HeadConfig(hidden=512, bottleneck=128, prototypes=1024),
        crops=CropConfig(
            global_views=View(size=112, scale=(0.2, 0.6), count=2, aspect=1.2, blur=(0.3,)),
            local_views=View(size=48, scale=(0.05, 0.2), count=2, aspect=1.2, blur=(0.3,)),
        ),
        steps=170,
        patches_per_step=32,
        learning_rate=Cosine(start=5e-4, end=1e-6, warmup=0.1),
        weight_decay=Cosine(start=0.04, end=0.1),
        momentum=Cosine(start=0.98, end=1.0),
        group=2,
    )


def vit_small() -> Recipe:
    """ViT-S/16 with registers and DINOv2's numbers, for GPUs: 7e-4 scaled by sqrt(batch / 1024)."""
    patches_per_step = 512
    return Recipe(
        name="vit_small",
        network=ViTConfig(size=224, dim=384, depth=12, heads=6, drop_path=0.1),
        head=HeadConfig(hidden=2048, bottleneck=384, prototypes=65536),
        crops=CropConfig(),
        steps=125_000,
        patches_per_step=patches_per_step,
        learning_rate=Cosine(start=7e-4 * (patches_per_step / 1024) ** 0.5, end=1e-6, warmup=0.08),
    )


RECIPES: Final[dict[str, Callable[[], Recipe]]] = {"demo": demo, "vit_small": vit_small}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RunError: there is none.
    """
    if name not in RECIPES:
        raise RunError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
