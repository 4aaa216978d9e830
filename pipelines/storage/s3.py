"""Objects of S3, by obstore: connections, and its errors as ours. Nothing else imports obstore."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from pipelines.storage.errors import (
    AccessDenied,
    InvalidUri,
    ObjectChanged,
    ObjectNotFound,
    ObjectTruncated,
    StorageError,
    StoreFull,
    StoreUnavailable,
)
from pipelines.storage.uris import check_parts

PATIENCE = timedelta(minutes=1)
"""For how long a request is tried again: S3 answers 503 SlowDown until it has made room. Read when
a store is first used."""
SINGLE_PUT = 64 * 2**20
"""Bytes up to which a file is sent in one request, which alone can be conditional."""


@lru_cache(maxsize=64)
def _store(bucket: str) -> S3Store:
    config: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        config["endpoint"] = endpoint
    allow_http = config.get("endpoint", "").startswith("http://")
    # A wait is drawn between the first and `base` times the last: by 2, waits would hardly grow, by
    # 4 a minute has 14 tries.
    backoff = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 4,
    }
    # Time alone decides how often a request is tried.
    retries = {"max_retries": 1000, "retry_timeout": PATIENCE, "backoff": backoff}
    return S3Store(
        bucket, config=config, client_options={"allow_http": allow_http}, retry_config=retries
    )


def forget_stores() -> None:
    """Drop cached connections, so that changed endpoints or credentials take effect."""
    _store.cache_clear()


@lru_cache(maxsize=1)
def _first_user() -> int:
    """The process that used a store first: its threads serve all, and do not live on in forks."""
    return os.getpid()


def locate(uri: str) -> tuple[S3Store, str]:
    """The store and the key within it that `uri` names.

    Raises:
        InvalidUri: the scheme is neither `file` nor `s3`, or the URI names no object.
        StorageError: this process is a fork of one that has used a store.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        reason = f"has the scheme {parts.scheme!r}, which is not supported"
        raise InvalidUri(uri, reason, "use a local path, file:// or s3://")
    if "?" in uri or "#" in uri:
        raise InvalidUri(
            uri,
            "is an S3 URI with a query or fragment",
            "write '?' and '#' of a key as %3F and %23",
        )
    if not parts.netloc or "@" in parts.netloc:
        raise InvalidUri(uri, "names no bucket", "write s3://bucket/key")
    key = unquote(parts.path).removeprefix("/")
    check_parts(uri, key)
    if _first_user() != os.getpid():
        raise StorageError(
            uri,
            "can't be used in a fork of a process that has used a store",
            "start workers by spawn or forkserver",
        )
    return _store(parts.netloc), key


@contextmanager
def failures(uri: str, doing: str) -> Iterator[None]:
    """Turn obstore's errors into ours, without its texts: they hold URLs and headers.

    Args:
        uri: of the object.
        doing: `read`, `written`, `listed` or `removed`: for the sentence.
    """
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        reason = "is not there" if "NoSuchBucket" not in str(error) else "names no existing bucket"
        raise ObjectNotFound(uri, reason, "check the URI") from None
    except (PermissionError, exceptions.UnauthenticatedError, exceptions.PermissionDeniedError):
        raise AccessDenied(
            uri, f"may not be {doing}", "check the credentials and permissions"
        ) from None
    except exceptions.PreconditionError:
        raise ObjectChanged(uri, "has been replaced", "read it again") from None
    except (exceptions.InvalidPathError, ValueError) as error:
        key = next((f" {found[1]!r}" for found in _PATH.finditer(str(error))), "")
        reason = f"can't be {doing}: a key{key} is not one that we can name"
        raise InvalidUri(uri, reason, "rename that object") from None
    except (exceptions.BaseError, OSError) as error:
        raise _of_store(uri, doing, error) from None


_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+)|(error sending request|timed out|timeout)")
_PATH = re.compile(r'path "([^"\n]+)"', re.IGNORECASE)
_CODE = re.compile(r"<Code>(\w+)</Code>")


def _of_store(uri: str, doing: str, error: Exception) -> StorageError:
    """The error for an answer that obstore has no class for."""
    text = str(error)
    status = next((found[1] or found[2] for found in _STATUS.finditer(text)), type(error).__name__)
    code = next((found[1] for found in _CODE.finditer(text)), "")
    reason = f"can't be {doing} ({status.strip()}{', ' + code if code else ''})"
    if code == "NoSuchBucket":
        return ObjectNotFound(uri, "names no existing bucket", "check the URI")
    if status.startswith(("401", "403")):
        return AccessDenied(uri, reason, "check the credentials and permissions")
    if status.startswith("416"):
        return ObjectTruncated(uri, "ends before the bytes that are needed", "copy the file again")
    if status.startswith("507") or code in ("QuotaExceeded", "XMinioStorageFull"):
        return StoreFull(uri, reason, "make room there, or use another bucket")
    return StoreUnavailable(uri, reason, "check the connection and try again")


def get(uri: str, **options: Any) -> Any:
    """obstore's answer to a GET; call within `failures`."""
    store, key = locate(uri)
    return obstore.get(store, key, options=options or None)


def head(uri: str) -> dict[str, Any]:
    """Metadata of an object; call within `failures`."""
    store, key = locate(uri)
    return dict(obstore.head(store, key))


def begin(uri: str, count: int) -> tuple[bytes, dict[str, Any]]:
    """The first bytes of an object, at most `count`, and its metadata; call within `failures`."""
    try:
        found = get(uri, range=(0, count))
        return bytes(found.bytes()), dict(found.meta)
    except exceptions.BaseError:
        meta = head(uri)
        if meta["size"]:  # only an empty object has no range
            raise
        return b"", meta


def exists(uri: str) -> bool:
    """Whether the object is there; call within `failures`."""
    if not locate(uri)[1]:  # the bucket
        return False
    try:
        head(uri)
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise
        return False
    return True


def put(uri: str, content: bytes | Path) -> None:
    """Write an object, in parts if it is long; call within `failures`."""
    store, key = locate(uri)
    obstore.put(store, key, content)


def put_once(uri: str, content: bytes | Path) -> bool:
    """Write an object unless there is one; returns whether it was written. Call within `failures`.

    Up to `SINGLE_PUT` bytes the store itself decides (`If-None-Match: *`). Longer files travel in
    parts, which obstore can't make conditional, and some stores know no conditions: there, two
    writers that begin before either ends both write. They write the same bytes, so the ETag stays.
    """
    if exists(uri):
        return False
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    store, key = locate(uri)
    if size <= SINGLE_PUT:
        try:
            obstore.put(store, key, content, mode="create")
        except exceptions.AlreadyExistsError:
            if exists(uri):
                return False  # else the writer that this one met has failed
        except exceptions.NotSupportedError:
            pass
        except exceptions.GenericError as error:
            if not re.search(r"status code: (400|501) ", str(error)):
                raise
        else:
            return True
    obstore.put(store, key, content)
    return True


def delete(uri: str) -> None:
    """Remove an object; not an error if there is none. Call within `failures`."""
    store, key = locate(uri)
    try:
        obstore.delete(store, key)
    except FileNotFoundError:
        return


def list_objects(uri: str) -> Sequence[dict[str, Any]]:
    """Metadata of all objects below a folder, by key; call within `failures`.

    Empty objects that consoles make to show a folder are left out.
    """
    store, key = locate(uri.rstrip("/"))
    items = [dict(item) for page in obstore.list(store, prefix=key) for item in page]
    folders = {key} | {
        str(folder) for item in items for folder in PurePosixPath(item["path"]).parents
    }
    kept = [item for item in items if item["size"] or item["path"] not in folders]
    return sorted(kept, key=lambda item: str(item["path"]))


def is_folder(uri: str) -> bool:
    """Whether any object is below the URI; call within `failures`."""
    store, key = locate(uri.rstrip("/"))
    return any(obstore.list(store, prefix=key, chunk_size=1))
