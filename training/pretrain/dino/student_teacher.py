"""Two copies of encoder and head: the student learns by gradient, the teacher is the student's
moving average.

Only the student sees gradients and is wrapped for data-parallel training. The teacher is what is
exported.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from training.encoder.vit import VisionTransformer, ViTConfig
from training.pretrain.crops import Crops
from training.pretrain.dino.head import DinoHead, HeadConfig


class EncoderWithHead(nn.Module):
    """Encoder and DINO head as one module, so that one call sees all views (which data-parallel
    training needs).
    """

    def __init__(self, network: ViTConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder = VisionTransformer(network)
        self.head = DinoHead(network.dim, head)

    def forward(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """Scores [V, N, K] of all views, global ones first; class tokens [G, N, dim] of those."""
        kinds = [kind for kind in (crops.global_views, crops.local_views) if len(kind)]
        cls = [
            self.encoder.class_tokens(kind.flatten(0, 1)).view(*kind.shape[:2], -1)
            for kind in kinds
        ]
        return self.head(torch.cat(cls)), cls[0]


class StudentTeacher(nn.Module):
    """The pair. Both start with the same weights."""

    def __init__(self, network: ViTConfig, head: HeadConfig) -> None:
        super().__init__()
        self.student = EncoderWithHead(network, head)
        self.teacher = deepcopy(self.student).requires_grad_(False).eval()

    @torch.no_grad()
    def ema_update(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) *
        student.
        """
        teacher = [value.detach() for value in self.teacher.parameters()]
        student = [value.detach() for value in self.student.parameters()]
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)
