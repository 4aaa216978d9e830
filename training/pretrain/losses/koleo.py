"""KoLeo: the Kozachenko-Leonenko estimate of differential entropy, negated (Sablayrolles et al.
2019).

Each embedding's distance to its nearest neighbour in the batch should be large: minimising the loss
SPREADS embeddings over the sphere. (A public pathology repository has the sign reversed;
`tests/training/test_losses.py` fails if ours ever is.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo_loss(embeddings: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean of `-log(distance to the nearest neighbour)` over embeddings [N >= 2, D], after L2
    normalisation.
    """
    if len(embeddings) < 2:
        raise ValueError(
            f"KoLeo needs at least 2 embeddings to have neighbours, got {len(embeddings)}"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(embeddings.float(), dim=-1, eps=eps)
        with torch.no_grad():
            similarity = unit @ unit.T
            similarity.fill_diagonal_(-2.0)
            nearest = similarity.argmax(dim=1)
        distance = (unit - unit[nearest]).pow(2).sum(dim=1).add(eps**2).sqrt()
        return -(distance + eps).log().mean()
