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

from fastapi import FastAPI

from tests.app.test_http_edges import ANALYSES

ROOT = str(Path(__file__).parents[2])
EXAMPLES = 25
"""Random requests for each operation, besides those that cover every limit of the description."""


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
    assert set(app.openapi()["paths"]) == {ANALYSES, analysis, *reports, "/health"}
