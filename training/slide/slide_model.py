"""What a slide shows as a whole: the pattern head on every patch, and gated attention over the bag
of embeddings.

Two readings of one slide that check each other. The pattern head's areas give the grade by the
pathologist's rules (`training.slide.gleason`); attention (Ilse, Tomczak & Welling, ICML 2018)
learns the grade group from slide labels alone and says which patches it looked at. Grade groups are
ordered, so the prediction is ordinal: one score and five increasing thresholds, P(group > k) =
sigmoid(score - threshold_k): one row of weights where a softmax would need six, which a dozen
slides can't fill.

To attention a bag is a set: neither the order of its patches nor where they were matters. So all
slides of a case are one bag, too. A patch's pattern is read with its neighbours on its slide
(`neighbours.py`). This module does not know what an encoder is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.annotations import PATTERNS
from pipelines.fingerprint import Fingerprint
from training.cards import Card, load_model, require_entries, save_model
from training.errors import InsufficientData, SpecMismatch
from training.limits import require_range
from training.slide.calibration import tempered, tempered_groups
from training.slide.domain import Domain, Likeness
from training.slide.gleason import (
    DEFAULT_RULES,
    GRADE_GROUPS,
    Grading,
    GradingRules,
    area_shares,
    corrected_shares,
    grade,
)
from training.slide.neighbours import Neighbours
from training.slide.pattern_head import PatternHead
from training.threads import threads_for

Embeddings = npt.NDArray[np.float32]
KIND: Final = "slide-model"
Aggregator = Literal["attention", "mean"]
MAX_STEP_VALUES: Final = 2**24
"""Numbers that attention is fitted on at a time (64 MB): slides beyond that are next in the same
step."""


@dataclass(frozen=True, kw_only=True)
class SlidePrediction:
    """One slide as the model sees it; N patches in the order of the bag.

    Attributes:
        patch_probabilities: float32 [N, 4], PATTERNS; mixed with the neighbours' where those are
            known.
        attention: float32 [N], sums to 1.
        embedding: float32 [E], the slide embedding that the risk model takes.
        grade_group_probabilities: float32 [6], ISUP grade groups 0 (benign) to 5.
        cancer_probability: of any grade group above 0.
    """

    patch_probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]
    grade_group_probabilities: npt.NDArray[np.float32]
    cancer_probability: float

    @property
    def grade_group(self) -> int:
        """The median of the prediction: of an ordinal one, the most probable group would jump
        between the ends.
        """
        return int((self.grade_group_probabilities.cumsum() < 0.5).sum())

    def with_groups(self, temperature: float) -> SlidePrediction:
        """The same with grade groups at a temperature."""
        groups = tempered_groups(self.grade_group_probabilities, temperature)
        return replace(
            self, grade_group_probabilities=groups, cancer_probability=float(1.0 - groups[0])
        )


@dataclass(frozen=True, kw_only=True)
class CasePrediction:
    """All slides of a case as the model sees them.

    Attributes:
        slides: each by itself, in the order given.
        whole: of all their patches as one bag, slide after slide in that order: attention sums to 1
            over the case, areas are those of all slides together.
    """

    slides: tuple[SlidePrediction, ...]
    whole: SlidePrediction


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Size and fitting of the attention model.

    Attributes:
        aggregator: how patches are weighed: by gated attention, or all the same ("mean"). A mean
            has nothing to learn from a few slides but what patches are like.
        hidden: width of the patch features that are pooled.
        attention: width of the gate.
        dropout: of patch features while fitting.
        epochs: passes over all slides; every pass is one step on all of them together.
        patches_per_step: maximum of random patches of a slide in a step.
        learning_rate: of AdamW, with cosine decay to 0.
        weight_decay: of AdamW.
    """

    aggregator: Aggregator = "attention"
    hidden: int = 64
    attention: int = 32
    dropout: float = 0.25
    epochs: int = 80
    patches_per_step: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        for field_name in ("hidden", "attention", "epochs", "patches_per_step"):
            require_range(field_name, getattr(self, field_name), 1)
        require_range("dropout", self.dropout, 0.0, 0.99)
        require_range("learning_rate", self.learning_rate, 0.0, 1.0)


DEFAULT_ATTENTION: Final = AttentionConfig()


class GatedAttention(nn.Module):
    """Bag of embeddings [N, D] -> attention [N], slide embedding [2 * hidden], logits of P(grade
    group > k) [5].
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dimension: int, hidden: int, attention: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))
        self.project = nn.Linear(dimension, hidden)
        self.dropout = nn.Dropout(dropout)
        self.content = nn.Linear(hidden, attention)
        self.gate = nn.Linear(hidden, attention)
        self.attend = nn.Linear(attention, 1)
        self.score = nn.Linear(hidden, 1)
        self.gaps = nn.Parameter(torch.ones(len(GRADE_GROUPS) - 2))
        self.first_threshold = nn.Parameter(
            -F.softplus(torch.ones(len(GRADE_GROUPS) - 2)).sum() / 2
        )  # symmetric around 0

    def thresholds(self) -> torch.Tensor:
        """[5], increasing whatever the parameters are."""
        return self.first_threshold + torch.cat([torch.zeros(1), F.softplus(self.gaps).cumsum(0)])

    def features(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch features [N, hidden] and unnormalised attention [N]."""
        hidden = self.dropout(torch.relu(self.project((bag - self.mean) / self.scale)))
        return hidden, self.attend(
            torch.tanh(self.content(hidden)) * torch.sigmoid(self.gate(hidden))
        ).squeeze(-1)

    def pool(
        self, hidden: torch.Tensor, energy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention [N], slide embedding and logits of one bag.

        The embedding holds the attended mean (what the tumour is like) next to the plain mean (how
        much of it there is).
        """
        attention = torch.softmax(energy, dim=0)
        attended = attention @ hidden
        logits = self.score(attended) - self.thresholds()
        return attention, torch.cat([attended, hidden.mean(dim=0)]), logits

    def forward(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the class."""
        return self.pool(*self.features(bag))


def group_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """[..., 6] from the logits of P(group > k) [..., 5]; sums to 1."""
    above = torch.sigmoid(logits)
    ends = torch.ones_like(above[..., :1]), torch.zeros_like(above[..., :1])
    return torch.cat([ends[0], above], dim=-1) - torch.cat([above, ends[1]], dim=-1)


def fit_attention(
    bags: Sequence[Embeddings],
    grade_groups: Sequence[int],
    config: AttentionConfig = DEFAULT_ATTENTION,
    *,
    cases: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> GatedAttention:
    """Fit on whole slides, and on cases of several: class-balanced ordinal likelihood. Same bags,
    config and seed: same weights, on the CPU.

    Args:
        bags: embeddings [N, D] of each slide.
        grade_groups: ISUP grade group of each slide, 0 to 5.
        config: size and fitting.
        cases: indices of the slides of each case that has several. All of them are one more bag,
            of the highest grade group among them.
        seed: of initialisation, dropout and the patches of each step.

    Raises:
        InsufficientData: fewer than two different grade groups.
    """
    if len(set(grade_groups)) < 2:
        number = "1 slide has" if len(bags) == 1 else f"{len(bags)} slides have"
        raise InsufficientData(
            f"{number} grade groups {sorted(set(grade_groups))}: two different grade groups are "
            "needed; add slides of others"
        )
    highest = [max(grade_groups[k] for k in case) for case in cases]
    targets = torch.tensor([*grade_groups, *highest])
    counts = torch.bincount(targets, minlength=len(GRADE_GROUPS)).float()
    weights = (1.0 / counts[targets]) / (1.0 / counts[targets]).sum()
    tensors = [torch.from_numpy(np.ascontiguousarray(bag, np.float32)) for bag in bags]
    learnt = [[bag] for bag in tensors] + [[tensors[k] for k in case] for case in cases]
    most = config.patches_per_step
    step = sum(min(sum(map(len, bag)), most) for bag in learnt) * tensors[0].shape[1]
    together = max(1, MAX_STEP_VALUES // (most * tensors[0].shape[1]))
    with (
        threads_for(step),
        torch.random.fork_rng(devices=[]),
    ):  # all draws are the seed's; the caller's generator is left alone
        torch.manual_seed(seed)
        model = GatedAttention(tensors[0].shape[1], config.hidden, config.attention, config.dropout)
        if config.aggregator == "mean":
            _weigh_all_the_same(model)
        _standardise(model, tensors)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs)
        for _ in range(config.epochs):
            optimiser.zero_grad()
            for first in range(0, len(learnt), together):
                some = slice(first, first + together)
                parts = [_some_patches(bag, most) for bag in learnt[some]]
                logits = _logits(model, parts)
                likelihood = group_probabilities(logits).gather(1, targets[some, None]).squeeze(1)
                loss = -(weights[some] * likelihood.clamp_min(1e-6).log()).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return model.eval()


def _weigh_all_the_same(model: GatedAttention) -> None:
    """Attention whose gate leads nowhere is the mean: one network, one file, for both."""
    for parameter in model.attend.parameters():
        nn.init.zeros_(parameter).requires_grad_(False)


def _some_patches(slides: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """Random patches of slides [N, D], `most` of all together; the rest is not copied."""
    ends = np.cumsum([len(slide) for slide in slides])
    chosen = torch.randperm(int(ends[-1]))[:most]
    return torch.cat(
        [
            slide[chosen[(chosen >= end - len(slide)) & (chosen < end)] - (end - len(slide))]
            for slide, end in zip(slides, ends.tolist(), strict=True)
        ]
    )


def _logits(model: GatedAttention, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each bag [N, D]: [S, 5]."""
    sizes = [len(part) for part in parts]
    hidden, energy = model.features(torch.cat([*parts]))
    pooled = zip(torch.split(hidden, sizes), torch.split(energy, sizes), strict=True)
    return torch.stack([model.pool(*bag)[2] for bag in pooled])


def _standardise(model: GatedAttention, bags: Sequence[torch.Tensor]) -> None:
    """Mean and spread of the features, every slide counting the same however large it is."""
    # Sums, not lists of rows: small rows kept between large temporaries split the heap, which then
    # grew by as much as the bags hold.
    for bag in bags:
        model.mean += bag.mean(dim=0) / len(bags)
    spread = torch.zeros_like(model.mean)
    for bag in bags:
        spread += ((bag - model.mean) ** 2).mean(dim=0) / len(bags)
    model.scale.copy_(spread.sqrt().clamp_min(1e-6))


class _Seen(NamedTuple):
    """Of N patches: probabilities [N, 4], features [N, hidden] and unnormalised attention [N]."""

    patch_probabilities: npt.NDArray[np.float32]
    hidden: torch.Tensor
    energy: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class SlideModel:
    """Pattern head and attention model that were fitted together, with the card that says on what.

    Attributes:
        head: patch -> PATTERNS.
        attention: bag -> slide.
        confusion: of the head on held-out patches, [4, 4], rows of the true pattern sum to 1; areas
            are corrected by it.
        rules: what counts as present where areas are graded, chosen on held-out slides.
        surroundings: share of the neighbours' mean in a patch's probabilities, likewise.
        patch_temperature: of the patches' probabilities, after the neighbours; likewise.
        group_temperature: of the attention model's grade groups, likewise.
        domain: what slides it was fitted on look like; None where it is not known.
        card: see `training.cards`: encoder_hash, spec, seed, versions, data, metrics; hash once it
            is saved.
    """

    head: PatternHead
    attention: GatedAttention
    confusion: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(len(PATTERNS)))
    rules: GradingRules = DEFAULT_RULES
    surroundings: float = 0.0
    patch_temperature: float = 1.0
    group_temperature: float = 1.0
    domain: Domain | None = None
    card: Card

    @property
    def hash(self) -> str:
        """Names the model; empty before it is saved."""
        return str(self.card.get("hash", ""))

    @property
    def area_errors(self) -> tuple[float | None, float | None]:
        """Mean absolute errors of tumour extent (share of the tissue) and of pattern 4 (percent of
        the tumour) on held-out slides; None where the card has none.
        """
        score = (self.card.get("metrics") or {}).get("areas") or {}
        return score.get("tumour_extent"), score.get("percent_pattern_4")

    @property
    def dimension(self) -> int:
        """Size of the patch embeddings it takes."""
        return self.head.dimension

    def predict(self, bag: Embeddings, neighbours: Neighbours | None = None) -> SlidePrediction:
        """Predict one slide from the embeddings [N, D] of its patches, in any order.

        Args:
            bag: embeddings.
            neighbours: of the same patches; None where positions mean nothing.

        Raises:
            SpecMismatch: the embeddings come from an encoder of another size.
            ValueError: the bag is empty or holds a value that is not finite.
        """
        return self.predict_case([(bag, neighbours)]).whole

    def predict_case(
        self, slides: Sequence[tuple[Embeddings, Neighbours | None]]
    ) -> CasePrediction:
        """Predict a case from its slides, in any order: each slide by itself, and all as one bag.

        Args:
            slides: embeddings [N, D] of each, and their neighbours on that slide, as for `predict`.

        Raises:
            SpecMismatch: as `predict`, of any slide.
            ValueError: as `predict`, of any slide, or there is no slide.
        """
        if not slides:
            raise ValueError("a case of 0 slides: it must hold one or more; give the case's slides")
        seen = [self._see(bag, neighbours) for bag, neighbours in slides]
        alone = tuple(self._read([each]) for each in seen)
        return CasePrediction(slides=alone, whole=self._read(seen) if len(seen) > 1 else alone[0])

    def _see(self, bag: Embeddings, neighbours: Neighbours | None) -> _Seen:
        """What each patch of a slide is like, before it is weighed against others."""
        if bag.ndim != 2 or bag.shape[1] != self.dimension:
            raise SpecMismatch(
                "embedding size",
                f"slide model takes [N, {self.dimension}]",
                f"the bag is {list(bag.shape)}",
                "embed with the encoder that the slide model was fitted on",
            )
        if len(bag) == 0 or not np.isfinite(bag).all():
            raise ValueError(
                f"a bag of {len(bag)} embeddings: it must hold one or more, all finite; embed the "
                "slide again"
            )
        embeddings = np.ascontiguousarray(bag, np.float32)
        with torch.inference_mode():
            hidden, energy = self.attention.features(torch.from_numpy(embeddings))
        probabilities = self.head.probabilities(embeddings)
        if neighbours is not None:
            probabilities = neighbours.mixed(probabilities, self.surroundings)
        return _Seen(tempered(probabilities, self.patch_temperature), hidden, energy)

    def _read(self, seen: Sequence[_Seen]) -> SlidePrediction:
        """All patches of these slides as one bag."""
        with torch.inference_mode():
            hidden = torch.cat([each.hidden for each in seen])
            energy = torch.cat([each.energy for each in seen])
            attention, embedding, logits = self.attention.pool(hidden, energy)
            groups = group_probabilities(logits).numpy()
        found = SlidePrediction(
            patch_probabilities=np.concatenate([each.patch_probabilities for each in seen]),
            attention=attention.numpy(),
            embedding=embedding.numpy(),
            grade_group_probabilities=groups,
            cancer_probability=float(1.0 - groups[0]),
        )
        return found.with_groups(self.group_temperature)

    def likeness(self, bag: Embeddings, look: Fingerprint | None) -> Likeness | None:
        """How much a slide is like those fitted on; None where that is not known."""
        return None if self.domain is None else self.domain.likeness(bag, look)

    def grade(self, prediction: SlidePrediction) -> Grading:
        """The grade by the areas of the patches' patterns, corrected for the head's errors, under
        the model's own rules.
        """
        return grade(
            corrected_shares(area_shares(prediction.patch_probabilities), self.confusion),
            self.rules,
        )


def save_slide_model(uri: str, model: SlideModel) -> SlideModel:
    """Write the model below `uri`; returns it with its hash in the card."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "pattern_head.weight": model.head.weight,
        "pattern_head.bias": model.head.bias,
        "confusion": model.confusion,
    }
    arrays |= {
        f"attention.{name}": tensor.numpy() for name, tensor in model.attention.state_dict().items()
    }
    if model.domain is not None:
        arrays |= {f"domain.{name}": array for name, array in model.domain.arrays().items()}
    card = {
        **model.card,
        "kind": KIND,
        "grading_rules": asdict(model.rules),
        "surroundings": model.surroundings,
        **({} if model.domain is None else {"domain": model.domain.facts()}),
        "temperatures": {"patches": model.patch_temperature, "groups": model.group_temperature},
    }
    return replace(model, card={**card, "hash": save_model(uri, arrays, card)})


def load_slide_model(uri: str) -> SlideModel:
    """Read the model below `uri`.

    Raises:
        ModelNotFound: there is none.
        BrokenModel: weights and card do not belong together.
    """
    arrays, card = load_model(uri, KIND)
    require_entries(uri, card, "encoder_hash", "spec", "grading_rules")
    head = PatternHead(
        weight=arrays.pop("pattern_head.weight"), bias=arrays.pop("pattern_head.bias")
    )
    confusion, rules = arrays.pop("confusion"), GradingRules(**card["grading_rules"])
    looks = {
        name.removeprefix("domain."): arrays.pop(name)
        for name in list(arrays)
        if name.startswith("domain.")
    }
    state = {
        name.removeprefix("attention."): torch.from_numpy(array) for name, array in arrays.items()
    }
    hidden, dimension = state["project.weight"].shape
    attention = GatedAttention(dimension, hidden, state["gate.weight"].shape[0])
    attention.load_state_dict(state)
    temperatures = card.get("temperatures", {})
    return SlideModel(
        head=head,
        attention=attention.eval(),
        confusion=confusion,
        rules=rules,
        surroundings=float(card.get("surroundings", 0.0)),
        patch_temperature=float(temperatures.get("patches", 1.0)),
        group_temperature=float(temperatures.get("groups", 1.0)),
        domain=Domain.from_parts(looks, card["domain"]) if looks else None,
        card=card,
    )
