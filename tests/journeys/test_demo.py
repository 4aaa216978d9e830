"""`make demo` where no real tissue is at hand: the whole journey on generated H&E."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo_on_generated_tissue(tmp_path: Path) -> None:
    environment = os.environ | {
        "DEMO_EXIT": "1",
        "DEMO_OUT": str(tmp_path / "out"),
        "ACINUS_SHARED_DATA": str(tmp_path / "none"),
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "app.demo"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated H&E" in done.stdout
    assert "Research use only; not a diagnosis" in done.stdout
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (tmp_path / "out" / "index.html").read_text()
    for name in ("overview-0.png", "loss.png", "heatmap.png", "report-1.png"):
        assert name in page
        assert (tmp_path / "out" / name).stat().st_size > 1000
