"""Two copies of encoder and head: the student learns by gradient, the teacher is the student's moving average.

Only the student sees gradients and is wrapped for data-parallel training. The teacher is what is exported.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.encoder.vit import VisionTransformer, ViTConfig
from training.pretrain.crops import Crops
from training.pretrain.dino.head import DinoHead, HeadConfig


@dataclass(frozen=True)
class Seen:
    """What a network makes of views of N patches: prototype scores [V, N, K] and class tokens of the wide views [W, N, dim]."""

    scores: Tensor
    cls: Tensor


class EncoderWithHead(nn.Module):
    """Encoder and DINO head as one module, so that one call sees all views (which data-parallel training needs)."""

    def __init__(self, network: ViTConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = VisionTransformer(network)
        self.head = DinoHead(network.dim, head)

    def forward(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """Scores [V, N, K] of all views, wide ones first, and class tokens [W, N, dim] of the wide ones."""
        kinds = [kind for kind in (crops.wide, crops.near) if len(kind)]
        cls = [
            self.encoder.class_tokens(kind.flatten(0, 1)).unflatten(0, kind.shape[:2])
            for kind in kinds
        ]
        return self.head(torch.cat(cls)), cls[0]


class StudentTeacher(nn.Module):
    """The pair. Both begin with the same weights."""

    def __init__(self, network: ViTConfig, head: HeadConfig) -> None:
        super().__init__()
        self.student = EncoderWithHead(network, head)
        self.teacher = deepcopy(self.student).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) * student."""
        teacher = [value.detach() for value in self.teacher.parameters()]
        student = [value.detach() for value in self.student.parameters()]
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)
