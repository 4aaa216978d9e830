"""Rows of numbers in a temporary file instead of in memory, read as arrays all the same."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import numpy.typing as npt


class MappedRows:
    """Room for rows of float32, in one file without a name that ends with the last array of it.

    Raises:
        OSError: the folder of temporary files has no room for it; names the folder and the remedy.
    """

    def __init__(self, rows: int, width: int) -> None:
        with tempfile.TemporaryFile(prefix="acinus-embeddings-") as file:
            _reserve(file.fileno(), 4 * max(1, rows) * width)
            self._rows = np.memmap(file, np.float32, "w+", shape=(max(1, rows), width))
        self._used = 0

    def keep(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The same values [N, width], in the file.

        Raises:
            ValueError: there is no room for them.
        """
        end = self._used + len(values)
        if end > len(self._rows):
            raise ValueError(f"{end} rows in a file for {len(self._rows)}; make it larger")
        kept = np.asarray(self._rows[self._used : end])
        kept[:] = values
        self._used = end
        return kept


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now: a mapped file that finds none later ends the process without a word."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(
            f"{tempfile.gettempdir()} has no room for {size / 1e6:,.0f} MB of embeddings "
            f"({error.strerror}); free some, or name another folder in TMPDIR"
        ) from error
