"""What a card says of where an encoder comes from: data by hash, recipe, seed, versions, and how
the run went.

Slides appear by identity only. Neither the name of a slide nor the location of a file enters a
card: both can carry patient data.
"""

from __future__ import annotations

from typing import Any

from training.cards import versions
from training.data_facts import DataFacts
from training.precision import Precision
from training.pretrain.checkpoints import Position
from training.pretrain.methods import method_of
from training.pretrain.recipe import Recipe


def encoder_card(
    recipe: Recipe,
    data: DataFacts,
    *,
    seed: int,
    position: Position,
    precision: Precision,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Card of an encoder from `pretrain`; `encoder.save_encoder` adds architecture, PatchSpec,
    pooling and hash.
    """
    return {
        "name": f"acinus {recipe.name}",
        "intended_use": "research use only, not a diagnosis",
        "method": method_of(recipe).description,
        "normalisation": "folded into the patch embedding: takes uint8 RGB",
        "data": data.to_dict(),
        "recipe": recipe.to_dict(),
        "seed": seed,
        "steps": position.step,
        "patches_seen": position.step * recipe.patches_per_step,
        "world_size": position.world_size,
        "precision": precision,
        "metrics": metrics,
        "versions": versions("acinus", "ray", "torch", "numpy", "safetensors"),
    }
