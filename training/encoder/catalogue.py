"""Everything that `--encoder` takes by name, with what is known of it before it is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from pipelines.grid import PatchSpec
from training.encoder import lite0
from training.encoder.published import PUBLISHED, PublishedEncoder
from training.encoder.published_source import FILES


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One encoder.

    Attributes:
        name: for `--encoder`.
        spec: patches that it takes.
        dimension: length of an embedding.
        licence: of the weights.
        commercial: whether it allows commercial use.
        weights: where they are: "here", on the "hub", or on the "hub, with token".
    """

    name: str
    spec: PatchSpec
    dimension: int
    licence: str
    commercial: bool
    weights: str


def catalogue() -> list[Entry]:
    """The default encoder, then the published ones."""
    default = Entry(
        name=lite0.EFFICIENTNET_LITE0,
        spec=lite0.CONFIG.spec,
        dimension=lite0.CONFIG.dimension,
        licence=lite0.CARD["licence"],
        commercial=lite0.CARD["commercial_use"],
        weights="here",
    )
    return [default, *(_entry(row) for row in PUBLISHED.values())]


def _entry(row: PublishedEncoder) -> Entry:
    hub = "hub, with token" if row.gated_access else "hub"
    return Entry(
        name=row.name,
        spec=row.spec,
        dimension=row.dimension,
        licence=row.licence,
        commercial=row.commercial,
        weights="here" if _cached(row) else hub,
    )


def _cached(row: PublishedEncoder) -> bool:
    """Whether the hub's cache on this machine has the weights."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        return False
    return any(isinstance(hub.try_to_load_from_cache(row.hub, file), str) for file in FILES)
