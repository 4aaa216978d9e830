"""From an open slide to what is known of it before any patch is read: thumbnail, tissue, shards, and the picture of all three.

    index_slide(slide, spec)    thumbnail -> tissue mask -> patch grid -> shard table
    write_index(indexed, root)  shard table and picture to their addresses

Header and thumbnail only. Knows no manifest and no cohort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import addresses, cohort, storage
from pipelines.grid import PatchSpec, patch_grid
from pipelines.overview import overview_picture
from pipelines.shards import shard_rows
from pipelines.slides.geometry import Size
from pipelines.slides.slide import Slide
from pipelines.tissue import tissue_mask

THUMBNAIL_SIDE = 2048
"""Longer side in pixels of the thumbnail that tissue is found on: 30 um a pixel on a 60 mm slide."""


@dataclass(frozen=True, kw_only=True)
class IndexedSlide:
    """A slide that is ready to be streamed.

    Attributes:
        slide_id: the slide's identity.
        vendor: format.
        mpp: micrometres per pixel of level 0.
        size: pixels of level 0.
        thumbnail: uint8 [h, w, 3].
        tissue: mask over the thumbnail, bool [h, w].
        shards: rows of `pipelines.shards.SCHEMA`.
    """

    slide_id: str
    vendor: str
    mpp: float
    size: Size
    thumbnail: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    shards: pa.Table

    @property
    def n_patches(self) -> int:
        """Patches in all shards."""
        return sum(self.shards["n_patches"].to_pylist())

    @property
    def thumbnail_mpp(self) -> float:
        """Micrometres per pixel of the thumbnail."""
        return self.mpp * self.size.width / self.thumbnail.shape[1]

    def picture(self) -> bytes:
        """PNG of thumbnail, mask and grid."""
        first = self.shards.slice(0, 1).to_pylist()[0]
        scale = self.thumbnail.shape[1] / self.size.width
        left = np.concatenate([np.array(x) for x in self.shards["x"].to_pylist()]) * scale
        top = np.concatenate([np.array(y) for y in self.shards["y"].to_pylist()]) * scale
        side = first["read_size"] * first["downsample"] * scale
        boxes = np.stack([left, top, left + side, top + side], axis=1)
        return overview_picture(self.thumbnail, self.tissue, boxes, mpp=self.thumbnail_mpp)


def index_slide(slide: Slide, spec: PatchSpec, *, organisation: str, shard_side: int = 16) -> IndexedSlide:
    """Find the tissue of an open slide and cut it into shards.

    Raises:
        SlideError: no mpp, too coarse, no tissue, or unreadable pixels.
    """
    mpp = slide.mpp
    thumbnail = slide.thumbnail(THUMBNAIL_SIDE)
    tissue = tissue_mask(slide.name, thumbnail, mpp=mpp * slide.size.width / thumbnail.shape[1])
    grid = patch_grid(slide, tissue, spec)
    return IndexedSlide(
        slide_id=slide.identity,
        vendor=slide.vendor,
        mpp=mpp,
        size=slide.size,
        thumbnail=thumbnail,
        tissue=tissue,
        shards=shard_rows(slide, grid, spec, organisation=organisation, side=shard_side),
    )


def write_index(indexed: IndexedSlide, root: str, *, organisation: str, spec: PatchSpec) -> None:
    """Write shard table and picture to their addresses below `root`."""
    table = addresses.shard_table(organisation, indexed.slide_id, spec.hash)
    storage.write_bytes(storage.join(root, *table.split("/")), cohort.to_parquet(indexed.shards))
    picture = addresses.overview(organisation, indexed.slide_id, spec.hash)
    storage.write_bytes(storage.join(root, *picture.split("/")), indexed.picture())
