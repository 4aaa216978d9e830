"""The numbers of learning from context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.limits import require_range
from training.pretrain.crops import View
from training.stain_augment import StainJitter


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What learning from context needs in addition to what every recipe has.

    Attributes:
        teacher: name, folder or URI of the encoder to continue from; it stays as it is.
        view: what the student sees of a patch; its size is the teacher's patch size.
        stain: jitter of the student's view.
        surroundings: weight, in the target, of a second view elsewhere in the patch; the rest is
            the teacher's embedding of what the student sees, without jitter.
    """

    name: ClassVar = "context"
    teacher: str = EFFICIENTNET_LITE0
    view: View
    stain: StainJitter = field(
        default_factory=lambda: StainJitter(probability=0.9, amount=0.4, background=0.1)
    )
    surroundings: float = 0.5

    def __post_init__(self) -> None:
        require_range("surroundings", self.surroundings, 0.0, 1.0)
