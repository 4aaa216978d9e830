"""Which slides are prepared already: one record a slide, written last, so that a killed run loses
nothing that was finished.

OUT/{organisation}/prepared/{key}.json

The key is a digest of all that a slide's shard table follows from: the slide's URI and version,
PatchSpec, organisation, the largest side of a shard, the mpp that is given, the default one and
whether the objective may give it, and `index.INDEX_VERSION`. If any of these changes, the key
changes and the slide is prepared again. The record holds no slide's name and nothing of the
manifest: labels, cases and splits can change without reading a slide again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import PurePosixPath

from pipelines import addresses, storage
from pipelines.index import INDEX_VERSION, SlideRecord
from pipelines.slides.source import find_file, is_dicom, not_found

NOT_A_SLIDE = frozenset(
    {
        ".csv",
        ".geojson",
        ".jpeg",
        ".jpg",
        ".json",
        ".md",
        ".ods",
        ".parquet",
        ".pdf",
        ".png",
        ".qpdata",
        ".tsv",
        ".txt",
        ".xlsx",
    }
)
"""Suffixes of what people store next to the files of a DICOM series: manifests, annotations, notes.
They are not part of the slide, so changing them prepares nothing again."""


def slide_version(uri: str) -> str:
    """What changes when the slide is replaced: size and time, or ETag, of each of its files.

    Raises:
        SlideNotFound: there is no such object, or its store or disk does not list its files.
    """
    file = find_file(uri)
    if file is not None and not is_dicom(file.head):
        return file.version
    try:
        return _series_version(uri if file is None else file.uri.rpartition("/")[0])
    except storage.StorageError as error:
        raise not_found(uri, error) from None  # its text holds the path


def _series_version(folder: str) -> str:
    """Versions of all files of a folder that may belong to a DICOM series."""
    versions = storage.versions(folder)
    suffix_of = {uri: PurePosixPath(uri).suffix.lower() for uri in versions}
    return json.dumps({uri: versions[uri] for uri in versions if suffix_of[uri] not in NOT_A_SLIDE})


def completion_key(*parts: object) -> str:
    """32 hex digits over the parts and the version of indexing."""
    return hashlib.sha256(json.dumps([*map(str, parts), INDEX_VERSION]).encode()).hexdigest()[:32]


def find_record(root: str, organisation: str, key: str, spec_hash: str) -> SlideRecord | None:
    """The record of a key, if everything that it describes is there and whole."""
    try:
        values = json.loads(storage.read_bytes(_uri(root, organisation, key)))
        record = SlideRecord(**{**values, "remarks": tuple(values["remarks"])})
        digest = _sha256_of_shards(root, organisation, record.slide_id, spec_hash)
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or cut by a power failure
        return None
    if digest != record.shards_sha256:
        return None
    folder = addresses.uri(root, addresses.patches(organisation, record.slide_id, spec_hash))
    complete = all(storage.exists(storage.join(folder, name)) for name in addresses.NEXT_TO_SHARDS)
    return record if complete else None


def write_record(root: str, organisation: str, key: str, record: SlideRecord) -> None:
    """Write a slide's record, after everything that it describes."""
    content = json.dumps(asdict(record), sort_keys=True).encode()
    storage.write_bytes(_uri(root, organisation, key), content)


def _sha256_of_shards(root: str, organisation: str, slide_id: str, spec_hash: str) -> str:
    address = addresses.shard_table(organisation, slide_id, spec_hash)
    return hashlib.sha256(storage.read_bytes(addresses.uri(root, address))).hexdigest()


def _uri(root: str, organisation: str, key: str) -> str:
    return storage.join(root, organisation, "prepared", f"{key}.json")
