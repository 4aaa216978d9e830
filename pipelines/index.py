"""What is found out about an open slide before it is streamed: tissue, quality, fingerprint,
shards, and a picture.

    index_slide(slide, spec)    thumbnail -> artefacts -> tissue mask -> patch grid -> shard table
    write_index(indexed, root)  shard table, quality, fingerprint and picture to their addresses

Header, thumbnail and 16 patches are read. Knows no manifest and no cohort.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import addresses, cohort, storage
from pipelines.fingerprint import Fingerprint, fingerprint
from pipelines.grid import SIDE, PatchGrid, PatchSpec, patch_grid
from pipelines.icc import to_srgb
from pipelines.overview import overview_picture
from pipelines.quality import Artefacts, SlideQuality, artefacts, assess, patch_quality
from pipelines.shards import shard_rows, shards_of
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Point, Rectangle
from pipelines.slides.slide import Slide
from pipelines.stain import fit_slide_stain, sample_patches
from pipelines.tissue import tissue_mask
from pipelines.void import filled_tiles

INDEX_VERSION = 2
"""Part of every completion record's key (`completion.py`): slides are indexed again if it changed.
Raise it together with the digests in `tests/pipelines/test_index_version.py` when the same slide
gives other shards, quality or fingerprint than before."""
THUMBNAIL_SIDE = 2048
"""Longer side in pixels of the thumbnail for finding tissue: 30 um a pixel on a 60 mm slide."""


@dataclass(frozen=True, kw_only=True)
class SlideRecord:
    """What is kept of a prepared slide, with proof that its shard table is whole. Holds no name.

    Attributes:
        slide_id: the slide's identity.
        vendor: format.
        staged: whether it was copied from object storage whole to be read.
        icc: first 16 hex digits of its ICC profile's SHA-256, empty if it has none.
        mpp: micrometres per pixel of level 0.
        width, height: pixels of level 0.
        bounds_x, bounds_y, bounds_width, bounds_height: the scanned area; see `Slide.bounds`.
        n_patches: patches in all shards.
        remarks: what of the file was not read or not believed; see `Slide.remarks`.
        shards_sha256: of the shard table's bytes.
        thumbnail_sha256: of the thumbnail's pixels: the same in every copy of the slide.
    """

    slide_id: str
    vendor: str
    staged: bool
    icc: str
    mpp: float
    width: int
    height: int
    bounds_x: int
    bounds_y: int
    bounds_width: int
    bounds_height: int
    n_patches: int
    remarks: tuple[str, ...]
    shards_sha256: str
    thumbnail_sha256: str


@dataclass(frozen=True, kw_only=True)
class IndexedSlide:
    """A slide that is ready to be streamed.

    Attributes:
        record: what is kept of it in a few values.
        thumbnail: uint8 [h, w, 3].
        tissue: mask over the thumbnail that patches are placed on, bool [h, w].
        found: artefacts on the thumbnail.
        quality: what they and blur do to the tissue.
        fingerprint: scanner, resolution and colours.
        shards: rows of `pipelines.shards.SCHEMA`.
    """

    record: SlideRecord
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    found: Artefacts
    quality: SlideQuality
    fingerprint: Fingerprint
    shards: pa.Table

    @property
    def thumbnail_mpp(self) -> float:
        """Micrometres per pixel of the thumbnail."""
        return self.record.mpp * self.record.width / self.thumbnail.shape[1]

    def picture(self) -> bytes:
        """PNG of thumbnail, mask, artefacts and grid."""
        shards = shards_of(self.shards)
        scale = self.thumbnail.shape[1] / self.record.width
        left = np.concatenate([shard.x for shard in shards]) * scale
        top = np.concatenate([shard.y for shard in shards]) * scale
        side = shards[0].patch_side * scale
        boxes = np.stack([left, top, left + side, top + side], axis=1)
        return overview_picture(
            self.thumbnail, self.tissue, boxes, self.found, mpp=self.thumbnail_mpp
        )


def index_slide(
    slide: Slide, spec: PatchSpec, *, organisation: str, shard_side: int = SIDE
) -> IndexedSlide:
    """Find the tissue of an open slide, judge it, and cut it into shards.

    No patch is placed on an artefact: tissue nearer to one than half a patch does not count.

    Raises:
        SlideError: no mpp, too coarse, no tissue, or unreadable pixels.
    """
    mpp = slide.mpp
    thumbnail = slide.thumbnail(THUMBNAIL_SIDE)
    thumbnail_mpp = mpp * slide.size.width / thumbnail.shape[1]
    found = artefacts(thumbnail, mpp=thumbnail_mpp)
    tissue = tissue_mask(slide.name, thumbnail, mpp=thumbnail_mpp, found=found)
    found = replace(found, void=found.void | filled_tiles(slide, tissue, found.glass))
    tissue &= ~found.void
    usable = tissue & ~found.within(spec.size * spec.mpp / 2 / thumbnail_mpp)
    grid = patch_grid(slide, usable, spec)
    sample, glass = _sample(slide, grid, spec, found.glass)
    stain = (
        fit_slide_stain(slide.name, sample, method=spec.stain, glass=glass).to_bytes()
        if spec.stain
        else b""
    )
    shards = shard_rows(slide, grid, spec, organisation=organisation, side=shard_side, stain=stain)
    return IndexedSlide(
        record=_record(slide, thumbnail, shards),
        thumbnail=thumbnail,
        tissue=usable,
        found=found,
        quality=assess(tissue, found, patch_quality(sample, glass=glass), mpp=thumbnail_mpp),
        fingerprint=fingerprint(slide, sample, glass=glass),
        shards=shards,
    )


def _record(slide: Slide, thumbnail: NDArray[np.uint8], shards: pa.Table) -> SlideRecord:
    bounds = slide.bounds or Rectangle(Point(0, 0), slide.size)
    return SlideRecord(
        slide_id=slide.identity,
        vendor=slide.vendor,
        staged=slide.staged,
        icc=hashlib.sha256(slide.icc).hexdigest()[:16] if slide.icc else "",
        mpp=slide.mpp,
        width=slide.size.width,
        height=slide.size.height,
        bounds_x=bounds.origin.x,
        bounds_y=bounds.origin.y,
        bounds_width=bounds.size.width,
        bounds_height=bounds.size.height,
        n_patches=sum(shards["n_patches"].to_pylist()),
        remarks=slide.remarks,
        # Not of what is read back: a copy of the slide, prepared at the same time, has the same
        # address.
        shards_sha256=hashlib.sha256(cohort.to_parquet(shards)).hexdigest(),
        thumbnail_sha256=hashlib.sha256(thumbnail.tobytes()).hexdigest(),
    )


def _sample(
    slide: Slide, grid: PatchGrid, spec: PatchSpec, glass: tuple[float, float, float] | None
) -> tuple[NDArray[np.uint8], tuple[float, float, float] | None]:
    """A few patches and the glass's colour, both in the colours that stain normalisation will meet.

    Raises:
        SlideError: unreadable pixels, or an ICC profile that can't be used.
    """
    patches = sample_patches(slide, grid)
    if not (spec.icc and slide.icc):
        return patches, glass
    try:
        to_srgb(patches, slide.icc)
        if glass is None:
            return patches, None
        pixel = np.rint(np.array(glass)).astype(np.uint8).reshape(1, 1, 1, 3)
        to_srgb(pixel, slide.icc)
        red, green, blue = pixel.ravel().tolist()
        return patches, (float(red), float(green), float(blue))
    except ValueError as error:
        raise BrokenSlide(slide.name, str(error), "prepare it without ICC correction") from error


def index_files(indexed: IndexedSlide) -> dict[str, bytes]:
    """Shard table, quality, fingerprint and picture, by the name of their file."""
    return {
        addresses.SHARD_TABLE: cohort.to_parquet(indexed.shards),
        addresses.QUALITY: _json(indexed.quality.to_dict()),
        addresses.FINGERPRINT: _json(indexed.fingerprint.to_dict()),
        addresses.OVERVIEW: indexed.picture(),
    }


def write_index(indexed: IndexedSlide, root: str, *, organisation: str, spec: PatchSpec) -> None:
    """Write shard table, quality, fingerprint and picture to their addresses below `root`."""
    folder = addresses.patches(organisation, indexed.record.slide_id, spec.hash)
    for name, content in index_files(indexed).items():
        storage.write_bytes(storage.join(root, folder, name), content)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode()
