"""Recipes: a run of self-supervised training is a function that returns all its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from training.encoder import lite0
from training.encoder.vit import ViTConfig
from training.errors import RunError
from training.pretrain.context.config import ContextConfig
from training.pretrain.crops import CropConfig, View
from training.pretrain.dino.config import DinoConfig
from training.pretrain.dino.head import HeadConfig
from training.pretrain.recipe import Recipe
from training.pretrain.schedules import Cosine


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
        method=DinoConfig(
            head=HeadConfig(hidden=512, bottleneck=128, prototypes=1024),
            crops=CropConfig(
                global_views=View(size=112, scale=(0.2, 0.6), count=2, aspect=1.2, blur=(0.3,)),
                local_views=View(size=48, scale=(0.05, 0.2), count=2, aspect=1.2, blur=(0.3,)),
            ),
            momentum=Cosine(start=0.98, end=1.0),
        ),
        steps=170,
        patches_per_step=32,
        learning_rate=Cosine(start=5e-4, end=1e-6, warmup=0.1),
        weight_decay=Cosine(start=0.04, end=0.1),
        group=2,
    )


def vit_small() -> Recipe:
    """ViT-S/16 with registers and DINOv2's numbers, for GPUs: 7e-4 scaled by sqrt(batch / 1024)."""
    patches_per_step = 512
    return Recipe(
        name="vit_small",
        network=ViTConfig(size=224, dim=384, depth=12, heads=6, drop_path=0.1),
        method=DinoConfig(
            head=HeadConfig(hidden=2048, bottleneck=384, prototypes=65536), crops=CropConfig()
        ),
        steps=125_000,
        patches_per_step=patches_per_step,
        learning_rate=Cosine(start=7e-4 * (patches_per_step / 1024) ** 0.5, end=1e-6, warmup=0.08),
    )


def context() -> Recipe:
    """Continue from EfficientNet-Lite0 on patches of about 380 px at 0.5 um: minutes on 2 cores.

    `experiments.md` has what it gains, and what was tried without gain.
    """
    return Recipe(
        name="context",
        method=ContextConfig(view=View(size=224, scale=(0.22, 0.52), count=1, aspect=1.1)),
        network=lite0.NETWORK,
        pooling=lite0.CONFIG.pooling,
        steps=120,
        patches_per_step=16,
        learning_rate=Cosine(start=2e-5, end=1e-6, warmup=0.1),
        weight_decay=Cosine(start=0.01, end=0.01),
        group=2,
    )


RECIPES: Final[dict[str, Callable[[], Recipe]]] = {
    "demo": demo,
    "vit_small": vit_small,
    "context": context,
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RunError: there is none.
    """
    if name not in RECIPES:
        raise RunError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
