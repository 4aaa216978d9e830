"""What a model was trained on, in counts and digests: slides appear by identity only, in every
model's card.

Neither the name of a slide nor the location of a file enters a card: both can carry patient data.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

LOCATIONS = frozenset({"slide_uri"})
"""Shard columns that say where a slide is stored, not what it is."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a model was trained on.

    Attributes:
        slides: number of slides.
        shards: number of shards.
        patches: number of patches.
        slides_sha256: of the sorted slide identities.
        shards_sha256: of the shard tables in the order of slide identity and shard.
    """

    slides: int
    shards: int
    patches: int
    slides_sha256: str
    shards_sha256: str

    @classmethod
    def of(cls, shards: pa.Table) -> DataFacts:
        """The facts of rows of `pipelines.shards.SCHEMA`; neither their order nor where slides are
        stored changes them.
        """
        identities = sorted(set(shards["slide_id"].to_pylist()))
        columns = sorted(set(shards.column_names) - LOCATIONS)
        digest = hashlib.sha256()
        for batch in (
            shards.select(columns)
            .sort_by([("slide_id", "ascending"), ("shard", "ascending")])
            .to_batches(256)
        ):
            for row in batch.to_pylist():
                digest.update(
                    json.dumps(row, sort_keys=True, default=lambda value: value.hex()).encode()
                )
        return cls(
            slides=len(identities),
            shards=len(shards),
            patches=sum(shards["n_patches"].to_pylist()),
            slides_sha256=hashlib.sha256("\n".join(identities).encode()).hexdigest(),
            shards_sha256=digest.hexdigest(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: getattr(self, name)
            for name in ("slides", "shards", "patches", "slides_sha256", "shards_sha256")
        }
