"""Fixtures of the whole suite: one local Ray for all tests that need one."""

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
# Replicas and proxies read these before anything starts (HAProxy in front of Serve).
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the session, on a loopback address of its own, without dashboard."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address="127.0.0.2",
        _temp_dir=folder,
        object_store_memory=512 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated cohort: 4 slides (the last of split `test`), annotations and `manifest.csv`."""
    from pipelines.synthetic.synthesise import SynthConfig, synthesise

    folder = tmp_path_factory.mktemp("cohort")
    synthesise(SynthConfig(out=str(folder), slides=4, test_slides=1, cores=1, core_length=4))
    return folder


@pytest.fixture(scope="session")
def generated_slide(cohort_folder: Path) -> Path:
    """One generated SVS: 0.23 um/px, three patterns, label and macro with a name on them."""
    return cohort_folder / "slide-002.svs"
