"""The DINO head: an MLP to a narrow bottleneck on the unit sphere, compared with learned
prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape of a `DinoHead`.

    Attributes:
        hidden: width of the two hidden layers.
        bottleneck: width of the sphere that prototypes are on.
        prototypes: number of outputs; 65,536 in DINOv2, about 1,000 for a small cohort.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536


class DinoHead(nn.Module):
    """Class tokens [N, dim] to prototype scores [N, prototypes], each a cosine in [-1, 1]."""

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, cls: Tensor) -> Tensor:
        """Cosines between each sample and each prototype."""
        return F.linear(
            F.normalize(self.mlp(cls), dim=-1, eps=1e-6),
            F.normalize(self.prototypes, dim=-1, eps=1e-6),
        )
