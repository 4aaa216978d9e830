"""A prepared cohort as learning needs it: each slide's bag of embeddings with its grade and the
pattern of each patch.

Every slide is attempted, and what fails is recorded: a bad annotation must not end a fit, and must
not pass in silence. Embeddings are held in one temporary file that is mapped into memory, 4 bytes a
number: 100 slides of 5,000 patches with 768 numbers each take 1.5 GB of disk, in the folder that
`TMPDIR` names. Fitting reads what it needs at a time, and the system keeps as much of it in memory
as there is room for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import addresses, storage
from pipelines.annotations import (
    PATTERNS,
    UNLABELLED,
    AnnotationFrame,
    Annotations,
    patch_labels,
    read_annotations,
    share_with_patches,
)
from pipelines.cohort import load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.fingerprint import Fingerprint
from pipelines.read_counts import ReadCounts
from pipelines.shards import shards_of
from pipelines.slides.errors import ManifestError, SlideError
from training.data_facts import DataFacts
from training.encoder.cohort_embeddings import embed_on_cluster
from training.encoder.embed import Bag, embed_shards, load_bag
from training.encoder.encoder import Encoder
from training.encoder.stain_views import stain_view
from training.errors import InsufficientData
from training.slide.gleason import GleasonScore, parse_label
from training.slide.mapped_rows import MappedRows
from training.slide.neighbours import Neighbours

Progress = Callable[[int, int], None]


MIN_SHARE = 0.5
"""Share of the regions' area with patches below which a report says so: they may not be on the
tissue.
"""


@dataclass(frozen=True, kw_only=True)
class FailedSlide:
    """A slide that could not be used. As text it is a sentence that names the slide's file.

    Attributes:
        slide_id: of the slide.
        code: kind of the error, as in `pipelines.slides.errors`.
        error: the sentence, for people.
    """

    slide_id: str
    code: str
    error: str

    def __str__(self) -> str:
        return self.error

    def without_names(self) -> dict[str, str]:
        """For a file that travels with a model."""
        return {"slide_id": self.slide_id, "code": self.code}


@dataclass(frozen=True, kw_only=True)
class AnnotationUse:
    """What became of a slide's annotations. As text it is a sentence that names the slide's file.

    Attributes:
        slide: file name, for people.
        slide_id: of the slide.
        regions: features that are regions of a pattern.
        patches: patches that they label.
        share: of the regions' area that has patches, 0 to 1.
        unused: the other features and why, in one line; empty if there are none.
        unused_by_reason: the numbers of the other features in the file.
    """

    slide: str
    slide_id: str
    regions: int
    patches: int
    share: float
    unused: str
    unused_by_reason: dict[str, list[int]]

    @property
    def complete(self) -> bool:
        """Whether every feature is a region, and the regions are on the tissue."""
        return not self.unused and self.share >= MIN_SHARE

    def __str__(self) -> str:
        regions = f"{self.regions} region{'' if self.regions == 1 else 's'}"
        unused = f"; not used: {self.unused}" if self.unused else ""
        return (
            f"slide {self.slide}: {regions} label{'s' if self.regions == 1 else ''} {self.patches} "
            "patches, "
            f"{self.share:.0%} of their area has patches{unused}"
        )

    def without_names(self) -> dict[str, Any]:
        """For a file that travels with a model."""
        named = ("slide", "unused")
        return {field: value for field, value in asdict(self).items() if field not in named}


@dataclass(frozen=True, kw_only=True)
class LabelledSlide:
    """One slide with what is known of it.

    Attributes:
        name: file name, for people.
        case: pseudonymous group id.
        score: Gleason score by the slide's label; None if benign.
        bag: embeddings and positions of its N patches.
        patterns: index into PATTERNS of each patch by annotation, UNLABELLED where none covers it,
            int8 [N].
        annotation: what became of its annotations, None if it has none.
        stain_views: embeddings of the same patches under other stains, [N, D] each.
        look: the slide's fingerprint, None where the cohort has none.
    """

    name: str
    case: str
    score: GleasonScore | None
    bag: Bag
    patterns: npt.NDArray[np.int8]
    annotation: AnnotationUse | None = None
    stain_views: tuple[npt.NDArray[np.float32], ...] = ()
    look: Fingerprint | None = None

    @cached_property
    def neighbours(self) -> Neighbours:
        """Which patches are next to each other."""
        return Neighbours.of(self.bag.x, self.bag.y, self.bag.patch_side)

    @property
    def short_id(self) -> str:
        """The beginning of the slide's id, for pictures: a file name can hold a patient's."""
        return self.bag.slide_id[:12]

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
    """The slides that could be loaded.

    Attributes:
        slides: with a label, in the cohort's order.
        failed: the slides that could not be used.
        without_label: file names, by slide id, of slides that the manifest gives no label; left
            out.
        data: facts for a card.
        read: what embedding took that was not embedded before.
    """

    slides: list[LabelledSlide]
    failed: list[FailedSlide] = field(default_factory=list)
    without_label: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    read: ReadCounts = field(default_factory=ReadCounts)

    @property
    def annotations(self) -> list[AnnotationUse]:
        """What became of each slide's annotations, for a report."""
        return [slide.annotation for slide in self.slides if slide.annotation is not None]

    @property
    def annotation_remarks(self) -> list[str]:
        """One sentence, without names, if annotations are not wholly used; none otherwise."""
        used = self.annotations
        partly = sum(not use.complete for use in used)
        if not partly:
            return []
        return [
            f"annotations of {partly} of {len(used)} slides are not wholly used: features label "
            "nothing, or regions have few patches; report.json lists them by slide"
        ]


@contextmanager
def explained(cohort: LabelledCohort) -> Iterator[None]:
    """Add to an InsufficientData of the block which slides and annotations could not be used.

    Too little to learn from is often their consequence, and must not hide them.
    """
    try:
        yield
    except InsufficientData as error:
        unused = [str(use) for use in cohort.annotations if not use.complete]
        causes = [*map(str, cohort.failed), *unused]
        if cohort.without_label:
            causes.append(f"without a label: {', '.join(cohort.without_label.values())}")
        if not causes:
            raise
        raise InsufficientData("; ".join([str(error), *causes])) from error


def load_labelled_slides(
    data: str,
    encoder: Encoder,
    *,
    split: str | None = None,
    on_ray: str | None = None,
    stain_views: int = 0,
    on_shard: Progress = lambda _done, _total: None,
) -> LabelledCohort:
    """Slides of a prepared cohort with labels and embeddings; embeds what is not embedded yet.

    Args:
        data: the URI that `prepare` wrote to.
        encoder: that embeds.
        split: only slides of this split; None for all.
        on_ray: name or URI of the encoder, to embed on the cluster what is not embedded yet; None
            to do so in this process.
        stain_views: how many times each patch is embedded under another stain.
        on_shard: called with the number of shards that are done and their total.

    Raises:
        CohortError: nothing was prepared there, or the split has no slide.
        SpecMismatch: the cohort was prepared for another encoder.
        InsufficientData: no slide of it could be used.
    """
    rows = load_cohort(data, split=split).to_pylist()
    shards = load_shards(data, split=split)
    labelled = {row["slide_id"] for row in rows if row["label"]}
    encoders = [stain_view(encoder, number) for number in range(1 + stain_views)]
    total = len(encoders) * sum(id in labelled for id in shards["slide_id"].to_pylist())
    done, slides, failed, read = 0, [], [], ReadCounts()
    patches = len(encoders) * sum(
        count
        for id, count in zip(
            shards["slide_id"].to_pylist(), shards["n_patches"].to_pylist(), strict=True
        )
        if id in labelled
    )
    disk = MappedRows(patches, encoder.dimension)
    if on_ray is not None:
        wanted = shards.filter(pc.is_in(shards["slide_id"], pa.array(sorted(labelled))))
        for number in range(len(encoders)):
            read += embed_on_cluster(wanted, on_ray, data, view=number, on_shard=on_shard).read
    for row in rows:
        if not row["label"]:
            continue
        own = shards.filter(pc.equal(shards["slide_id"], row["slide_id"]))
        try:
            shown = partial(_shifted, on_shard, done, total)
            slide, taken = _load(row, own, data, encoders, shown, disk=disk)
            slides.append(slide)
            read += taken
        except SlideError as error:
            failed.append(FailedSlide(slide_id=row["slide_id"], code=error.code, error=str(error)))
        done += len(encoders) * len(own)
        on_shard(done, total)
    if not slides:
        causes = "; ".join(map(str, failed)) or "none has a label"
        raise InsufficientData(f"{data} has no usable labelled slide: {causes}; see the manifest")
    used = shards.filter(
        pc.is_in(shards["slide_id"], pa.array([slide.bag.slide_id for slide in slides]))
    )
    return LabelledCohort(
        slides=slides,
        failed=failed,
        without_label={
            row["slide_id"]: storage.object_name(row["uri"]) for row in rows if not row["label"]
        },
        data={**DataFacts.of(used).to_dict(), "labels_sha256": _labels_digest(slides)},
        read=read,
    )


def _shifted(on_shard: Progress, before: int, total: int, done: int, _of_slide: int) -> None:
    on_shard(before + done, total)


def _load(
    row: dict[str, Any],
    shards: pa.Table,
    data: str,
    encoders: Sequence[Encoder],
    on_shard: Progress,
    *,
    disk: MappedRows,
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
    drawn = Annotations()
    if row["annotation"]:
        drawn = read_annotations(row["annotation"], AnnotationFrame.of_row(row))
    read, bags = ReadCounts(), []
    for number, encoder in enumerate(encoders):
        shown = partial(_shifted, on_shard, number * len(shards), len(encoders) * len(shards))
        read += embed_shards(shards, encoder, data, on_shard=shown).read
        loaded = load_bag(shards, encoder.key, data)
        bags.append(replace(loaded, embeddings=disk.keep(loaded.embeddings)))
    bag, *views = bags
    patterns = patch_labels(drawn.regions, bag.x, bag.y, bag.patch_side)
    if drawn.regions and (patterns == UNLABELLED).all():
        raise ManifestError(
            name,
            "has annotations that cover none of its patches",
            "check that they were drawn on this slide, and what they are relative to",
        )
    use = AnnotationUse(
        slide=name,
        slide_id=row["slide_id"],
        regions=len(drawn.regions),
        patches=int((patterns != UNLABELLED).sum()),
        share=share_with_patches(drawn.regions, bag.x, bag.y, bag.patch_side),
        unused=drawn.unused_summary,
        unused_by_reason=drawn.unused_by_reason,
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
    slide = LabelledSlide(
        name=name,
        case=row["case"],
        score=score,
        bag=bag,
        patterns=patterns,
        annotation=use if row["annotation"] else None,
        stain_views=tuple(view.embeddings for view in views),
        look=_fingerprint(shards, data),
    )
    return slide, read


def _fingerprint(shards: pa.Table, data: str) -> Fingerprint | None:
    first = shards_of(shards.slice(0, 1))[0]
    address = addresses.fingerprint(first.organisation_id, first.slide_id, first.spec_hash)
    try:
        return Fingerprint.from_dict(json.loads(storage.read_bytes(addresses.uri(data, address))))
    except FileNotFoundError:
        return None


def _labels_digest(slides: list[LabelledSlide]) -> str:
    """SHA-256 over grade and patch patterns of every slide, whatever their order."""
    digest = hashlib.sha256()
    for slide in sorted(slides, key=lambda labelled: labelled.bag.slide_id):
        digest.update(f"{slide.bag.slide_id} {slide.label} ".encode() + slide.patterns.tobytes())
    return digest.hexdigest()
