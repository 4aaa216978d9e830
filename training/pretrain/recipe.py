"""What a run of self-supervised training learns and how: the numbers that all methods share, and
the method with its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from training.encoder.efficientnet import EfficientNetConfig
from training.encoder.network import Pooling
from training.encoder.vit import ViTConfig
from training.precision import PrecisionChoice
from training.pretrain.context.config import ContextConfig
from training.pretrain.dino.config import DinoConfig
from training.pretrain.schedules import Cosine


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what is learnt from given patches, except the seed.

    Attributes:
        name: of the recipe.
        method: with its own numbers.
        network: architecture of the encoder.
        steps: optimiser steps.
        patches_per_step: patches of ALL workers together in one step; a multiple of the number of
            workers.
        learning_rate: of AdamW.
        weight_decay: of AdamW, on matrices.
        betas: of AdamW.
        clip: maximum norm of the gradient.
        precision: of the matrix products; "auto" is bf16 where all workers' devices compute it
            fast.
        pooling: how the exported encoder makes one embedding of its tokens.
        group: shards whose patches are shuffled together on each worker.
    """

    name: str
    method: DinoConfig | ContextConfig
    network: ViTConfig | EfficientNetConfig
    steps: int
    patches_per_step: int
    learning_rate: Cosine
    weight_decay: Cosine = field(default_factory=lambda: Cosine(start=0.04, end=0.4))
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    precision: PrecisionChoice = "auto"
    pooling: Pooling = "cls+mean"
    group: int = 8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card."""
        return {**asdict(self), "method": {"name": self.method.name, **asdict(self.method)}}
