"""Every setting of the service, with its default and what it means.

Settings come from `ACINUS_*` environment variables or from the caller, are checked once and then
frozen; no other module of the service reads them from the environment. What is not the service's
own is read where it is used: `AWS_*` by the store, `RAY_ADDRESS` when Ray starts, `ACINUS_STAGING`
when slides are staged. The defaults need no installation: SQLite and files below one folder. In the
cloud the same names hold a PostgreSQL URL and an `s3://` root.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines import storage

GIB = 2**30


def _sqlite_url(file_name: str) -> Any:
    return lambda values: f"sqlite:///{values['data_root'] / file_name}"


class Settings(BaseSettings):
    """What an operator can set; see each field's description."""

    model_config = SettingsConfigDict(
        env_prefix="ACINUS_", frozen=True, extra="forbid", validate_default=True
    )

    data_root: Path = Field(
        default_factory=lambda: Path.home() / ".acinus",
        description="Local folder of the embedded databases, of uploads in transit "
        "and of slides staged from remote stores.",
    )
    database_url: str = Field(
        default_factory=_sqlite_url("acinus.db"),
        description="SQLAlchemy URL of cases, slides and analyses: `sqlite:///...` or `postgresql+psycopg://...`.",
    )
    workflow_database_url: str = Field(
        default_factory=_sqlite_url("workflows.db"),
        description="URL of the DBOS system database (SQLite or PostgreSQL), "
        "where the case workflow keeps which steps are done.",
    )
    storage_root: str = Field(
        default_factory=lambda values: storage.as_uri(values["data_root"] / "store"),
        description="Where slides, embeddings and reports are stored: "
        "a local path, `file://` or `s3://bucket/prefix`.",
    )
    models: str = Field(
        default_factory=lambda values: storage.as_uri(values["data_root"] / "models"),
        description="Path or URI of the models that analyses use: a registry, whose production "
        "new analyses take as soon as it is promoted; or the folder of one model set with encoder, "
        "slide model and risk model.",
    )
    organisation_id: str = Field(
        default="local",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="The organisation of every request until accounts exist; "
        "the first folder of every object's key.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address the HTTP service listens on; 0.0.0.0 for every interface.",
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port the HTTP service listens on.")
    max_upload_bytes: int = Field(
        default=16 * GIB,
        gt=0,
        description="Maximum size in bytes of an uploaded slide; "
        "larger ones are refused as they arrive.",
    )
    concurrent_cases: int = Field(
        default=2, ge=1, description="How many analyses the one executor works on at the same time."
    )
    shards_in_flight: int = Field(
        default=4,
        ge=1,
        description="How many shards of one analysis are at the encoder at the same time.",
    )
    encoder_replicas: int = Field(default=1, ge=1, description="Ray Serve replicas of the encoder.")
    encoder_gpus: float = Field(
        default=0.0, ge=0.0, description="GPUs of one encoder replica; 0 computes on CPU."
    )
    ingress_replicas: int = Field(
        default=1, ge=1, description="Nodes that take requests; one HTTP server each."
    )
    torch_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Threads of one encoder or model replica on CPU.",
    )
    executor_id: str = Field(
        default="case-executor",
        description="Name under which the one executor process claims workflows. "
        "Two live processes must never share it.",
    )

    @field_validator("data_root")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("storage_root", "models")
    @classmethod
    def _uri(cls, value: str) -> str:
        return storage.as_uri(value).rstrip("/")

    @property
    def uploads(self) -> Path:
        """Local folder where uploads arrive."""
        return self.data_root / "uploads"

    @property
    def staging(self) -> Path:
        """Local folder in which ingestion works on slides."""
        return self.data_root / "staging"

    def organisation_root(self, organisation_id: str) -> str:
        """URI below which everything of one organisation is stored."""
        return storage.join(self.storage_root, organisation_id)
