"""A prepared cohort on disk or in a bucket: which slides it holds and where their shards lie.

OUT/cohort.parquet                                     one row a slide
OUT/{organisation}/{slide_id}/{spec_hash}/shards.parquet
OUT/{organisation}/{slide_id}/{spec_hash}/overview.png
OUT/{organisation}/prepared/{key}.json                 one record a finished slide, see `pipelines.completion`
OUT/report.json                                        what the last run did, every failure with its traceback
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import addresses, storage
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
        spec: JSON of the PatchSpec.
        mpp: micrometres per pixel of level 0.
        width, height: pixels of level 0.
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
    spec: str = column(pa.string(), nullable=True)
    mpp: float = column(pa.float64(), nullable=True)
    width: int = column(pa.int32(), nullable=True)
    height: int = column(pa.int32(), nullable=True)
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
    """The inverse of `to_parquet`."""
    return pq.read_table(io.BytesIO(data)).cast(schema)


def load_cohort(out: str, *, split: str | None = None) -> pa.Table:
    """Slides of a prepared cohort, `SCHEMA`.

    Args:
        out: the URI that `prepare` wrote to.
        split: only slides of this split; None for all.

    Raises:
        CohortError: nothing was prepared there, or the split has no slide.
    """
    try:
        table = from_parquet(storage.read_bytes(storage.join(out, "cohort.parquet")), SCHEMA)
    except FileNotFoundError as error:
        raise CohortError(
            f"{out} holds no prepared cohort; run `acinus prepare MANIFEST --out {out}`"
        ) from error
    if not len(table):
        raise CohortError(
            f"{out} holds no slide: all failed to be prepared; {out}/report.json tells why"
        )
    chosen = table if split is None else table.filter(pc.equal(table["split"], split))
    if not len(chosen):
        known = ", ".join(sorted(set(table["split"].to_pylist()))) or "none"
        raise CohortError(f"{out} has no slide of split {split!r}; its splits are: {known}")
    return chosen


def load_shards(out: str, *, split: str | None = None) -> pa.Table:
    """Shard rows (`pipelines.shards.SCHEMA`) of all slides of a prepared cohort, in the cohort's order.

    Raises:
        CohortError: see `load_cohort`; or another `prepare` into the same place has not come to its end.
    """
    from pipelines import shards

    tables = []
    for row in load_cohort(out, split=split).to_pylist():
        address = addresses.shard_table(
            row["organisation_id"],
            row["slide_id"],
            PatchSpec.from_dict(json.loads(row["spec"])).hash,
        )
        content = storage.read_bytes(storage.join(out, *address.split("/")))
        if hashlib.sha256(content).hexdigest() != row["shards_sha256"]:
            cause = f"{out} is half of another preparation: the shards of slide {row['slide_id']} are not those of the cohort"
            raise CohortError(
                f"{cause}; let `acinus prepare --resume` come to its end, and keep one folder a preparation"
            )
        tables.append(from_parquet(content, shards.SCHEMA))
    return pa.concat_tables(tables)


def cohort_spec(out: str) -> PatchSpec:
    """The PatchSpec that the cohort was prepared with.

    Raises:
        CohortError: nothing was prepared there, or its slides have several specs.
    """
    specs = set(load_cohort(out)["spec"].to_pylist())
    if len(specs) != 1:
        raise CohortError(f"{out} mixes {len(specs)} PatchSpecs; prepare the cohort again with one")
    return PatchSpec.from_dict(json.loads(specs.pop()))
