"""Where analyses take their models from: whatever a registry has in production, or one model set.

open_source(uri)     a registry or a model set, whichever is there
  production()       the version that an analysis starts with
  load(version)      its models: what an analysis goes on with, whatever was promoted since
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from pipelines import storage
from training.errors import VersionNotFound
from training.model_set import ModelSet, load_model_set
from training.precision import PrecisionChoice
from training.registry.registry import Registry
from training.registry.version import SHORT, set_files, version_of


class ModelSource(Protocol):
    """Versions of model sets, one of which new analyses take."""

    def production(self) -> str:
        """The version that new analyses take."""

    def load(
        self, version: str, *, device: str = "cpu", precision: PrecisionChoice = "auto"
    ) -> ModelSet:
        """The models of a version."""


class OneSet:
    """A model set in a folder: a single version, named as a registry would name it."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.as_uri(uri).rstrip("/")

    def production(self) -> str:
        """The version that the folder held when this was first asked.

        Raises:
            TrainingError: see `load_model_set`.
        """
        return self._version

    def load(
        self, version: str, *, device: str = "cpu", precision: PrecisionChoice = "auto"
    ) -> ModelSet:
        """The models of the folder, if they are those of this version.

        Raises:
            VersionNotFound: the folder's files were exchanged.
            TrainingError: see `load_model_set`.
        """
        models = load_model_set(self.uri, device=device, precision=precision)
        if (found := version_of(set_files(self.uri), models).hash) != version:
            raise VersionNotFound(
                f"{self.uri} holds version {found[:SHORT]}, not {version[:SHORT]}; keep model sets "
                "that are exchanged in a registry"
            )
        return models

    @cached_property
    def _version(self) -> str:
        return version_of(set_files(self.uri), load_model_set(self.uri)).hash


def open_source(uri: str) -> ModelSource:
    """The registry at a URI; if there is none, the model set.

    Raises:
        RegistryDamaged: the registry's log is not whole.
        StorageError: the store cannot be read.
    """
    registry = Registry(uri)
    return registry if registry.history().changes else OneSet(uri)
