"""OpenSlide in a map-style torch Dataset, read by a DataLoader with one worker a core.

As OpenSlide's users write it: each worker opens the slide once, when it is first asked (a handle
must not cross a fork); an item is one `read_region`; the default collation makes batches of 32.
Workers persist and are started before the clock is.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openslide
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peer_readers import protocol

BATCH = 32


class Patches(Dataset):
    """Patch k of a slide as uint8 [size, size, 3]."""

    def __init__(self, slide: Path, corners: NDArray[np.int64], size: int) -> None:
        self._path, self._corners, self._size = slide, corners.tolist(), size
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, k: int) -> torch.Tensor:
        self._slide = self._slide or openslide.OpenSlide(self._path)
        region = self._slide.read_region(self._corners[k], 0, (self._size, self._size))
        return torch.from_numpy(np.array(region.convert("RGB")))


def open_slide(
    slide: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    workers = os.cpu_count() or 1
    order = (
        [0] * BATCH * workers
    )  # a short first pass starts the workers and opens the slide in each
    patches = Patches(slide, corners, size)
    loader = DataLoader(
        patches, batch_size=BATCH, sampler=order, num_workers=workers, persistent_workers=True
    )
    for _ in loader:
        pass
    order[:] = range(len(corners))

    def read(out: NDArray[np.uint8]) -> None:
        start = 0
        for batch in loader:
            protocol.keep(batch.numpy(), start, out)
            start += len(batch)

    return read


if __name__ == "__main__":
    protocol.serve(open_slide)
