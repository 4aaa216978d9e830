"""`acinus prepare` on slides in object storage: what had to be copied whole is reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cohort import load_cohort
from tests.pipelines.conftest import s3_bucket
from tests.support.formats import write_slide

__all__ = ["s3_bucket"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prefix(s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An NDPI and an SVS in S3."""
    for name in ("ndpi", "svs-jpeg"):
        path = write_slide(name, tmp_path_factory.mktemp(name))
        storage.write_file(f"{s3_bucket}/slides/{path.name}", path)
    return f"{s3_bucket}/slides/"


def test_slides_that_were_copied_whole_are_reported(prefix: str, tmp_path: Path) -> None:
    # A process of its own: the suite's Ray workers know nothing of this endpoint.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "COLUMNS": "150"
    }
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "prepare",
        prefix,
        "--out",
        str(tmp_path / "out"),
        "--size",
        "64",
        "--patch-mpp",
        "1",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    slides = json.loads((tmp_path / "out" / "report.json").read_text())["slides"]
    assert slides == {"total": 2, "prepared": 2, "failed": 0, "kept": 0, "staged": 1}
    rows = load_cohort(str(tmp_path / "out")).select(["vendor", "staged"]).to_pylist()
    assert {row["vendor"]: row["staged"] for row in rows} == {"hamamatsu": True, "aperio": False}
    assert re.search(
        r"staged\W+1 slides? \w+ copied whole: .* can't be read in place",
        " ".join(done.stdout.split()),
    )
