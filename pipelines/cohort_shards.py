"""The shards of a prepared cohort: what is streamed from it.

Apart from `cohort`, which loads no library that reads slides.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa

from pipelines import addresses, shards, storage
from pipelines.cohort import CohortError, from_parquet, load_cohort
from pipelines.grid import PatchSpec


def load_shards(out: str, *, split: str | None = None) -> pa.Table:
    """Shard rows (`pipelines.shards.SCHEMA`) of all slides of a prepared cohort, in its order.

    Raises:
        CohortError: see `load_cohort`; or another `prepare` into the same folder has not ended.
        StorageError: the store does not give them.
    """
    return pa.concat_tables(
        [_shards_of(out, row) for row in load_cohort(out, split=split).to_pylist()]
    )


def _shards_of(out: str, row: dict[str, Any]) -> pa.Table:
    """The shard table of a slide, from its row of the cohort table."""
    spec = PatchSpec.from_dict(json.loads(row["spec"]))
    address = addresses.shard_table(row["organisation_id"], row["slide_id"], spec.hash)
    try:
        content = storage.read_bytes(addresses.uri(out, address))
    except storage.ObjectNotFound:
        content = b""
    if hashlib.sha256(content).hexdigest() != row["shards_sha256"]:
        cause = f"the shards of slide {row['slide_id']} are not those of the cohort"
        remedy = "let `acinus prepare --resume` end, and keep one folder for each preparation"
        raise CohortError(f"{out} is half of another preparation: {cause}; {remedy}")
    return from_parquet(content, shards.SCHEMA)
