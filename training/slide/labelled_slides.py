"""A prepared cohort as learning needs it: each slide's bag of embeddings with its grade and the pattern of each patch.

Every slide is attempted, and what fails is recorded: a bad annotation must not end a fit, and must not pass in silence. All bags
are held in memory, 4 bytes a number: 100 slides of 5,000 patches with 768 numbers each take 1.5 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.annotations import PATTERNS, UNLABELLED, patch_labels, read_regions
from pipelines.cohort import load_cohort, load_shards
from pipelines.patches import ReadCounts
from pipelines.shards import shards_of
from pipelines.slides.errors import ManifestError, SlideError
from training.data_facts import DataFacts
from training.encoder.embed import Bag, embed_shards, load_bag
from training.encoder.encoder import Encoder
from training.errors import InsufficientData
from training.slide.gleason import GleasonScore, parse_label

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class LabelledSlide:
    """One slide with what is known of it.

    Attributes:
        name: file name, for people.
        case: pseudonymous group id.
        score: Gleason score by the slide's label; None if benign.
        bag: embeddings and places of its N patches.
        patterns: index into PATTERNS of each patch by annotation, UNLABELLED where none covers it, int8 [N].
    """

    name: str
    case: str
    score: GleasonScore | None
    bag: Bag
    patterns: npt.NDArray[np.int8]

    @property
    def grade_group(self) -> int:
        """ISUP grade group of the label; 0 is benign."""
        return 0 if self.score is None else self.score.grade_group

    @property
    def label(self) -> str:
        """The label, spelt one way."""
        return "benign" if self.score is None else str(self.score)


@dataclass(frozen=True, kw_only=True)
class LabelledCohort:
    """The slides that could be had.

    Attributes:
        slides: with a label, in the cohort's order.
        failed: a sentence for each slide that could not be used.
        without_label: names of slides that the manifest gives no label; left out.
        data: facts for a card.
        read: what embedding took that was not embedded before.
    """

    slides: list[LabelledSlide]
    failed: list[str] = field(default_factory=list)
    without_label: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    read: ReadCounts = field(default_factory=ReadCounts)


def load_labelled_slides(
    data: str,
    encoder: Encoder,
    *,
    split: str | None = None,
    on_shard: Progress = lambda _done, _total: None,
) -> LabelledCohort:
    """Slides of a prepared cohort with labels and embeddings; embeds what is not embedded yet.

    Args:
        data: the URI that `prepare` wrote to.
        encoder: that embeds.
        split: only slides of this split; None for all.
        on_shard: called with the number of shards that are done and their total.

    Raises:
        CohortError: nothing was prepared there, or the split has no slide.
        SpecMismatch: the cohort was prepared for another encoder.
        InsufficientData: no slide of it could be used.
    """
    rows = load_cohort(data, split=split).to_pylist()
    shards = load_shards(data, split=split)
    labelled = {row["slide_id"] for row in rows if row["label"]}
    total = sum(slide_id in labelled for slide_id in shards["slide_id"].to_pylist())
    done, slides, failed, read = 0, [], [], ReadCounts()
    for row in rows:
        if not row["label"]:
            continue
        own = shards.filter(pc.equal(shards["slide_id"], row["slide_id"]))
        try:
            slide, taken = _load(row, own, data, encoder, partial(_shifted, on_shard, done, total))
            slides.append(slide)
            read += taken
        except SlideError as error:
            failed.append(str(error))
        done += len(own)
        on_shard(done, total)
    if not slides:
        raise InsufficientData(
            f"{data} has no usable labelled slide: {'; '.join(failed) or 'none has a label'}; see the manifest"
        )
    used = shards.filter(
        pc.is_in(shards["slide_id"], pa.array([slide.bag.slide_id for slide in slides]))
    )
    return LabelledCohort(
        slides=slides,
        failed=failed,
        without_label=[storage.object_name(row["uri"]) for row in rows if not row["label"]],
        data={**DataFacts.of(used).to_dict(), "labels_sha256": _labels_digest(slides)},
        read=read,
    )


def _shifted(on_shard: Progress, before: int, total: int, done: int, _of_slide: int) -> None:
    on_shard(before + done, total)


def _load(
    row: dict[str, Any], shards: pa.Table, data: str, encoder: Encoder, on_shard: Progress
) -> tuple[LabelledSlide, ReadCounts]:
    """One slide of the cohort table, and what embedding it took.

    Raises:
        SlideError: its label, annotation or pixels can't be used.
    """
    name = storage.object_name(row["uri"])
    try:
        score = parse_label(row["label"])
    except ValueError as error:
        raise ManifestError(
            name, f"has an unusable label ({error})", "correct it in the manifest and prepare again"
        ) from error
    regions = read_regions(row["annotation"]) if row["annotation"] else []
    embedded = embed_shards(shards, encoder, data, on_shard=on_shard)
    bag = load_bag(shards, encoder.hash, data)
    [shard] = shards_of(shards.slice(0, 1))
    patterns = patch_labels(regions, bag.x, bag.y, shard.patch_side)
    if regions and (patterns == UNLABELLED).all():
        raise ManifestError(
            name,
            "has annotations that cover none of its patches",
            "export them in pixels of the full slide",
        )
    tumour = patterns > PATTERNS.index("benign")
    if score is None:
        if tumour.any():
            raise ManifestError(
                name,
                f"is labelled benign, but {tumour.sum()} patches are annotated as tumour",
                "correct one of them",
            )
        patterns = np.zeros(len(bag), np.int8)  # all tissue of a benign slide is benign
    return LabelledSlide(
        name=name, case=row["case"], score=score, bag=bag, patterns=patterns
    ), embedded.read


def _labels_digest(slides: list[LabelledSlide]) -> str:
    """SHA-256 over grade and patch patterns of every slide, whatever their order."""
    digest = hashlib.sha256()
    for slide in sorted(slides, key=lambda at: at.bag.slide_id):
        digest.update(f"{slide.bag.slide_id} {slide.label} ".encode() + slide.patterns.tobytes())
    return digest.hexdigest()
