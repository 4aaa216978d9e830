"""Where derived objects are stored.

Every address holds organisation, slide identity, PatchSpec hash and (for embeddings) encoder.
Addresses are keys relative to a store's root; `uri` makes the URI. They hold no file name of a
slide: file names can carry patient data.
"""

from __future__ import annotations

from typing import Final

from pipelines import storage

SHARD_TABLE: Final = "shards.parquet"
OVERVIEW: Final = "overview.png"
QUALITY: Final = "quality.json"
FINGERPRINT: Final = "fingerprint.json"
NEXT_TO_SHARDS: Final = (QUALITY, FINGERPRINT, OVERVIEW)
"""The other files that `prepare` writes of a slide."""


def uri(root: str, address: str) -> str:
    """URI of an address below a store's root."""
    return storage.join(root, *address.split("/"))


def patches(organisation: str, slide_id: str, spec_hash: str) -> str:
    """Folder of what depends on the slide and the PatchSpec only."""
    return f"{organisation}/{slide_id}/{spec_hash}"


def shard_table(organisation: str, slide_id: str, spec_hash: str) -> str:
    """Parquet: one row a shard (see `pipelines.shards.SCHEMA`)."""
    return f"{patches(organisation, slide_id, spec_hash)}/{SHARD_TABLE}"


def overview(organisation: str, slide_id: str, spec_hash: str) -> str:
    """PNG: thumbnail with tissue mask, artefacts and patch grid."""
    return f"{patches(organisation, slide_id, spec_hash)}/{OVERVIEW}"


def quality(organisation: str, slide_id: str, spec_hash: str) -> str:
    """JSON of `pipelines.quality.SlideQuality`."""
    return f"{patches(organisation, slide_id, spec_hash)}/{QUALITY}"


def fingerprint(organisation: str, slide_id: str, spec_hash: str) -> str:
    """JSON of `pipelines.fingerprint.Fingerprint`."""
    return f"{patches(organisation, slide_id, spec_hash)}/{FINGERPRINT}"


def of_slide(organisation: str, slide_id: str, spec_hash: str) -> tuple[str, ...]:
    """All that `prepare` writes of a slide."""
    folder = patches(organisation, slide_id, spec_hash)
    return tuple(f"{folder}/{name}" for name in (SHARD_TABLE, *NEXT_TO_SHARDS))


def embeddings(
    organisation: str, slide_id: str, spec_hash: str, encoder_key: str, shard: str
) -> str:
    """safetensors: the embeddings of one shard, named by `pipelines.shards.Shard.name`.

    `encoder_key` is the encoder's hash and the precision it computes in.
    """
    return f"{patches(organisation, slide_id, spec_hash)}/{encoder_key}/{shard}.safetensors"
