"""tiffslide, the drop-in for openslide-python on tifffile: `read_region` with `as_array=True`,
which its README gives for arrays (it spares the way over a PIL image)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiffslide import TiffSlide

from tests.benchmarks.peer_readers import protocol


def open_slide(
    path: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    slide = TiffSlide(path)

    def read(out: NDArray[np.uint8]) -> None:
        for k, corner in enumerate(corners.tolist()):
            out[k] = slide.read_region(tuple(corner), 0, (size, size), as_array=True)

    return read


if __name__ == "__main__":
    protocol.serve(open_slide)
