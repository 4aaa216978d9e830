"""OPEN FIRST. The registry of models: immutable versions of model sets, and which is served.

    Registry(uri)
      add(models)            copy a model set under the name of its content: a candidate
      reproduce(version)     keep what `reproducibility.py` measured
      promote(version)       into production, if it is reproducible
      rollback()             the version before into production again
      retire(version)        never into production again
      production, load       what serving asks for                  (`source.py`)

Below the URI, on disk or in S3:

    versions/<hash>/         version.json, encoder/, slide_model/, risk_model/   (`version.py`)
    log/00000001.json        one object a change                                 (`history.py`)

A version exists when the log says so, which is written last: a killed `add` leaves none.
This room knows neither HTTP nor database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Final

from pipelines import storage
from training.encoder.encoder import load_encoder, save_encoder
from training.errors import (
    NotReproducible,
    PromotionRefused,
    RegistryChanged,
    VersionNotFound,
)
from training.model_set import ModelSet, load_model_set
from training.precision import PrecisionChoice
from training.registry.history import VERSIONS, Change, History, Log, Stage
from training.registry.version import (
    SHORT,
    VERSION,
    Version,
    set_files,
    version_of,
)

MIN_ICC: Final = 0.95
"""What a version must reach to go into production; the lower end of "excellent" starts at 0.90
(Koo and Li 2016, J Chiropr Med 15:155)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A version as the registry lists it.

    Attributes:
        version: what it is.
        stage: where it stands.
        changes: what was done with it.
        reproducibility: the last record; None without one.
    """

    version: Version
    stage: Stage
    changes: tuple[Change, ...]
    reproducibility: Mapping[str, Any] | None


class Registry:
    """A registry at a URI."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.as_uri(uri).rstrip("/")
        self._log = Log(self.uri)

    def history(self) -> History:
        """Everything that was done.

        Raises:
            RegistryDamaged: the log is not whole.
            StorageError: the registry cannot be read.
        """
        return self._log.read()

    def folder(self, version: str) -> str:
        """URI of a version: a folder that `load_model_set` takes."""
        return storage.join(self.uri, VERSIONS, version)

    def find(self, name: str) -> str:
        """The full name of a version that was added.

        Args:
            name: its first digits, or `production`.

        Raises:
            VersionNotFound: there is none, or there are several.
        """
        history = self.history()
        if name == "production":
            return self.production()
        found = [version for version in history.versions if version.startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        how_many = f"{len(found)} versions that begin with" if found and name else "no version"
        raise VersionNotFound(
            f"{self.uri} has {how_many} {name!r}; give the first digits of one that it lists"
        )

    def entry(self, version: str) -> Entry:
        """A version with its stage and history; `version` is a full name."""
        history = self.history()
        return Entry(
            version=Version.read(self.folder(version), version),
            stage=history.stage(version),
            changes=history.of(version),
            reproducibility=history.reproducibility(version),
        )

    def entries(self) -> list[Entry]:
        """All versions, in the order in which they were added."""
        return [self.entry(version) for version in self.history().versions]

    def production(self) -> str:
        """The version in production.

        Raises:
            VersionNotFound: there is none.
        """
        if (version := self.history().production) is None:
            raise VersionNotFound(f"{self.uri} has no version in production; promote one")
        return version

    def load(
        self, version: str, *, device: str = "cpu", precision: PrecisionChoice = "auto"
    ) -> ModelSet:
        """The models of a version, after every file was compared with its hash.

        Raises:
            BrokenModel: a file is missing or is another.
            TrainingError: see `load_model_set`.
        """
        folder = self.folder(version)
        Version.read(folder, version).verify(folder)
        return load_model_set(folder, device=device, precision=precision)

    def add(self, models: str, *, by: str, encoder: str | None = None) -> str:
        """Copy a model set into the registry; returns the version.

        Adding it again changes nothing, except that a retired version is a candidate again.

        Args:
            models: folder or URI of a model set.
            by: who adds it.
            encoder: of `load_encoder`, for a set without one: it is saved with the version.

        Raises:
            TrainingError: the set cannot be used; nothing is written.
            StorageError: it cannot be read or copied; there is no version then.
        """
        with _encoder_folder(encoder) as folder:
            files = set_files(models, folder)
            version = version_of(files, load_model_set(models, encoder=folder))
            history = self.history()
            if version.hash in history.versions and history.withdrawn(version.hash) is None:
                return version.hash
            self._write(version, files)
        self._log.append("add", by, lambda _history: version.hash)
        return version.hash

    def _write(self, version: Version, files: Mapping[str, str]) -> None:
        folder = self.folder(version.hash)
        for path, uri in files.items():
            storage.write_once(storage.join(folder, *path.split("/")), storage.read_bytes(uri))
        storage.write_once(storage.join(folder, VERSION), version.to_bytes())
        version.verify(folder)

    def reproduce(self, version: str, record: Mapping[str, Any], *, by: str) -> Change:
        """Keep a record of how reproducible a version is."""
        return self._log.append("reproduce", by, lambda _history: version, **record)

    def promote(self, version: str, *, by: str) -> Change:
        """Put a version into production.

        Raises:
            NotReproducible: it was not shown to be reproducible.
            PromotionRefused: it is in production already, or was retired.
            RegistryChanged: somebody else changed what is in production meanwhile.
        """
        seen = self.history().production

        def decide(history: History) -> str:
            self._require_unchanged(history, seen)
            self._require_promotable(history, version)
            return version

        return self._log.append("promote", by, decide)

    def rollback(self, *, by: str) -> Change:
        """Put the version that was in production before the current one there again.

        Raises:
            PromotionRefused: there is none.
            RegistryChanged: somebody else changed what is in production meanwhile.
        """
        seen = self.history().production

        def decide(history: History) -> str:
            self._require_unchanged(history, seen)
            if history.previous is None:
                raise PromotionRefused(
                    f"{self.uri} has no other version that was in production; promote one"
                )
            return history.previous

        return self._log.append("rollback", by, decide)

    def retire(self, version: str, *, by: str) -> Change:
        """Never put a version into production again, unless it is added anew.

        Raises:
            PromotionRefused: it is in production.
        """

        def decide(history: History) -> str:
            if history.production == version:
                raise PromotionRefused(
                    f"version {version[:SHORT]} is in production; promote another first"
                )
            return version

        return self._log.append("retire", by, decide)

    def _require_unchanged(self, history: History, seen: str | None) -> None:
        if history.production != seen:
            last = history.changes[-1]
            raise RegistryChanged(
                f"{last.by} changed what is in production to "
                f"{(history.production or 'none')[:SHORT]} at {last.when}; look, and do it again"
            )

    def _require_promotable(self, history: History, version: str) -> None:
        short = version[:SHORT]
        if history.production == version:
            raise PromotionRefused(f"version {short} is in production already")
        if (retired := history.withdrawn(version)) is not None:
            raise PromotionRefused(
                f"version {short} was retired by {retired.by} at {retired.when}; "
                "add its model set again to make it a candidate"
            )
        if (record := history.reproducibility(version)) is None:
            raise NotReproducible(
                f"version {short} has no record of its reproducibility; measure it first"
            )
        if record["lowest_icc"] is None:
            raise NotReproducible(
                f"version {short} says the same of every slide that it was measured on; measure "
                "it on slides that differ"
            )
        if record["lowest_icc"] < MIN_ICC:
            raise NotReproducible(
                f"version {short} reaches an intraclass correlation of {record['lowest_icc']:.3f} "
                f"({record['lowest_of']}) where {MIN_ICC} is needed; "
                "find out what its results depend on, and add a better model set"
            )


@contextmanager
def _encoder_folder(encoder: str | None) -> Iterator[str | None]:
    """A folder with the encoder, whatever names it; None for None."""
    if encoder is None:
        yield None
        return
    with TemporaryDirectory(prefix="acinus-encoder-") as folder:
        save_encoder(folder, load_encoder(encoder, precision="f32"))
        yield folder
