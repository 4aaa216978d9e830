"""What reading slides cost: requests and bytes, for reports and metrics."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ReadCounts:
    """What fetching shards cost: part of every run's report.

    Attributes:
        requests: range requests (reads of local files count alike).
        fetched: bytes received.
        needed: bytes of the tiles themselves.
    """

    requests: int = 0
    fetched: int = 0
    needed: int = 0

    @classmethod
    def of(cls, rows: pa.Table) -> ReadCounts:
        """Of fetched shards (`pipelines.patches.FETCHED`)."""
        return cls(
            requests=sum(rows["requests"].to_pylist()),
            fetched=sum(rows["bytes_fetched"].to_pylist()),
            needed=sum(rows["bytes_needed"].to_pylist()),
        )

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(
            requests=self.requests + other.requests,
            fetched=self.fetched + other.fetched,
            needed=self.needed + other.needed,
        )

    @property
    def amplification(self) -> float:
        """Bytes received per byte needed; 0 if no tile was needed."""
        return self.fetched / self.needed if self.needed else 0.0

    def __str__(self) -> str:
        if not self.requests:
            return "nothing"
        counts = f"{self.requests:,} requests, {self.fetched:,} bytes"
        return f"{counts}, {self.amplification:.2f} x what was needed"
