"""Objects by URI: the same calls for `file://` (embedded) and `s3://` (real).

A local path is accepted wherever a URI is and becomes a `file://` URI. Credentials and endpoints of S3 come from the usual
`AWS_*` environment variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, ...). Writes are atomic: a reader sees the old object, the
new one or none. This module does not know what the bytes mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.store import LocalStore, S3Store

Buffer = bytes | bytearray | memoryview

COALESCE_GAP = 4096
"""Bytes between two ranges up to which one request fetches both: at 100 MB/s a request's 40 us of CPU are worth about as much."""
IN_FLIGHT = 8
"""Range requests of one read at a time: at 20 ms latency more gained nothing on one core."""


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


@dataclass
class Meter:
    """What was read from stores while `metered` was open.

    Attributes:
        requests: range requests (reads of local files count alike).
        fetched: bytes that came.
    """

    requests: int = 0
    fetched: int = 0


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


def count_read(requests: int, fetched: int) -> None:
    """Add reads to the open meter."""
    meter = _meter.get()
    if meter is not None:
        meter.requests += requests
        meter.fetched += fetched


def read_head(uri: str, count: int) -> tuple[bytes, dict[str, Any]]:
    """The first bytes of an object, at most `count`, and its metadata (`size`, `e_tag`, `version`), in one request.

    Raises:
        FileNotFoundError: there is no such object.
    """
    store, key = locate(uri)
    try:
        found = obstore.get(store, key, options={"range": (0, count)})
        head = bytes(found.bytes())
    except (OSError, ValueError, obstore.exceptions.BaseError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        head, found = b"", None  # an empty object has no range
    count_read(1, len(head))
    return head, dict(found.meta if found is not None else obstore.head(store, key))


def read_ranges(uri: str, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
    """Byte ranges `[start, end)` of one object, in the order asked for.

    Ranges that lie within `COALESCE_GAP` of each other travel in one request, `IN_FLIGHT` requests at a time.

    Raises:
        OSError: the object ends before a range does, or can't be read.
    """
    runs = _runs(starts, ends)
    local = local_path(uri)
    blocks = _read_local(local, runs) if local is not None else _read_remote(uri, runs)
    count_read(len(runs), sum(map(len, blocks)))
    parts: dict[int, memoryview] = {}
    for (start, end, members), block in zip(runs, blocks, strict=True):
        if len(block) < end - start:
            raise OSError(f"ends at byte {start + len(block)} where {end} is needed")
        for k in members:
            parts[k] = block[starts[k] - start : ends[k] - start]
    return [parts[k] for k in range(len(starts))]


def _runs(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int, list[int]]]:
    """Coalesced ranges: start, end, and which of the wanted ranges lie within."""
    runs: list[tuple[int, int, list[int]]] = []
    for k in sorted(range(len(starts)), key=starts.__getitem__):
        if runs and starts[k] <= runs[-1][1] + COALESCE_GAP:
            start, end, members = runs[-1]
            members.append(k)
            runs[-1] = (start, max(end, ends[k]), members)
        else:
            runs.append((starts[k], ends[k], [k]))
    return runs


def _read_local(path: Path, runs: list[tuple[int, int, list[int]]]) -> list[memoryview]:
    handle = os.open(path, os.O_RDONLY)
    try:
        return [memoryview(os.pread(handle, end - start, start)) for start, end, _ in runs]
    finally:
        os.close(handle)


@lru_cache(maxsize=1)
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")


def _read_remote(uri: str, runs: list[tuple[int, int, list[int]]]) -> list[memoryview]:
    store, key = locate(uri)

    def read(run: tuple[int, int, list[int]]) -> memoryview:
        return memoryview(obstore.get_range(store, key, start=run[0], end=run[1]))

    if len(runs) == 1:
        return [read(runs[0])]
    return list(_fetchers().map(read, runs))


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
