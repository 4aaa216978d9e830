"""Fixtures of the whole suite: one local Ray for all tests of a process that need one.

`make test` runs the suite in two processes (pytest-xdist), a test file at a time, each with
fixtures and a Ray of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

ROOT = Path(__file__).parent
SLOWEST_FIRST = ("journeys", "cluster", "test_house.py", "app", "training")
"""Files and folders whose tests take minutes: started last, they would leave the other process
idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, otherwise in the order of their names; the order within a file stays."""

    def turn(item: pytest.Item) -> int:
        first = item.path.relative_to(ROOT).parts[0]
        return SLOWEST_FIRST.index(first) if first in SLOWEST_FIRST else len(SLOWEST_FIRST)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the process, on a loopback address of its own, without dashboard."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address=f"127.0.0.{10 + process}",
        _temp_dir=folder,
        object_store_memory=512 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated cohort: 4 slides (the last of split `test`), annotations and
    `manifest.csv`."""
    from pipelines.synthetic.synthesise import SynthConfig, synthesise

    folder = tmp_path_factory.mktemp("cohort")
    synthesise(SynthConfig(out=str(folder), slides=4, test_slides=1, cores=1, core_length=4))
    return folder


@pytest.fixture(scope="session")
def generated_slide(cohort_folder: Path) -> Path:
    """One generated SVS: 0.23 um/px, three patterns, label and macro with a name on them."""
    return cohort_folder / "slide-002.svs"
