"""The real slide worker, in which two slides end their process as a fault in C would."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection

from pipelines import slide_worker
from pipelines.manifest import ManifestRow
from pipelines.preparation import PrepareConfig, SlideOutcome

SIGNALS = {"slide-0001.svs": signal.SIGSEGV, "slide-0003.svs": signal.SIGKILL}
_prepare_slide = slide_worker.prepare_slide


def prepare_slide(row: ManifestRow, config: PrepareConfig) -> SlideOutcome:
    """The real thing, but for two names."""
    for name, ending in SIGNALS.items():
        if row.uri.endswith(name):
            print(f"reading {name}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), ending)
    return _prepare_slide(row, config)


if __name__ == "__main__":
    slide_worker.prepare_slide = prepare_slide
    slide_worker.serve(Connection(int(sys.argv[1])))
