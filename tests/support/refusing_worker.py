"""The real slide worker, which can't write one slide and takes its time for the others."""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection

from pipelines import slide_worker
from pipelines.manifest import ManifestRow
from pipelines.preparation import OutputError, PrepareConfig, SlideOutcome

_prepare_slide = slide_worker.prepare_slide


def prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    """The real thing, but for one name."""
    if row.uri.endswith("slide-0000.svs"):
        raise OutputError(config.out, "can't be written", "make room there")
    time.sleep(2)
    return _prepare_slide(row, config)


if __name__ == "__main__":
    slide_worker.prepare_slide = prepare_slide
    slide_worker.serve(Connection(int(sys.argv[1])))
