"""DINO: the student's view of one crop must match the teacher's view of another (Caron et al. 2021,
Oquab et al. 2023).

The teacher's targets are kept from collapsing in one of two ways: Sinkhorn-Knopp balances the use
of prototypes within the batch and keeps no state; centring subtracts a running mean of the
teacher's logits, which is state (`Centre`) for checkpoints. Both see the batch of ALL workers, so
targets do not depend on how the batch is cut.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def _sum_over_workers(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Teacher targets [N, K] from cosines [N, K]: rows sum to 1, and prototypes are used equally
    over all workers' rows.
    """
    scores = logits.float() / temperature
    peak = scores.max()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    q = (scores - peak).exp()  # the common factor cancels, and keeps exp() from overflowing
    rows, prototypes = q.shape
    total = _sum_over_workers(torch.tensor(float(rows), device=q.device))
    q = q / _sum_over_workers(q.sum())
    for _ in range(iterations):
        q = q / (_sum_over_workers(q.sum(dim=0, keepdim=True)) * prototypes).clamp_min(1e-30)
        q = q / (q.sum(dim=1, keepdim=True) * total).clamp_min(1e-30)
    return q * total


class Centre(nn.Module):
    """The running mean of the teacher's logits, and targets sharpened around it."""

    mean: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Teacher targets [N, K] around the mean so far, which then moves towards this batch's."""
        targets = F.softmax((logits.float() - self.mean) / temperature, dim=-1)
        total = _sum_over_workers(logits.float().sum(dim=0, keepdim=True))
        rows = _sum_over_workers(torch.tensor(float(len(logits)), device=logits.device))
        self.mean.mul_(self.momentum).add_(total / rows, alpha=1.0 - self.momentum)
        return targets


def dino_loss(student: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy between every student view and every teacher view of the same patch,
    except a view with itself.

    Args:
        student: logits [S, N, K] of S views of N patches; the first T views are those that the
            teacher sees too.
        targets: teacher's probabilities [T, N, K].
        temperature: of the student's softmax.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    entropies = -torch.einsum("snk,tnk->st", log_p, targets) / student.shape[1]
    others = ~torch.eye(len(student), len(targets), dtype=torch.bool, device=student.device)
    return entropies[others].mean()
