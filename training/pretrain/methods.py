"""The methods of self-supervised training, by their configs."""

from __future__ import annotations

from typing import Final

from training.pretrain.context.config import ContextConfig
from training.pretrain.context.learner import CONTEXT
from training.pretrain.dino.config import DinoConfig
from training.pretrain.dino.learner import DINO
from training.pretrain.method import Method
from training.pretrain.recipe import Recipe

METHODS: Final[dict[type, Method]] = {DinoConfig: DINO, ContextConfig: CONTEXT}


def method_of(recipe: Recipe) -> Method:
    """The method of a recipe."""
    return METHODS[type(recipe.method)]
