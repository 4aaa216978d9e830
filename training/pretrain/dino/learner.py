"""One step of self-supervised training, without Ray: patches in, weights changed, metrics out.

`DinoLearner` holds everything that a step reads or changes, so its state is all that a checkpoint
needs besides the position in the data. A step depends on that state and on its patches alone.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.grid import PatchSpec
from training.encoder.vit import VisionTransformer, ViTConfig
from training.errors import RunError
from training.pretrain.crops import Crops, multi_crop
from training.pretrain.dino.config import DinoConfig
from training.pretrain.dino.student_teacher import StudentTeacher
from training.pretrain.losses.dino import Centre, dino_loss, sinkhorn_knopp
from training.pretrain.losses.koleo import koleo_loss
from training.pretrain.method import LearnerConfig, Method, State
from training.pretrain.recipe import Recipe


class DinoLearner:
    """Student, teacher, optimiser, loss and randomness of one worker
    (`training.pretrain.method.Learner`).
    """

    def __init__(self, config: LearnerConfig) -> None:
        """Start at step 0."""
        recipe, seed, rank = config.recipe, config.seed, config.rank
        network, self.method = _parts(recipe)
        self.recipe, self.step_number = recipe, 0
        self.device, self.precision = torch.device(config.device), config.precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pair = StudentTeacher(network, self.method.head).to(self.device)
        self.centre = Centre(self.method.head.prototypes).to(self.device)
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + rank) % 2**63)
        torch.manual_seed((seed * 1_000_003 + rank + 500_009) % 2**63)  # stochastic depth
        self.optimiser = torch.optim.AdamW(
            _groups(self.pair.student), lr=0.0, betas=recipe.betas, foreach=True
        )
        self._student: nn.Module = (
            DistributedDataParallel(self.pair.student) if config.parallel else self.pair.student
        )
        self.pair.student.train()

    def step(self, patches: Tensor) -> dict[str, float]:
        """Learn from uint8 patches [N, H, W, 3].

        Returns:
            Metrics of this step on this worker: losses, gradient norm and scheduled values.
        """
        recipe, step, steps = self.recipe, self.step_number, self.recipe.steps
        method = self.method
        rate, decay = recipe.learning_rate.at(step, steps), recipe.weight_decay.at(step, steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay if group["decays"] else 0.0
        crops = multi_crop(patches.to(self.device), method.crops, self.generator)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            targets = self._targets(crops.global_views, method.teacher_temperature.at(step, steps))
            scores, cls = self._student(crops)
        dino = dino_loss(scores, targets, method.student_temperature)
        koleo = (
            torch.stack([koleo_loss(view) for view in cls]).mean()
            if method.koleo
            else torch.zeros((), device=self.device)
        )
        loss = dino + method.koleo * koleo
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if step < method.freeze_prototypes * steps:
            self.pair.student.head.prototypes.grad = None
        norm = nn.utils.clip_grad_norm_(self.pair.student.parameters(), recipe.clip)
        self.optimiser.step()
        momentum = method.momentum.at(step, steps)
        self.pair.ema_update(momentum)
        self.step_number += 1
        metrics = {"loss": loss, "dino": dino, "koleo": koleo, "gradient_norm": norm}
        return {name: float(value.detach()) for name, value in metrics.items()} | {
            "learning_rate": rate,
            "momentum": momentum,
        }

    @torch.no_grad()
    def _targets(self, global_views: Tensor, temperature: float) -> Tensor:
        """Teacher's probabilities [G, N, K]."""
        scores, _ = self.pair.teacher(
            Crops(global_views=global_views, local_views=global_views[:0])
        )
        flat = scores.flatten(0, 1)
        if self.method.centring == "sinkhorn":
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
        """Continue from states; a worker that has no own state (there were fewer workers then)
        starts its generators anew.
        """
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


def _parts(recipe: Recipe) -> tuple[ViTConfig, DinoConfig]:
    """The network and DINO's numbers."""
    network, method = recipe.network, recipe.method
    if not isinstance(network, ViTConfig) or not isinstance(method, DinoConfig):
        raise RunError(f"recipe {recipe.name} is not one of a ViT trained by DINO")
    return network, method


def _encoder_spec(recipe: Recipe, spec: PatchSpec, per_worker: int) -> PatchSpec:
    _, method = _parts(recipe)
    if method.koleo and per_worker < 2:
        raise RunError(
            "KoLeo needs at least 2 patches a worker in each step; use fewer workers or koleo=0"
        )
    return spec


def _network(recipe: Recipe, shared: State) -> VisionTransformer:
    """The teacher's encoder."""
    prefix = "teacher.encoder."
    config, method = _parts(recipe)
    network = VisionTransformer(config)
    network.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in shared["pair"].items()
            if name.startswith(prefix)
        }
    )
    network.fold_normalisation(method.crops.mean, method.crops.std)
    return network


DINO: Final = Method(
    description="DINO: student and EMA teacher, multi-crop, stain jitter, KoLeo; "
    "the teacher is exported",
    learner=DinoLearner,
    losses={"dino": "DINO loss", "koleo": "KoLeo (lower: embeddings further apart)"},
    encoder_spec=_encoder_spec,
    network=_network,
)
