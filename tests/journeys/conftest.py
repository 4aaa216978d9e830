"""A model set for the service of the journeys."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_set(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a complete, tiny model set (`tests.support.model_set`)."""
    from tests.support.model_set import make_model_set

    return make_model_set(
        str(cohort_folder / "manifest.csv"), str(tmp_path_factory.mktemp("models"))
    )
