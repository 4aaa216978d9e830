"""One step of learning from context: a pretrained encoder goes on learning on tissue, without
labels.

The student starts as a copy of a frozen teacher. It sees one view of a patch under another stain
and scale; its target is the teacher's embedding of the same view as it was scanned, averaged with
that of another view of the same patch. So it learns to ignore stain, and to see in a small view
what tissue surrounds it: neighbouring tissue mostly has the same pattern. A frozen target can't
collapse (after "data2vec" and "knowledge distillation": Baevski et al. 2022, Hinton et al. 2015).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.grid import PatchSpec
from training.encoder.encoder import encoder_spec, load_encoder
from training.encoder.network import Network, Pooling, pool
from training.errors import SpecMismatch
from training.pretrain.context.config import ContextConfig
from training.pretrain.crops import View, cut_view
from training.pretrain.method import LearnerConfig, Method, State
from training.pretrain.recipe import Recipe
from training.stain_augment import jitter_stains

MIN_SCALE: Final = 1e-3
"""Smallest spread that an entry of the embedding is divided by: some hardly vary."""


class Student(nn.Module):
    """A network whose tokens are pooled, as one module for data-parallel training."""

    def __init__(self, network: Network, pooling: Pooling) -> None:
        super().__init__()
        self.network, self._pooling = network, pooling

    def forward(self, views: Tensor) -> Tensor:
        """Embeddings [N, D] of raw pixels [N, H, W, 3]."""
        return pool(self.network(views), self._pooling)


class ContextLearner:
    """Teacher, student, optimiser and randomness of one worker
    (`training.pretrain.method.Learner`).
    """

    def __init__(self, config: LearnerConfig) -> None:
        """Start at step 0.

        Raises:
            SpecMismatch: the teacher has another architecture than the recipe.
        """
        recipe, method = config.recipe, config.recipe.method
        assert isinstance(method, ContextConfig)
        self.recipe, self.method, self.step_number = recipe, method, 0
        self.device, self.precision = torch.device(config.device), config.precision
        teacher = load_encoder(method.teacher, device=config.device, precision="f32")
        if (teacher.config.network, teacher.config.pooling) != (recipe.network, recipe.pooling):
            raise SpecMismatch(
                "architecture",
                f"the recipe's {recipe.network}, {recipe.pooling}",
                f"the teacher's {teacher.config.network}, {teacher.config.pooling}",
                "give the recipe the teacher's architecture",
            )
        self.teacher = Student(teacher.network, recipe.pooling)
        self.student = deepcopy(self.teacher).requires_grad_(True)
        self.mean = torch.zeros(teacher.dimension, device=self.device)
        self.scale = torch.ones(teacher.dimension, device=self.device)
        self.generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + config.rank) % 2**63
        )
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), lr=0.0, betas=recipe.betas, foreach=True
        )
        self._student: nn.Module = (
            DistributedDataParallel(self.student) if config.parallel else self.student
        )

    def step(self, patches: Tensor) -> dict[str, float]:
        """Learn from uint8 patches [N, H, W, 3] that are larger than the view.

        Returns:
            Metrics of this step on this worker.
        """
        recipe, step, steps = self.recipe, self.step_number, self.recipe.steps
        rate = recipe.learning_rate.at(step, steps)
        for group in self.optimiser.param_groups:
            group["lr"], group["weight_decay"] = rate, recipe.weight_decay.at(step, steps)
        patches = patches.to(self.device)
        view = cut_view(patches, self.method.view, self.generator)
        elsewhere = cut_view(patches, self._unscaled(patches), self.generator)
        with torch.no_grad():
            here, there = self.teacher(_pixels(view)), self.teacher(_pixels(elsewhere))
        if step == 0:
            self._measure(torch.cat([here, there]))
        target = self._standardised(torch.lerp(here, there, self.method.surroundings))
        jittered = jitter_stains(view, self.method.stain, self.generator)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            embedding = self._student(_pixels(jittered))
        loss = F.smooth_l1_loss(self._standardised(embedding.float()), target)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), recipe.clip)
        self.optimiser.step()
        self.step_number += 1
        return {
            "loss": float(loss.detach()),
            "context": float(loss.detach()),
            "gradient_norm": float(norm),
            "learning_rate": rate,
        }

    def _unscaled(self, patches: Tensor) -> View:
        """A view at the patch's own resolution."""
        size = self.method.view.size
        share = size**2 / (patches.shape[1] * patches.shape[2])
        return View(size=size, scale=(share, share), count=1, aspect=1.0, blur=(0.0,))

    def _measure(self, embeddings: Tensor) -> None:
        """Mean and spread of the teacher's embeddings, over all workers."""
        moments = torch.stack([embeddings.mean(dim=0), embeddings.square().mean(dim=0)])
        if distributed.is_initialized():
            distributed.all_reduce(moments)
            moments /= distributed.get_world_size()
        self.mean = moments[0]
        variance = (moments[1] - moments[0].square()).clamp_min(0.0)
        self.scale = variance.sqrt().clamp_min(MIN_SCALE)

    def _standardised(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.scale

    def shared_state(self) -> State:
        """What is the same on all workers: step, weights, optimiser, the embeddings' moments."""
        return {
            "step": self.step_number,
            "student": self.student.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "moments": {"mean": self.mean, "scale": self.scale},
        }

    def own_state(self) -> State:
        """What each worker has of its own: the state of its random generator."""
        return {"generator": self.generator.get_state()}

    def load(self, shared: State, own: State | None) -> None:
        """Continue from states; a worker without own state starts its generator anew."""
        self.step_number = shared["step"]
        self.student.network.load_state_dict(shared["student"])
        self.optimiser.load_state_dict(shared["optimiser"])
        self.mean = shared["moments"]["mean"].to(self.device)
        self.scale = shared["moments"]["scale"].to(self.device)
        if own is not None:
            self.generator.set_state(own["generator"])


def _pixels(views: Tensor) -> Tensor:
    """Raw pixels [N, H, W, 3] of views [N, 3, H, W] in 0..1."""
    return 255.0 * views.permute(0, 2, 3, 1)


def _encoder_spec(recipe: Recipe, spec: PatchSpec, per_worker: int) -> PatchSpec:
    """The teacher's: a view of it is all that the student sees of a larger patch."""
    del per_worker
    assert isinstance(recipe.method, ContextConfig)
    ours = encoder_spec(recipe.method.teacher)
    if spec.size <= ours.size or spec.mpp != ours.mpp:
        raise SpecMismatch(
            "patch specification",
            f"learning from context needs patches larger than {ours.size} px at {ours.mpp:g} um "
            "per pixel",
            f"the cohort's {spec.size} px at {spec.mpp:g}",
            f"prepare it with patches of {round(1.7 * ours.size)} px at {ours.mpp:g}",
        )
    return ours


def _network(recipe: Recipe, shared: State) -> Network:
    network: Network = recipe.network.build()
    network.load_state_dict(shared["student"])
    return network


CONTEXT: Final = Method(
    description="Learning from context: a pretrained encoder learns to embed a view under any "
    "stain as its teacher embeds it and its surroundings",
    learner=ContextLearner,
    losses={"context": "distance to the teacher's embedding of view and surroundings"},
    encoder_spec=_encoder_spec,
    network=_network,
)
