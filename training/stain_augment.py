"""Stain jitter: each view as if cut and stained in another laboratory.

A stain's amount scales its optical density and its background shifts it (Tellez et al. 2018),
channel by channel in the space of haematoxylin, eosin and a residual (Ruifrok and Johnston 2001).
All of it is affine in optical density, so a batch costs one logarithm, one 3 x 3 matrix and one
exponential.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of haematoxylin, eosin and residual (DAB) in red, green and blue (Ruifrok and
Johnston).
"""

_DARKEST = 1.0 / 256.0


@dataclass(frozen=True, kw_only=True)
class StainJitter:
    """How much stains vary.

    Attributes:
        probability: of jittering a view at all.
        amount: each stain's density is multiplied by 1 ± up to this.
        background: each stain's density is shifted by ± up to this (natural optical density).
        grey: probability that a view loses its colour, which leaves only morphology.
    """

    probability: float = 0.8
    amount: float = 0.3
    background: float = 0.05
    grey: float = 0.0


def jitter_stains(views: Tensor, jitter: StainJitter, generator: torch.Generator) -> Tensor:
    """Jitter each of `views` (float in 0..1, [N, 3, H, W]) by its own draw from `generator`."""
    n = len(views)
    uniform = torch.rand(8, n, generator=generator)
    active = uniform[6] < jitter.probability
    amount = torch.where(active, 1.0 + jitter.amount * (2.0 * uniform[0:3] - 1.0), torch.ones(()))
    background = torch.where(
        active, jitter.background * (2.0 * uniform[3:6] - 1.0), torch.zeros(())
    )
    matrix, shift = stain_change(amount.T, background.T)
    grey = torch.full((3, 3), 1.0 / 3.0)
    matrix = torch.where((uniform[7] < jitter.grey)[:, None, None], grey @ matrix, matrix)
    shift = torch.where((uniform[7] < jitter.grey)[:, None], shift @ grey, shift)
    return change_density(views, matrix.to(views.device), shift.to(views.device))


def stain_change(amount: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """The change of optical density in RGB that scales each stain by `amount` and shifts it by
    `background` (both [N, 3]).

    Returns:
        Matrix [N, 3, 3] and shift [N, 3]: new density = matrix @ density + shift.
    """
    stains = torch.tensor(STAINS, dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    to_rgb, to_stains = stains.T, torch.linalg.inv(stains.T)
    matrix = to_rgb @ (amount.double()[:, :, None] * to_stains)
    return matrix.float(), (background.double() @ to_rgb.T).float()


def change_density(views: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Apply `matrix` [N, 3, 3] and `shift` [N, 3] to the optical density of `views` (0..1, [N, 3,
    H, W]); stays in 0..1.
    """
    density = views.clamp(min=_DARKEST).log().flatten(2)  # negative density: the two signs cancel
    changed = torch.baddbmm(-shift[:, :, None], matrix, density)
    return changed.exp_().clamp_(max=1.0).view_as(views)
