"""The pattern of today's Ray tiling libraries, written by us: a dataset with one row a patch, its
corner; tasks that open the slide with OpenSlide for every batch of rows and read patch by patch;
pixels travel through the object store to the consumer.

A batch is 128 patches, 24 MiB: a block's own costs are then small compared with reading. RGBA is
made RGB in the task, which spares the store a quarter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pyarrow as pa
import ray
from numpy.typing import NDArray

from tests.benchmarks.peer_readers import protocol
from tests.benchmarks.peer_readers.session import ray_session

BATCH = 128


def read_batch(
    batch: dict[str, NDArray[np.int64]], *, path: str, size: int
) -> dict[str, NDArray[np.uint8]]:
    """Read the patches at `x`, `y` of one batch."""
    patches = np.empty((len(batch["x"]), size, size, 3), np.uint8)
    with openslide.OpenSlide(path) as slide:
        for k, corner in enumerate(zip(batch["x"].tolist(), batch["y"].tolist(), strict=True)):
            patches[k] = np.asarray(slide.read_region(corner, 0, (size, size)))[..., :3]
    return {"patch": patches}


def open_slide(
    slide: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    rows = pa.table({"x": corners[:, 0], "y": corners[:, 1]})
    tables = [rows.slice(start, BATCH) for start in range(0, len(rows), BATCH)]

    def read(out: NDArray[np.uint8]) -> None:
        dataset = ray.data.from_arrow(tables).map_batches(
            read_batch,
            batch_size=BATCH,
            batch_format="numpy",
            fn_kwargs={"path": str(slide), "size": size},
        )
        dataset.context.execution_options.preserve_order = True
        start = 0
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=1
        ):
            protocol.keep(batch["patch"], start, out)
            start += len(batch["patch"])

    return read


if __name__ == "__main__":
    with ray_session():
        protocol.serve(open_slide)
