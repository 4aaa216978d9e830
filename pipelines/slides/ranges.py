"""An object as a seekable file that fetches only what is asked for: for headers, not pixels."""

from __future__ import annotations

import io
from collections import OrderedDict

from pipelines import storage
from pipelines.slides.errors import SlideNotFound

BLOCK = 128 * 1024
"""Minimum bytes of a fetch: the directories of an SVS fit in one such block, and so does the tile
index of its smaller levels."""
MAX_AHEAD = 8 * 2**20
"""Maximum bytes fetched ahead of a reader that goes straight on, as through a long DICOM header."""
KEPT = 16
"""Blocks kept: directories are visited more than once."""
MAX_HEADER = 256 * 2**20
"""Bytes of one read beyond which a header is not believed: an 8 GB slide's tile index has 8 MB."""


class RangeFile(io.RawIOBase):
    """An object as a file for tifffile and pydicom.

    A long read is one request of exactly its bytes. A short one fetches a block, and a block twice
    as long while reading goes straight on. If the store fails, reading raises SlideNotFound, which
    no parser takes for a damaged header.

    Args:
        uri: of the object.
        size: its bytes.
        head: its first bytes if they were fetched before.
    """

    def __init__(self, uri: str, size: int, head: bytes = b"") -> None:
        self._uri, self._size, self._position = uri, size, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict({0: head} if head else {})
        self._ahead, self._last_end = BLOCK, -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        left = max(self._size - self._position, 0)
        count = left if count is None or count < 0 else min(count, left)
        if count > MAX_HEADER:
            raise OSError(f"a header of {count} bytes is not believed")
        data = self._fetch(count) if count else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def _fetch(self, count: int) -> bytes:
        start, end = self._position, self._position + count
        for first, block in self._blocks.items():
            if first <= start and end <= first + len(block):
                self._blocks.move_to_end(first)
                return block[start - first : end - first]
        if count >= BLOCK:
            return self._read(start, end)
        self._ahead = min(2 * self._ahead, MAX_AHEAD) if start == self._last_end else BLOCK
        stop = min(start + self._ahead, self._size)
        block = self._read(start, stop)
        self._blocks[start], self._last_end = block, stop
        if len(self._blocks) > KEPT:
            self._blocks.popitem(last=False)
        return block[:count]

    def _read(self, start: int, end: int) -> bytes:
        try:
            return bytes(storage.read_ranges(self._uri, [start], [end])[0])
        except storage.StorageError as error:
            cause = f"can't be reached in its store ({type(error).__name__})"
            raise SlideNotFound(
                storage.object_name(self._uri), cause, "check the connection and try again"
            ) from None
