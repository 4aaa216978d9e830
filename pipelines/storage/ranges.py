"""Many byte ranges of one object: near ones share a request, each byte goes where it is wanted.

Local files are read by the system's scattered reads, objects of S3 by several requests at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.storage import s3
from pipelines.storage.errors import ObjectChanged, ObjectTruncated, disk_failures
from pipelines.storage.meter import count_read
from pipelines.storage.objects import file_version
from pipelines.storage.uris import local_path

COALESCE_GAP = 4096
"""Bytes between two ranges up to which one request fetches both: a request's 40 us of CPU are worth
about as much at 100 MB/s."""
IN_FLIGHT = 8
"""Range requests of one read at a time: they hide 20 ms of latency behind decoding
(`python -m tests.benchmarks.remote`)."""
MAX_RUN = 2**21
"""Maximum bytes of one request, if ranges allow: several then travel at a time, and a row of 32
tiles still fits."""
MAX_PIECES = 1000
"""Buffers of one scattered read; the system allows 1,024 (IOV_MAX)."""


def read_ranges(
    uri: str, starts: Sequence[int], ends: Sequence[int], *, version: str = ""
) -> list[memoryview]:
    """Byte ranges `[start, end)` of one object, in the order asked for.

    Raises:
        StorageError: see `read_into`.
    """
    bounds = np.append(0, np.cumsum(np.subtract(ends, starts, dtype=np.int64))).tolist()
    view = memoryview(bytearray(bounds[-1]))
    parts = [view[a:b] for a, b in pairwise(bounds)]
    read_into(uri, starts, parts, version=version)
    return parts


def read_into(
    uri: str, starts: Sequence[int], targets: Sequence[memoryview], *, version: str = ""
) -> None:
    """Fill each target with the bytes of one object from `start` on.

    Ranges within `COALESCE_GAP` of each other travel in one request, `IN_FLIGHT` requests at a
    time.

    Args:
        uri: the object.
        starts: byte where each range begins.
        targets: where each goes, of its length.
        version: the one that the ranges belong to (`Head.version`); any if empty.

    Raises:
        ObjectChanged: the object has another version.
        ObjectTruncated: the object ends before a range does.
        StorageError: the object can't be read.
    """
    runs = _runs(starts, targets)
    path = local_path(uri)
    if path is not None:
        with disk_failures(uri, "read"):
            _read_local(uri, path, runs, version)
    else:
        _read_remote(uri, runs, version)
    count_read(len(runs), sum(run.end - run.start for run in runs), sum(map(len, targets)))


@dataclass(kw_only=True)
class _Run:
    """A coalesced range, and the wanted ranges within it by their start."""

    start: int
    end: int
    wanted: list[tuple[int, memoryview]]

    def copy(self, block: memoryview) -> None:
        """Copy each wanted range out of the bytes of the whole run."""
        for start, target in self.wanted:
            target[:] = block[start - self.start : start - self.start + len(target)]


def _runs(starts: Sequence[int], targets: Sequence[memoryview]) -> list[_Run]:
    runs: list[_Run] = []
    for k in sorted(range(len(starts)), key=starts.__getitem__):
        start, target = starts[k], targets[k]
        end = start + len(target)
        last = runs[-1] if runs else None
        if last and start <= last.end + COALESCE_GAP and end - last.start <= MAX_RUN:
            last.wanted.append((start, target))
            last.end = max(last.end, end)
        else:
            runs.append(_Run(start=start, end=end, wanted=[(start, target)]))
    return runs


def _read_local(uri: str, path: Path, runs: Sequence[_Run], version: str) -> None:
    """Scattered reads: the system copies each byte once, to where it is wanted."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if version and file_version(os.fstat(handle)) != version:
            raise ObjectChanged(uri, "has been replaced", "read it again")
        for run in runs:
            pieces = _pieces(run)
            if pieces is None:
                block = memoryview(bytearray(run.end - run.start))
                _fill(uri, handle, run.start, [block])
                run.copy(block)
            else:
                _fill(uri, handle, run.start, pieces)
    finally:
        os.close(handle)


def _pieces(run: _Run) -> list[memoryview] | None:
    """Buffers that hold the run end to end, gaps included; None where wanted ranges overlap."""
    position, pieces = run.start, []
    for start, target in run.wanted:
        if start < position:
            return None
        if start > position:
            pieces.append(memoryview(bytearray(start - position)))
        pieces.append(target)
        position = start + len(target)
    return pieces


def _fill(uri: str, handle: int, offset: int, pieces: list[memoryview]) -> None:
    for k in range(0, len(pieces), MAX_PIECES):
        group = pieces[k : k + MAX_PIECES]
        wanted = sum(map(len, group))
        got = os.preadv(handle, group, offset)
        while got < wanted:  # a signal or a network disk may cut a read short
            more = os.pread(handle, wanted - got, offset + got)
            if not more:
                raise _truncated(uri, offset + got, offset + wanted)
            _spread(group, got, more)
            got += len(more)
        offset += wanted


def _spread(pieces: list[memoryview], position: int, data: bytes) -> None:
    """Write `data` at a position of the pieces placed end to end."""
    for piece in pieces:
        if position < len(piece) and data:
            part = data[: len(piece) - position]
            piece[position : position + len(part)] = part
            data, position = data[len(part) :], position + len(part)
        position -= len(piece)


@lru_cache(maxsize=1)
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")


def _read_remote(uri: str, runs: Sequence[_Run], version: str) -> None:
    e_tag = version.partition(":")[2]
    matching: dict[str, Any] = {"if_match": e_tag} if e_tag not in ("", "None") else {}

    def read(run: _Run) -> None:
        with s3.failures(uri, "read"):
            block = memoryview(s3.get(uri, range=(run.start, run.end), **matching).bytes())
        if len(block) < run.end - run.start:
            raise _truncated(uri, run.start + len(block), run.end)
        run.copy(block)

    if len(runs) == 1:
        read(runs[0])
    else:
        list(_fetchers().map(read, runs))


def _truncated(uri: str, end: int, wanted: int) -> ObjectTruncated:
    reason = f"ends at byte {end} where {wanted} is needed"
    return ObjectTruncated(uri, reason, "copy the file again")
