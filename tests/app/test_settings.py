"""Settings: every one documented, checked, frozen, and read from `ACINUS_*`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


def test_every_setting_is_documented() -> None:
    undocumented = [
        name for name, field in Settings.model_fields.items() if len(field.description or "") < 20
    ]
    assert undocumented == [], "write a description that an operator can act on"


def test_defaults_are_below_the_data_root(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/acinus.db"
    assert settings.workflow_database_url == f"sqlite:///{tmp_path}/workflows.db"
    assert settings.storage_root == f"file://{tmp_path}/store"
    assert settings.organisation_root("a") == f"file://{tmp_path}/store/a"


def test_the_environment_gives_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACINUS_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("ACINUS_STORAGE_ROOT", "s3://bucket/prefix/")
    monkeypatch.setenv("ACINUS_PORT", "8123")
    settings = Settings()
    assert (settings.storage_root, settings.port) == ("s3://bucket/prefix", 8123)
    assert settings.organisation_root("a") == "s3://bucket/prefix/a"


def test_a_local_path_is_a_storage_root(tmp_path: Path) -> None:
    assert (
        Settings(data_root=tmp_path, storage_root=str(tmp_path / "s")).storage_root
        == f"file://{tmp_path}/s"
    )


def test_settings_are_frozen_and_checked(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(data_root=tmp_path, organisation_id="../other")
    with pytest.raises(ValidationError):
        Settings(data_root=tmp_path, misspelt=1)
