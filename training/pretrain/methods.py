"""The methods that recipes can name."""

from __future__ import annotations

from typing import Final

from training.pretrain.dino.learner import DINO
from training.pretrain.method import Method

METHODS: Final[dict[str, Method]] = {"dino": DINO}
