"""Whether a model set says the same of the same tissue: cut half a patch further, stained a little
differently, scanned at another scale, computed in another order or precision.

Agreement is the intraclass correlation ICC(A,1), two-way, absolute (McGraw and Wong 1996; ICC(2,1)
of Shrout and Fleiss 1979), of the 10-year risk and of each pattern's share, over slides and
conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipelines.annotations import PATTERNS
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.shards import shards_of
from pipelines.slides.opening import open_slide
from training.encoder.encoder import Encoder, load_encoder
from training.encoder.network import rounded
from training.errors import InsufficientData
from training.model_set import ModelSet
from training.precision import Precision, precision_for
from training.risk.covariates import Covariates
from training.slide.neighbours import Neighbours
from training.stain_augment import change_density, stain_change

MIN_SLIDES: Final = 3
STRENGTH: Final = 0.05
"""Change of stain and of scale."""
MAN: Final = Covariates(age=67.0, psa=9.4, t_stage="T2b", primary=3, secondary=4)
"""Whose risk is compared; the same man on every slide, so that only the image differs."""
RISK: Final = "risk within 10 years"
MIN_SPREAD: Final = 1e-3
"""Standard deviation between slides below which a measure is the same everywhere."""

Patches = NDArray[np.uint8]
Change = Callable[[Patches], Patches]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The patches of a slide on one lattice: uint8 [N, size, size, 3], with their neighbours."""

    patches: Patches
    neighbours: Neighbours


@dataclass(frozen=True, kw_only=True)
class Reproducibility:
    """What was measured.

    Attributes:
        slides: how many.
        conditions: names of them.
        icc: by measure, over all conditions; None where all slides are alike.
        pairs: of the slides as they are and under one condition, by condition and measure.
        lowest_icc: of the measures; None where no measure differs between slides.
        lowest_of: the measure that has it.
    """

    slides: int
    conditions: tuple[str, ...]
    icc: dict[str, float | None]
    pairs: dict[str, dict[str, float | None]]
    lowest_icc: float | None
    lowest_of: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"conditions": list(self.conditions)}


def measure(
    models: ModelSet,
    slides: Sequence[str],
    *,
    others: Mapping[str, Encoder] = MappingProxyType({}),
    mpp: float | None = None,
    on_slide: Callable[[int, int], None] = lambda _done, _total: None,
) -> Reproducibility:
    """Analyse each slide under every condition.

    Args:
        models: to measure.
        slides: URIs of at least MIN_SLIDES slides that differ.
        others: the encoder computed otherwise, by the condition's name: see `other_precision`.
        mpp: micrometres per pixel of slides whose files give none.
        on_slide: called with the number of slides that are done and their total.

    Raises:
        InsufficientData: too few slides.
        SlideError: a slide cannot be analysed.
    """
    if len(set(slides)) < MIN_SLIDES:
        raise InsufficientData(
            f"{len(set(slides))} slides say nothing about reproducibility; give {MIN_SLIDES} or "
            "more that differ"
        )
    found: dict[str, list[dict[str, float]]] = {}
    for done, slide in enumerate(slides, start=1):
        for name, values in _conditions(models, slide, others, mpp):
            found.setdefault(name, []).append(values)
        on_slide(done, len(slides))
    conditions = tuple(found)

    def icc_of(names: Sequence[str]) -> dict[str, float | None]:
        return {
            each: agreement(np.array([[row[each] for row in found[name]] for name in names]).T)
            for each in found[conditions[0]][0]
        }

    icc = icc_of(conditions)
    known = {each: value for each, value in icc.items() if value is not None}
    lowest = min(known, key=lambda each: known[each], default="")
    return Reproducibility(
        slides=len(slides),
        conditions=conditions,
        icc=icc,
        pairs={name: icc_of((conditions[0], name)) for name in conditions[1:]},
        lowest_icc=known.get(lowest),
        lowest_of=lowest,
    )


def other_precision(uri: str, encoder: Encoder) -> dict[str, Encoder]:
    """The encoder at `uri` in the precision that `encoder` does not have, by the condition's name.

    bf16 is computed where the device does so fast, elsewhere results are rounded to it.
    """
    device = str(encoder.device)
    if encoder.precision == "f32" and precision_for(encoder.device) == "f32":
        other = load_encoder(uri, device=device, precision="f32")
        rounded(other.network)
        return {"rounded to bf16": other}
    precision: Precision = "f32" if encoder.precision == "bf16" else "bf16"
    return {f"in {precision}": load_encoder(uri, device=device, precision=precision)}


def agreement(values: NDArray[np.float64]) -> float | None:
    """ICC(A,1) of values [subjects, conditions]; None where subjects hardly differ."""
    subjects, conditions = values.shape
    if values.mean(axis=1).std() < MIN_SPREAD:
        return None
    grand = values.mean()
    rows, columns = values.mean(axis=1) - grand, values.mean(axis=0) - grand
    between = conditions * (rows**2).sum() / (subjects - 1)
    condition = subjects * (columns**2).sum() / (conditions - 1)
    rest = ((values - grand - rows[:, None] - columns) ** 2).sum()
    error = rest / ((subjects - 1) * (conditions - 1))
    return float(
        (between - error)
        / (between + (conditions - 1) * error + conditions * (condition - error) / subjects)
    )


def _conditions(
    models: ModelSet, slide: str, others: Mapping[str, Encoder], mpp: float | None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and findings of each condition of a slide."""
    first, shifted = tilings(models, slide, mpp=mpp)
    encoder = models.encoder
    yield "as it is", _findings(models, first, encoder.embed(first.patches))
    # In other batches, as other workers do.
    backwards = encoder.embed(np.ascontiguousarray(first.patches[::-1]))[::-1]
    yield "in another order", _findings(models, first, backwards)
    yield "half a patch further", _findings(models, shifted, encoder.embed(shifted.patches))
    for name, change in CHANGES.items():
        yield name, _findings(models, first, encoder.embed(change(first.patches)))
    for name, other in others.items():
        yield name, _findings(models, first, other.embed(first.patches))


def tilings(models: ModelSet, slide: str, *, mpp: float | None = None) -> tuple[Tiling, Tiling]:
    """The slide's lattice of patches, and the one that is half a patch further in both directions.

    Both are parts of one lattice whose patches overlap by half.
    """
    spec = replace(models.spec, overlap=models.spec.size // 2)
    with open_slide(slide, default_mpp=mpp) as opened:
        indexed = index_slide(opened, spec, organisation="reproducibility")
    batches = [
        decode_patches(fetch_shards(indexed.shards.slice(k, 1))) for k in range(len(indexed.shards))
    ]
    patches = np.concatenate([batch["patch"] for batch in batches])
    x, y = (np.concatenate([batch[axis] for batch in batches]) for axis in ("x", "y"))
    side = shards_of(indexed.shards.slice(0, 1))[0].patch_side
    odd = [np.rint((axis - axis.min()) / (side / 2)).astype(int) % 2 for axis in (x, y)]
    found = []
    for parity in (0, 1):
        own = (odd[0] == parity) & (odd[1] == parity)
        if not own.any():
            raise InsufficientData(
                f"slide {indexed.record.slide_id[:12]} has too little tissue to be cut twice; "
                "leave it out"
            )
        neighbours = Neighbours.of(x[own], y[own], side)
        found.append(Tiling(patches=patches[own], neighbours=neighbours))
    return found[0], found[1]


def _findings(
    models: ModelSet, tiling: Tiling, embeddings: NDArray[np.float32]
) -> dict[str, float]:
    bag = np.ascontiguousarray(embeddings)
    prediction = models.slide_model.predict(bag, tiling.neighbours)
    shares = models.slide_model.grade(prediction).shares
    risk = models.risk_model.predict(prediction.embedding, MAN).ten_year.estimate
    return {RISK: risk, **{f"share of {name}": float(shares[name]) for name in PATTERNS}}


def _stained(factor: float) -> Change:
    def change(patches: Patches) -> Patches:
        amount = torch.full((1, 3), factor)
        matrix, shift = stain_change(amount, torch.zeros(1, 3))
        views = torch.from_numpy(patches.copy()).permute(0, 3, 1, 2).float() / 255.0
        parts = [
            change_density(
                part.contiguous(), matrix.expand(len(part), 3, 3), shift.expand(len(part), 3)
            )
            for part in torch.split(views, 64)
        ]
        return (255.0 * torch.cat(parts)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return change


def _scaled(factor: float) -> Change:
    """Patches as at another scale: the middle of larger ones, or mirrored outwards.

    Bicubic: bilinear interpolation also blurs, which no other scale does.
    """

    def change(patches: Patches) -> Patches:
        size = patches.shape[1]
        side = round(size * factor)
        views = torch.from_numpy(patches.copy()).permute(0, 3, 1, 2).float()
        scaled = F.interpolate(views, size=(side, side), mode="bicubic", antialias=True)
        before = abs(side - size) // 2
        after = abs(side - size) - before
        if side >= size:
            scaled = scaled[:, :, before : before + size, before : before + size]
        else:
            scaled = F.pad(scaled, (before, after, before, after), mode="reflect")
        return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return change


CHANGES: Final[dict[str, Change]] = {
    f"stain {sign}{STRENGTH:.0%}": _stained(factor)
    for sign, factor in (("+", 1 + STRENGTH), ("-", 1 - STRENGTH))
} | {
    f"scale {sign}{STRENGTH:.0%}": _scaled(factor)
    for sign, factor in (("+", 1 + STRENGTH), ("-", 1 - STRENGTH))
}
