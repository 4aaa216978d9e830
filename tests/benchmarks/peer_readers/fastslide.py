"""fastslide: `FastSlide.read_region(...).numpy()`, its zero-copy view.

Option: capacity of the slide's tile cache in MiB, 0 for none. A cache pays where patches miss the
tiles' grid (measured on one core: 1,600 against 640 patches/s) and costs where they do not; its
reader for Aperio slides uses one, its reader for generic TIFF does not. It decodes in threads of
its own: CPU time counts them all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fastslide import FastSlide
from numpy.typing import NDArray

from tests.benchmarks.peer_readers import protocol


def open_slide(
    path: Path, corners: NDArray[np.int64], size: int, options: list[str]
) -> protocol.Read:
    capacity = int(options[0]) * 2**20
    slide = FastSlide.from_file_path(path, cache=capacity or None)

    def read(out: NDArray[np.uint8]) -> None:
        for k, corner in enumerate(corners.tolist()):
            out[k] = slide.read_region(location=tuple(corner), level=0, size=(size, size)).numpy()

    return read


if __name__ == "__main__":
    protocol.serve(open_slide)
