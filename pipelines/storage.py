"""Objects by URI: the same calls for `file://` (embedded) and `s3://` (real).

A local path is accepted wherever a URI is and becomes a `file://` URI. Credentials and endpoints of S3 come from the usual
`AWS_*` environment variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, ...). Writes are atomic: a reader sees the old object, the
new one or none. This module does not know what the bytes mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.store import LocalStore, S3Store

Buffer = bytes | bytearray | memoryview


class StorageError(Exception):
    """An object could not be read or written; names the URI and what to do."""


def as_uri(path_or_uri: str | Path) -> str:
    """`file://` URI of a local path; URIs pass unchanged."""
    text = str(path_or_uri)
    if "://" in text:
        return text
    return "file://" + quote(str(Path(text).expanduser().resolve()))


def local_path(uri: str) -> Path | None:
    """The local path of a `file://` URI or plain path, None for remote objects."""
    parts = urlsplit(as_uri(uri))
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def join(uri: str, *parts: str) -> str:
    """The URI of an object below `uri`."""
    return "/".join([as_uri(uri).rstrip("/"), *(quote(part.strip("/")) for part in parts)])


@lru_cache(maxsize=64)
def _store(root: str) -> LocalStore | S3Store:
    if root == "file://":
        return LocalStore(prefix=None)
    bucket = urlsplit(root).netloc
    config: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        config["endpoint"] = endpoint
    allow_http = config.get("endpoint", "").startswith("http://")
    return S3Store(bucket, config=config, client_options={"allow_http": allow_http})


def locate(uri: str) -> tuple[LocalStore | S3Store, str]:
    """The object store and the key within it that `uri` names.

    Raises:
        StorageError: the scheme is neither `file` nor `s3`.
    """
    uri = as_uri(uri)
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return _store("file://"), unquote(parts.path).lstrip("/")
    if parts.scheme == "s3":
        return _store(f"s3://{parts.netloc}"), unquote(parts.path).lstrip("/")
    raise StorageError(f"{uri}: scheme {parts.scheme!r} is not supported; use a local path, file:// or s3://")


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is no such object.
    """
    store, key = locate(uri)
    return bytes(obstore.get(store, key).bytes())


def read_ranges(uri: str, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
    """Byte ranges `[start, end)` of one object; near ranges are coalesced into one request."""
    store, key = locate(uri)
    return [memoryview(part) for part in obstore.get_ranges(store, key, starts=list(starts), ends=list(ends))]


def write_bytes(uri: str, data: Buffer) -> None:
    """Write the object atomically, replacing what was there."""
    store, key = locate(uri)
    obstore.put(store, key, bytes(data))


def write_file(uri: str, source: Path) -> None:
    """Copy a local file to `uri` in parts (multipart on S3), atomically."""
    store, key = locate(uri)
    with source.open("rb") as stream:
        obstore.put(store, key, stream)


def exists(uri: str) -> bool:
    """Whether the object is there."""
    store, key = locate(uri)
    try:
        obstore.head(store, key)
    except FileNotFoundError:
        return False
    return True


def list_uris(prefix: str) -> list[str]:
    """URIs of all objects below a folder, sorted."""
    prefix = as_uri(prefix).rstrip("/")
    store, key = locate(prefix)
    keys = sorted(item["path"] for page in obstore.list(store, prefix=key) for item in page)
    parts = urlsplit(prefix)
    return [f"{parts.scheme}://{parts.netloc}/{quote(found)}" for found in keys]


def forget_stores() -> None:
    """Drop cached connections, so that changed endpoints or credentials take effect."""
    _store.cache_clear()
