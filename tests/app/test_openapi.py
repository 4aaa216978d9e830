"""The whole API compared with its own description, by schemathesis.

It makes requests, right and wrong, of every operation.

All of schemathesis's checks must hold: no 500, no undocumented status, content type or body, right
data accepted, wrong data refused, methods that do not exist answered with those that do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.settings import Settings
from tests.app.test_http_edges import ANALYSES
from tests.support.clinical_risk import make_clinical_risk_model

ROOT = str(Path(__file__).parents[2])
EXAMPLES = 25
"""Random requests for each operation, besides those that cover every limit of the description."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a risk model: without one the service has no risks."""
    models = make_clinical_risk_model(str(tmp_path / "models"))
    return Settings(data_root=tmp_path, max_upload_bytes=3 * 2**20, models=models)


def test_every_operation_does_as_it_is_described(address: tuple[str, int], tmp_path: Path) -> None:
    host, port = address
    program = "from schemathesis.cli import schemathesis; schemathesis(prog_name='schemathesis')"
    options = [
        f"http://{host}:{port}/openapi.json",
        "--checks=all",
        "--mode=all",
        f"--max-examples={EXAMPLES}",
        "--seed=0",
        "--generation-deterministic",
        "--continue-on-failure",
        "--no-color",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, "run", *options],
        cwd=tmp_path,
        env=os.environ
        | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_operation_is_described(app: FastAPI) -> None:
    analysis = f"{ANALYSES}/{{analysis_id}}"
    reports = {f"{analysis}/{name}" for name in ("report.json", "heatmap.png", "report.pdf")}
    assert set(app.openapi()["paths"]) == {
        ANALYSES,
        analysis,
        *reports,
        "/api/v1/risks",
        "/health",
    }
