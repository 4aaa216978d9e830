"""Real slides, tiles and tables for tests: their folder, and the mark for tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data() -> Path | None:
    """The folder of shared data, or None on a machine without it."""
    folder = Path(
        os.environ.get("ACINUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")
    )
    return folder if folder.is_dir() else None


needs_shared_data = pytest.mark.skipif(
    shared_data() is None,
    reason="real slides are absent: set ACINUS_SHARED_DATA; the generated equivalent ran instead",
)
