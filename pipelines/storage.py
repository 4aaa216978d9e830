"""Objects by URI: the same calls for `file://` (embedded) and `s3://` (real).

A local path is accepted wherever a URI is and becomes a `file://` URI. Credentials and endpoints of S3 come from the usual
`AWS_*` environment variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, ...). Writes are atomic: a reader sees the old object, the
new one or none. This module does not know what the bytes mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
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
PATIENCE = timedelta(minutes=1)
"""For how long a request is tried again: S3 answers 503 SlowDown until it has made room. Read when a store is first used."""


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


def object_name(uri: str) -> str:
    """Last part of a URI or path, for errors and tables."""
    return PurePosixPath(unquote(urlsplit(uri).path)).name or uri


@lru_cache(maxsize=64)
def _store(root: str) -> LocalStore | S3Store:
    if root == "file://":
        return LocalStore(prefix=None)
    bucket = urlsplit(root).netloc
    config: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        config["endpoint"] = endpoint
    allow_http = config.get("endpoint", "").startswith("http://")
    # A wait is drawn between the first and `base` times the last: by 2, waits would hardly grow, by 4 a minute has 14 tries.
    backoff = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 4,
    }
    retries = {
        "max_retries": 1000,
        "retry_timeout": PATIENCE,
        "backoff": backoff,
    }  # time alone decides
    return S3Store(
        bucket, config=config, client_options={"allow_http": allow_http}, retry_config=retries
    )


@lru_cache(maxsize=1)
def _first_user() -> int:
    """The process that used a store first: its threads serve every store, and do not live on in its forks."""
    return os.getpid()


def locate(uri: str) -> tuple[LocalStore | S3Store, str]:
    """The object store and the key within it that `uri` names.

    Raises:
        StorageError: the scheme is neither `file` nor `s3`, the URI names no object, or this process is a fork of one that has
            used a store.
    """
    uri = as_uri(uri)
    parts = urlsplit(uri)
    if parts.scheme not in ("file", "s3"):
        raise StorageError(
            f"{uri}: scheme {parts.scheme!r} is not supported; use a local path, file:// or s3://"
        )
    if parts.scheme == "s3" and ("?" in uri or "#" in uri):
        raise StorageError(
            f"{uri}: an S3 URI has neither query nor fragment; write '?' and '#' of a key as %3F and %23"
        )
    key = unquote(parts.path).lstrip("/")
    if key and not {"", ".", ".."}.isdisjoint(key.removesuffix("/").split("/")):
        raise StorageError(
            f"{uri}: has an empty part, '.' or '..' in its path; write the path without"
        )
    if _first_user() != os.getpid():
        raise StorageError(
            f"{uri}: stores can't be used in a fork of a process that has; start workers by spawn or forkserver"
        )
    return _store("file://" if parts.scheme == "file" else f"s3://{parts.netloc}"), key


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
        needed: bytes that were asked for; gaps between near ranges travel too.
    """

    requests: int = 0
    fetched: int = 0
    needed: int = 0


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
            outer.needed += meter.needed


def count_read(requests: int, fetched: int, needed: int) -> None:
    """Add reads to the open meter."""
    meter = _meter.get()
    if meter is not None:
        meter.requests += requests
        meter.fetched += fetched
        meter.needed += needed


def read_head(uri: str, count: int) -> tuple[bytes, dict[str, Any]]:
    """The first bytes of an object, at most `count`, and its metadata (`size`, `e_tag`, `version`), in one request.

    Raises:
        FileNotFoundError: there is no such object.
        obstore.exceptions.BaseError: the store does not give it.
    """
    store, key = locate(uri)
    try:
        found = obstore.get(store, key, options={"range": (0, count)})
        head, meta = bytes(found.bytes()), dict(found.meta)
    except obstore.exceptions.BaseError:
        head, meta = b"", dict(obstore.head(store, key))
        if meta["size"]:  # an empty object alone has no range
            raise
    count_read(1, len(head), len(head))
    return head, meta


def read_ranges(
    uri: str, starts: Sequence[int], ends: Sequence[int], *, version: str = ""
) -> list[memoryview]:
    """Byte ranges `[start, end)` of one object, in the order asked for; of one version of it, see `read_into`.

    Raises:
        OSError: see `read_into`.
    """
    bounds = np.append(0, np.cumsum(np.subtract(ends, starts, dtype=np.int64))).tolist()
    view = memoryview(bytearray(bounds[-1]))
    parts = [view[a:b] for a, b in pairwise(bounds)]
    read_into(uri, starts, parts, version=version)
    return parts


class ObjectChanged(OSError):  # noqa: N818
    """The object is no longer the version that was asked for."""


def file_version(status: os.stat_result) -> str:
    """What changes when a local file is replaced."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def object_version(meta: Mapping[str, Any]) -> str:
    """What changes when an object of a store is replaced; its ETag comes last."""
    return f"{meta.get('version')}:{meta['e_tag']}"


def read_into(
    uri: str, starts: Sequence[int], targets: Sequence[memoryview], *, version: str = ""
) -> None:
    """Fill each target with the bytes of one object from `start` on.

    Ranges that lie within `COALESCE_GAP` of each other travel in one request, `IN_FLIGHT` requests at a time.

    Args:
        uri: the object.
        starts: byte where each range begins.
        targets: where each goes, of its length.
        version: `file_version` or `object_version` that the ranges belong to; any where empty.

    Raises:
        ObjectChanged: the object has another version.
        OSError: the object ends before a range does, or can't be read.
    """
    runs = _runs(starts, [len(target) for target in targets])
    local = local_path(uri)
    if local is not None:
        _read_local(local, runs, starts, targets, version)
    else:
        _read_remote(uri, runs, starts, targets, version)
    count_read(len(runs), sum(end - start for start, end, _ in runs), sum(map(len, targets)))


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


def _read_local(
    path: Path,
    runs: Sequence[Run],
    starts: Sequence[int],
    targets: Sequence[memoryview],
    version: str,
) -> None:
    """Scattered reads: the system copies each byte once, to where it is wanted."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if version and file_version(os.fstat(handle)) != version:
            raise ObjectChanged("has been replaced")
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


def _read_remote(
    uri: str,
    runs: Sequence[Run],
    starts: Sequence[int],
    targets: Sequence[memoryview],
    version: str,
) -> None:
    store, key = locate(uri)
    e_tag = version.partition(":")[2]
    matching: dict[str, Any] = {"if_match": e_tag} if e_tag not in ("", "None") else {}

    def read(run: Run) -> None:
        first, end, members = run
        try:
            block = memoryview(
                obstore.get(store, key, options={"range": (first, end), **matching}).bytes()
            )
        except obstore.exceptions.PreconditionError:  # its text holds the path
            raise ObjectChanged("has been replaced") from None
        if len(block) < end - first:
            raise OSError(f"ends at byte {first + len(block)} where {end} is needed")
        _copy(block, first, members, starts, targets)

    if len(runs) == 1:
        read(runs[0])
    else:
        list(_fetchers().map(read, runs))


def _copy(
    block: memoryview,
    first: int,
    members: list[int],
    starts: Sequence[int],
    targets: Sequence[memoryview],
) -> None:
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
