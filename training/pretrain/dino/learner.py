"""One step of self-supervised training, without Ray: patches in, weights changed, figures out.

`Learner` holds everything that a step reads or changes, so its state is all that a checkpoint needs beside the position in the
data. A step depends on that state and on its patches alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.precision import Precision
from training.pretrain.crops import Crops, multi_crop
from training.pretrain.dino.student_teacher import StudentTeacher
from training.pretrain.losses.dino import Centre, dino_loss, sinkhorn_knopp
from training.pretrain.losses.koleo import koleo_loss
from training.pretrain.recipes import Recipe

State = dict[str, Any]


class Learner:
    """Student, teacher, optimiser, loss and randomness of one worker."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        steps: int,
        seed: int,
        rank: int = 0,
        device: str = "cpu",
        precision: Precision = "f32",
        parallel: bool = False,
    ) -> None:
        """Begin at step 0.

        Args:
            recipe: what to train and how.
            steps: length of the run, which schedules stretch over.
            seed: of weights (same on all ranks) and of augmentation (other on each rank).
            rank: of this worker.
            device: of torch.
            precision: "bf16" computes matrix products in bfloat16, where torch's autocast holds it safe.
            parallel: average gradients over the process group.
        """
        self.recipe, self.steps, self.step_number = recipe, steps, 0
        self.device, self.precision = torch.device(device), precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pair = StudentTeacher(recipe.network, recipe.head).to(self.device)
        self.centre = Centre(recipe.head.prototypes).to(self.device)
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + rank) % 2**63)
        torch.manual_seed((seed * 1_000_003 + rank + 500_009) % 2**63)  # stochastic depth
        self.optimiser = torch.optim.AdamW(
            _groups(self.pair.student), lr=0.0, betas=recipe.betas, foreach=True
        )
        self._student: nn.Module = (
            DistributedDataParallel(self.pair.student) if parallel else self.pair.student
        )
        self.pair.student.train()

    def step(self, patches: Tensor) -> dict[str, float]:
        """Learn from uint8 patches [N, H, W, 3].

        Returns:
            Figures of this step on this worker: losses, gradient norm and scheduled values.
        """
        recipe, step, steps = self.recipe, self.step_number, self.steps
        rate, decay = recipe.learning_rate.at(step, steps), recipe.weight_decay.at(step, steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay if group["decays"] else 0.0
        crops = multi_crop(patches.to(self.device), recipe.crops, self.generator)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            targets = self._targets(crops.wide, recipe.teacher_temperature.at(step, steps))
            scores, cls = self._student(crops)
        dino = dino_loss(scores, targets, recipe.student_temperature)
        koleo = (
            torch.stack([koleo_loss(view) for view in cls]).mean()
            if recipe.koleo
            else torch.zeros((), device=self.device)
        )
        loss = dino + recipe.koleo * koleo
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if step < recipe.freeze_prototypes * steps:
            self.pair.student.head.prototypes.grad = None
        norm = nn.utils.clip_grad_norm_(self.pair.student.parameters(), recipe.clip)
        self.optimiser.step()
        momentum = recipe.momentum.at(step, steps)
        self.pair.follow(momentum)
        self.step_number += 1
        figures = {"loss": loss, "dino": dino, "koleo": koleo, "gradient_norm": norm}
        return {name: float(value.detach()) for name, value in figures.items()} | {
            "learning_rate": rate,
            "momentum": momentum,
        }

    @torch.no_grad()
    def _targets(self, wide: Tensor, temperature: float) -> Tensor:
        """Teacher's probabilities [W, N, K]."""
        scores, _ = self.pair.teacher(Crops(wide=wide, near=wide[:0]))
        flat = scores.flatten(0, 1)
        if self.recipe.centring == "sinkhorn":
            return sinkhorn_knopp(flat, temperature).view(scores.shape)
        targets: Tensor = self.centre(flat, temperature)
        return targets.view(scores.shape)

    def shared_state(self) -> State:
        """What is the same on all workers: step, weights, optimiser, centre."""
        return {
            "step": self.step_number,
            "pair": self.pair.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "centre": self.centre.state_dict(),
        }

    def own_state(self) -> State:
        """What each worker has of its own: the states of its random generators."""
        return {"generator": self.generator.get_state(), "torch": torch.get_rng_state()}

    def load(self, shared: State, own: State | None) -> None:
        """Continue from states; a worker that has no own state (there were fewer workers then) starts its generators anew."""
        self.step_number = shared["step"]
        self.pair.load_state_dict(shared["pair"])
        self.optimiser.load_state_dict(shared["optimiser"])
        self.centre.load_state_dict(shared["centre"])
        if own is not None:
            self.generator.set_state(own["generator"])
            torch.set_rng_state(own["torch"])


def _groups(module: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, scales, tokens and positions don't."""
    named = list(module.named_parameters())
    decays = [value for name, value in named if value.ndim == 2]
    keeps = [value for name, value in named if value.ndim != 2]
    return [{"params": decays, "decays": True}, {"params": keeps, "decays": False}]
