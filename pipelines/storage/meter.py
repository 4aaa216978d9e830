"""What a piece of work read from stores: requests and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Meter:
    """What was read from stores while `metered` was open.

    Attributes:
        requests: range requests (reads of local files count alike).
        fetched: bytes that came.
        needed: bytes that were asked for; gaps between near ranges travel too.
    """

    requests: int = 0
    fetched: int = 0
    needed: int = 0


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count this thread's reads; inner meters count for outer ones too."""
    outer, meter = _meter.get(), Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)
        if outer is not None:
            outer.requests += meter.requests
            outer.fetched += meter.fetched
            outer.needed += meter.needed


def count_read(requests: int, fetched: int, needed: int) -> None:
    """Add reads to the open meter."""
    meter = _meter.get()
    if meter is not None:
        meter.requests += requests
        meter.fetched += fetched
        meter.needed += needed
