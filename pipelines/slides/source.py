"""Where a slide is stored: finding its file, its version there, and the identity that follows.

Knows no format, only names. Takes URIs (`storage.as_uri`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from pipelines import storage
from pipelines.slides.errors import SlideNotFound
from pipelines.slides.ranges import BLOCK, RangeFile


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """What the store says of an object before it is opened.

    Attributes:
        uri: where it is.
        name: last part of the URI.
        size: bytes.
        version: changes with the content: size and mtime, or ETag; of all its files if the slide is
            a MIRAX or VMS.
        head: the first bytes, at most `ranges.BLOCK` of them.
    """

    uri: str
    name: str
    size: int
    version: str
    head: bytes = field(default=b"", repr=False)

    @classmethod
    def find(cls, uri: str) -> SlideFile:
        """Look the object up and fetch its head, in one request.

        Raises:
            SlideNotFound: there is no such object, or its store does not give it.
        """
        try:
            return _look_up(uri)
        except storage.StorageError as error:
            raise not_found(uri, error) from None  # its text holds the path

    def open(self) -> RangeFile:
        """The object as a seekable file that fetches what is read."""
        return RangeFile(self.uri, self.size, self.head)


def _companions(uri: str) -> str:
    """Versions of a slide's further files; empty for formats of one file.

    They are in a folder of its name (MIRAX), or next to it with names that start like its own
    (Hamamatsu VMS and VMU).
    """
    stem, _, suffix = uri.rpartition(".")
    if suffix.lower() == "mrxs":
        return json.dumps(storage.versions(stem))
    if suffix.lower() in ("vms", "vmu"):
        found = storage.versions(uri.rpartition("/")[0])
        return json.dumps({name: found[name] for name in found if name.startswith(stem)})
    return ""


def find_file(uri: str) -> SlideFile | None:
    """The slide's file; None if the slide is a folder or prefix of files, as a DICOM series is.

    Raises:
        SlideNotFound: there is neither.
    """
    try:
        if storage.is_folder(uri) if storage.local_path(uri) else uri.endswith("/"):
            return None
        return _look_up(uri)
    except (storage.ObjectNotFound, storage.AccessDenied) as error:
        if _is_prefix(uri):
            return None
        raise not_found(uri, error) from None
    except storage.StorageError as error:
        raise not_found(uri, error) from None


def _look_up(uri: str) -> SlideFile:
    head = storage.read_head(uri, BLOCK)
    return SlideFile(
        uri=uri,
        name=storage.object_name(uri),
        size=head.size,
        version=head.version + _companions(uri),
        head=head.data,
    )


def not_found(uri: str, error: storage.StorageError) -> SlideNotFound:
    """What a store says of a slide, without the URI: folders may be named after patients."""
    name = storage.object_name(uri)
    if isinstance(error, storage.ObjectNotFound):
        return SlideNotFound(name, "is not there or is not a file", "check the path or URI")
    if isinstance(error, storage.AccessDenied):
        return SlideNotFound(name, "may not be read", "check the URI and the permissions")
    if isinstance(error, storage.InvalidUri):
        remedy = "give a local path, or a file:// or s3:// URI"
        return SlideNotFound(name, "is not a path or URI that can be read", remedy, code="uri")
    cause = f"can't be reached in its store ({type(error).__name__})"
    return SlideNotFound(name, cause, "check the connection and the permissions")


def _is_prefix(uri: str) -> bool:
    """Whether the URI is a folder written without its slash; False if the store does not say."""
    try:
        return storage.is_folder(uri)
    except storage.StorageError:
        return False


def is_dicom(head: bytes) -> bool:
    """Whether a file starts as DICOM does (PS3.10, 7.1)."""
    return head[128:132] == b"DICM"


def is_tiff(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def identity_of(version: str, *parts: bytes) -> str:
    """Identity of a slide that is read in place: 32 hex digits.

    Of a SHA-256 over the object's version and the digests of the parts of its tile index.
    """
    digest = hashlib.sha256(version.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
