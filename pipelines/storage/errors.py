"""What can be wrong with an object or its store. Errors name the URI, the reason and the remedy.

    StorageError
    ├── InvalidUri         names no object that we can reach (a ValueError too)
    ├── ObjectNotFound     there is no such object (a FileNotFoundError too)
    ├── AccessDenied       it may not be read or written (a PermissionError too)
    ├── ObjectChanged      it is no longer the version that was asked for
    ├── ObjectTruncated    it ends before a range that was asked for
    ├── StoreFull          there is no room to write it
    └── StoreUnavailable   the store or disk does not answer as it should

Texts hold the URI, and folders may be named after patients: code that reports a slide says its name
and drops the text (`raise ... from None`). They never hold credentials.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self
from urllib.parse import urlsplit


class StorageError(Exception):
    """An object could not be read or written.

    Args:
        uri: of the object or folder.
        reason: what is wrong, as the rest of a sentence that begins with the URI.
        remedy: what the person can do.
    """

    def __init__(self, uri: str, reason: str, remedy: str) -> None:
        self.uri, self.reason, self.remedy = without_secrets(uri), reason, remedy
        super().__init__(f"{self.uri} {reason}; {remedy}")

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str]]:
        return type(self), (self.uri, self.reason, self.remedy)


class InvalidUri(StorageError, ValueError):  # noqa: N818 - the tree's words read as what happened
    """The URI names no object that we can reach."""


class ObjectNotFound(StorageError, FileNotFoundError):  # noqa: N818
    """There is no such object."""


class AccessDenied(StorageError, PermissionError):  # noqa: N818
    """The object may not be read or written."""


class ObjectChanged(StorageError):  # noqa: N818
    """The object is no longer the version that was asked for."""


class ObjectTruncated(StorageError):  # noqa: N818
    """The object ends before a range that was asked for."""


class StoreFull(StorageError):  # noqa: N818
    """There is no room for the object."""


class StoreUnavailable(StorageError):  # noqa: N818
    """The store or disk does not answer as it should."""


def without_secrets(uri: str) -> str:
    """The URI without user, password and, unless it is ours, its query: it may be a signature."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if parts.scheme not in ("", "file", "s3"):
        parts = parts._replace(query="", fragment="")
    return uri if parts == urlsplit(uri) else parts.geturl()


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_failures(uri: str, doing: str) -> Iterator[None]:
    """Turn what the system says of a local file into our errors.

    Args:
        uri: of the file.
        doing: `read`, `written`, `listed` or `removed`: for the sentence.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _of_system(uri, doing, error) from None  # its text repeats the path


def _of_system(uri: str, doing: str, error: OSError) -> StorageError:
    reason = (
        f"can't be {doing} ({os.strerror(error.errno) if error.errno else type(error).__name__})"
    )
    if doing != "written" and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ObjectNotFound(uri, "is not there", "check the path")
    if error.errno in _DENIED:
        return AccessDenied(uri, reason, "check the permissions, or use another folder")
    if error.errno in _FULL:
        return StoreFull(uri, reason, "make room there, or use another folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return StorageError(uri, reason, "check the path")
    return StoreUnavailable(uri, reason, "check the disk and try again")
