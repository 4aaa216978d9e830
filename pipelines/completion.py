"""Which slides are prepared already: one record a slide, written last, so that a killed run loses nothing that was finished.

OUT/{organisation}/prepared/{key}.json

The key is a digest of all that a slide's shard table follows from: where the slide is and its version there, PatchSpec,
resolution given by hand, and `index.INDEX_VERSION`. What changes any of these changes the key, and the slide is prepared anew. The
record holds no name of a slide and nothing of the manifest: labels, cases and splits can change without any slide being read again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from pipelines import addresses, storage
from pipelines.index import INDEX_VERSION
from pipelines.slides.source import find_file, is_dicom

BESIDE_SHARDS = (addresses.quality, addresses.fingerprint, addresses.overview)
"""What else a prepared slide has."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the cohort table tells of a prepared slide, and what proves that its shard table is whole.

    Attributes:
        slide_id: the slide's identity.
        vendor: format.
        staged: whether it was copied from object storage whole to be read.
        icc: digest of its ICC profile, empty where it has none.
        mpp: micrometres per pixel of level 0.
        width, height: pixels of level 0.
        n_patches: patches in all shards.
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
    n_patches: int
    shards_sha256: str
    thumbnail_sha256: str


def slide_version(uri: str) -> str:
    """What changes when the slide is replaced: size and time, or ETag; of each file where a slide is several.

    Raises:
        SlideNotFound: there is no such object.
    """
    file = find_file(uri)
    if file is None:
        return json.dumps(storage.versions(uri))
    if is_dicom(file.head):
        return json.dumps(storage.versions(file.uri.rpartition("/")[0]))
    return file.version


def completion_key(*parts: object) -> str:
    """32 hex digits over the parts and the version of indexing."""
    return hashlib.sha256(json.dumps([*map(str, parts), INDEX_VERSION]).encode()).hexdigest()[:32]


def find_completion(root: str, organisation: str, key: str, spec_hash: str) -> Completion | None:
    """The record of a key, if what it tells of is there and whole."""
    try:
        done = Completion(**json.loads(storage.read_bytes(_uri(root, organisation, key))))
        intact = (
            _sha256_of_shards(root, organisation, done.slide_id, spec_hash) == done.shards_sha256
        )
    except (FileNotFoundError, ValueError, TypeError):  # none, or cut off by a power failure
        return None
    there = (
        storage.exists(_at(root, address(organisation, done.slide_id, spec_hash)))
        for address in BESIDE_SHARDS
    )
    return done if intact and all(there) else None


def record_completion(root: str, organisation: str, key: str, done: Completion) -> None:
    """Write a slide's record, after everything that it tells of."""
    storage.write_bytes(
        _uri(root, organisation, key), json.dumps(asdict(done), sort_keys=True).encode()
    )


def _sha256_of_shards(root: str, organisation: str, slide_id: str, spec_hash: str) -> str:
    return hashlib.sha256(
        storage.read_bytes(_at(root, addresses.shard_table(organisation, slide_id, spec_hash)))
    ).hexdigest()


def _at(root: str, address: str) -> str:
    return storage.join(root, *address.split("/"))


def _uri(root: str, organisation: str, key: str) -> str:
    return storage.join(root, organisation, "prepared", f"{key}.json")
