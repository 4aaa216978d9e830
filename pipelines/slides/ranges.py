"""A remote or local object as a seekable file that fetches only the blocks asked for: for headers, not pixels."""

from __future__ import annotations

import io
from typing import IO

import obstore

from pipelines import storage

BLOCK = 64 * 1024
"""Bytes fetched at a time: an SVS header and its tile index take 2 to 5 such blocks."""


class _RangeFile(io.RawIOBase):
    """`obstore`'s reader with the interface that tifffile and pydicom expect."""

    def __init__(self, uri: str) -> None:
        store, key = storage.locate(uri)
        self._reader = obstore.open_reader(store, key, buffer_size=BLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def open_ranges(uri: str) -> IO[bytes]:
    """Open an object for reading by seek and read."""
    local = storage.local_path(uri)
    if local is not None:
        return local.open("rb")
    return io.BufferedReader(_RangeFile(uri), buffer_size=BLOCK)
