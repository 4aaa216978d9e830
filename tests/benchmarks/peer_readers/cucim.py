"""cuCIM on the CPU: `CuImage.read_region` with the `per_process` cache, which its guide recommends
for sequential reading.

The cache is set by a configuration file: set by `CuImage.cache(...)`, release 26.10 keeps nothing
in it (measured, unaligned: 1,000 patches/s, with the file 3,500). It is smaller than the decoded
slide, or a second reading would come from it alone. One corner a call: a list of corners with one
worker measured no better. Its newer plugin, cuslide2, was slower on the CPU (2,100 aligned, 980
unaligned).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peer_readers import protocol

CACHE_MIB = 64


def open_slide(
    path: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    from cucim import CuImage

    slide = CuImage(str(path))

    def read(out: NDArray[np.uint8]) -> None:
        for k, corner in enumerate(corners.tolist()):
            out[k] = np.asarray(slide.read_region(tuple(corner), (size, size), level=0))

    return read


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "cucim.json"
        configuration.write_text(
            json.dumps({"cache": {"type": "per_process", "memory_capacity": CACHE_MIB}})
        )
        os.environ["CUCIM_CONFIG_PATH"] = str(configuration)  # read when cucim is imported
        protocol.serve(open_slide)
