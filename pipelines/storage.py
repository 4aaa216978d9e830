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
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import obstore
from obstore.store import LocalStore, S3Store

Buffer = bytes | bytearray | memoryview

COALESCE_GAP = 4096
"""Bytes between two ranges up to which one request fetches both: at 100 MB/s a request's 40 us of CPU are worth about as much."""
IN_FLIGHT = 8
"""Range requests of one read at a time: they hide 20 ms of latency behind decoding (`python -m tests.benchmarks.remote`)."""


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

    Raises:
        OSError: see `read_into`.
    """
    bounds = np.append(0, np.cumsum(np.subtract(ends, starts, dtype=np.int64))).tolist()
    view = memoryview(bytearray(bounds[-1]))
    parts = [view[a:b] for a, b in pairwise(bounds)]
    read_into(uri, starts, parts)
    return parts


def read_into(uri: str, starts: Sequence[int], targets: Sequence[memoryview]) -> None:
    """Fill each target with the bytes of one object from `start` on.

    Ranges that lie within `COALESCE_GAP` of each other travel in one request, `IN_FLIGHT` requests at a time.

    Raises:
        OSError: the object ends before a range does, or can't be read.
    """
    runs = _runs(starts, [len(target) for target in targets])
    local = local_path(uri)
    if local is not None:
        _read_local(local, runs, starts, targets)
    else:
        _read_remote(uri, runs, starts, targets)
    count_read(len(runs), sum(end - start for start, end, _ in runs))


MOST_RUN = 2**21
"""Bytes of one request at most, where ranges allow: several then share the way, and a row of 32 tiles still fits."""

Run = tuple[int, int, list[int]]
"""A coalesced range: start, end, and which of the wanted ranges lie within, in order."""


def _runs(starts: Sequence[int], lengths: Sequence[int]) -> list[Run]:
    runs: list[Run] = []
    for k in sorted(range(len(starts)), key=starts.__getitem__):
        start, end = starts[k], starts[k] + lengths[k]
        if runs and start <= runs[-1][1] + COALESCE_GAP and end - runs[-1][0] <= MOST_RUN:
            first, last, members = runs[-1]
            members.append(k)
            runs[-1] = (first, max(last, end), members)
        else:
            runs.append((start, end, [k]))
    return runs


def _read_local(path: Path, runs: Sequence[Run], starts: Sequence[int], targets: Sequence[memoryview]) -> None:
    """Scattered reads: the system copies each byte once, to where it is wanted."""
    handle = os.open(path, os.O_RDONLY)
    try:
        for first, end, members in runs:
            at, pieces = first, []
            for k in members:
                if starts[k] > at:
                    pieces.append(memoryview(bytearray(starts[k] - at)))
                elif starts[k] < at:
                    break  # ranges that overlap
                pieces.append(targets[k])
                at = starts[k] + len(targets[k])
            else:
                _fill(handle, first, pieces)
                continue
            block = memoryview(bytearray(end - first))
            _fill(handle, first, [block])
            _copy(block, first, members, starts, targets)
    finally:
        os.close(handle)


def _fill(handle: int, offset: int, pieces: list[memoryview]) -> None:
    for k in range(0, len(pieces), _MOST_PIECES):
        group = pieces[k : k + _MOST_PIECES]
        wanted = sum(map(len, group))
        got = os.preadv(handle, group, offset)
        while got < wanted:  # a signal or a network disk may cut a read short
            more = os.pread(handle, wanted - got, offset + got)
            if not more:
                raise OSError(f"ends at byte {offset + got} where {offset + wanted} is needed")
            _spread(group, got, more)
            got += len(more)
        offset += wanted


_MOST_PIECES = 1000
"""The system takes at most 1,024 (IOV_MAX)."""


def _spread(pieces: list[memoryview], at: int, data: bytes) -> None:
    """Write `data` at place `at` of the pieces laid end to end."""
    for piece in pieces:
        if at < len(piece) and data:
            part = data[: len(piece) - at]
            piece[at : at + len(part)] = part
            data, at = data[len(part) :], at + len(part)
        at -= len(piece)


@lru_cache(maxsize=1)
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")


def _read_remote(uri: str, runs: Sequence[Run], starts: Sequence[int], targets: Sequence[memoryview]) -> None:
    store, key = locate(uri)

    def read(run: Run) -> None:
        first, end, members = run
        block = memoryview(obstore.get_range(store, key, start=first, end=end))
        if len(block) < end - first:
            raise OSError(f"ends at byte {first + len(block)} where {end} is needed")
        _copy(block, first, members, starts, targets)

    if len(runs) == 1:
        read(runs[0])
    else:
        list(_fetchers().map(read, runs))


def _copy(block: memoryview, first: int, members: list[int], starts: Sequence[int], targets: Sequence[memoryview]) -> None:
    for k in members:
        targets[k][:] = block[starts[k] - first : starts[k] - first + len(targets[k])]


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


def versions(prefix: str) -> dict[str, str]:
    """Of every object below a folder: what changes when it is replaced (size and time, or size and ETag), by URI."""
    prefix = as_uri(prefix).rstrip("/")
    store, key = locate(prefix)
    parts = urlsplit(prefix)
    items = [item for page in obstore.list(store, prefix=key) for item in page]
    return {
        f"{parts.scheme}://{parts.netloc}/{quote(item['path'])}": f"{item['size']}:{item['e_tag']}"
        for item in sorted(items, key=lambda item: str(item["path"]))
    }


def is_folder(uri: str) -> bool:
    """Whether anything lies below the URI."""
    local = local_path(uri)
    if local is not None:
        return local.is_dir()
    store, key = locate(uri.rstrip("/"))
    return any(obstore.list(store, prefix=key, chunk_size=1))


def forget_stores() -> None:
    """Drop cached connections, so that changed endpoints or credentials take effect."""
    _store.cache_clear()
