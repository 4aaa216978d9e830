"""A prepared cohort on disk or in a bucket: which slides it holds and where their shards are.

OUT/cohort.parquet                                     one row a slide
OUT/{organisation}/{slide_id}/{spec_hash}/shards.parquet
OUT/{organisation}/{slide_id}/{spec_hash}/overview.png
OUT/{organisation}/prepared/{key}.json                 one record a finished slide: `completion`
OUT/report.json                                        what the last run did, all failures
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.columns import column, schema_of, to_table
from pipelines.grid import PatchSpec


@dataclass(frozen=True, kw_only=True)
class CohortSlide:
    """One row of the cohort table: a prepared slide and what the manifest says of it.

    Attributes:
        organisation_id: owner of all derived objects.
        slide_id: the slide's identity.
        uri: where the slide is.
        vendor: format.
        staged: whether it was copied from object storage whole: its format can't be read in place.
        icc: digest of its ICC profile, empty if it has none.
        case: pseudonymous group id.
        split, label, annotation: of the manifest, empty if it has none.
        annotation_origin: what coordinates of the annotation are relative to, see
            `manifest.ORIGINS`.
        spec: JSON of the PatchSpec.
        mpp: micrometres per pixel of level 0.
        width, height: pixels of level 0.
        bounds_x, bounds_y, bounds_width, bounds_height: the scanned area in pixels of level 0, all
            of it if the file names none.
        n_patches: patches in all shards.
        shards_sha256: of the shard table's bytes.
    """

    organisation_id: str = column(pa.string(), nullable=True)
    slide_id: str = column(pa.string(), nullable=True)
    uri: str = column(pa.string(), nullable=True)
    vendor: str = column(pa.string(), nullable=True)
    staged: bool = column(pa.bool_(), nullable=True)
    icc: str = column(pa.string(), nullable=True)
    case: str = column(pa.string(), nullable=True)
    split: str = column(pa.string(), nullable=True)
    label: str = column(pa.string(), nullable=True)
    annotation: str = column(pa.string(), nullable=True)
    annotation_origin: str = column(pa.string(), nullable=True)
    spec: str = column(pa.string(), nullable=True)
    mpp: float = column(pa.float64(), nullable=True)
    width: int = column(pa.int32(), nullable=True)
    height: int = column(pa.int32(), nullable=True)
    bounds_x: int = column(pa.int32(), nullable=True)
    bounds_y: int = column(pa.int32(), nullable=True)
    bounds_width: int = column(pa.int32(), nullable=True)
    bounds_height: int = column(pa.int32(), nullable=True)
    n_patches: int = column(pa.int64(), nullable=True)
    shards_sha256: str = column(pa.string(), nullable=True)


SCHEMA = schema_of(CohortSlide)
"""Of the cohort table."""


def table_of(slides: Sequence[CohortSlide]) -> pa.Table:
    """The cohort table, `SCHEMA`."""
    return to_table(CohortSlide, slides)


class CohortError(Exception):
    """A prepared cohort can't be used; names it and the remedy."""


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def from_parquet(data: bytes, schema: pa.Schema) -> pa.Table:
    """The inverse of `to_parquet`.

    Raises:
        ValueError: it is not Parquet (`pyarrow.ArrowInvalid`), or of another schema.
    """
    return pq.read_table(io.BytesIO(data)).cast(schema)


def load_cohort(out: str, *, split: str | None = None) -> pa.Table:
    """Slides of a prepared cohort, `SCHEMA`.

    Args:
        out: the URI that `prepare` wrote to.
        split: only slides of this split; None for all.

    Raises:
        CohortError: nothing usable was prepared there, or the split has no slide.
        StorageError: the store does not give it.
    """
    try:
        table = from_parquet(storage.read_bytes(storage.join(out, "cohort.parquet")), SCHEMA)
    except storage.ObjectNotFound:
        remedy = f"run `acinus prepare MANIFEST --out {out}`"
        raise CohortError(f"{out} holds no prepared cohort; {remedy}") from None
    except ValueError as error:
        cause = "is damaged or of another version"
        raise CohortError(f"{out}/cohort.parquet {cause}; prepare the cohort again") from error
    if not len(table):
        cause = "holds no slide: all failed to be prepared"
        raise CohortError(f"{out} {cause}; see {out}/report.json")
    chosen = table if split is None else table.filter(pc.equal(table["split"], split))
    if not len(chosen):
        known = ", ".join(sorted(set(table["split"].to_pylist()) - {""}))
        remedy = (
            f"its splits are: {known}"
            if known
            else "its slides have no split; assign some, or take the empty split"
        )
        raise CohortError(f"{out} has no slide of split {split!r}; {remedy}")
    return chosen


def cohort_spec(out: str) -> PatchSpec:
    """The PatchSpec that the cohort was prepared with.

    Raises:
        CohortError: nothing was prepared there, or its slides have several specs.
    """
    specs = set(load_cohort(out)["spec"].to_pylist())
    if len(specs) != 1:
        raise CohortError(f"{out} mixes {len(specs)} PatchSpecs; prepare the cohort again with one")
    return PatchSpec.from_dict(json.loads(specs.pop()))
