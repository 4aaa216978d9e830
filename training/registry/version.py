"""A version: the files of one model set under the name of their content.

`version.json` lists every file with its SHA-256, and the facts that the models' cards state. The
SHA-256 of `version.json` is the version's name, so whoever has the name can check everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pipelines import storage
from training.cards import CARD, WEIGHTS, Card
from training.errors import BrokenModel
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL, ModelSet

VERSION: Final = "version.json"
MODELS: Final = (ENCODER, SLIDE_MODEL, RISK_MODEL)
SHORT: Final = 12
"""Digits of a hash that people are shown."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version.

    Attributes:
        hash: its name.
        files: SHA-256 of every file, by its path below the version.
        facts: of `facts_of`.
    """

    hash: str
    files: Mapping[str, str]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, files: Mapping[str, str], facts: Mapping[str, Any]) -> Self:
        """The version of these files and facts."""
        made = cls(hash="", files=files, facts=facts)
        return cls(hash=hashlib.sha256(made.to_bytes()).hexdigest(), files=files, facts=facts)

    def to_bytes(self) -> bytes:
        """Content of `version.json`."""
        values = {"files": self.files, "facts": self.facts}
        return json.dumps(values, indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def read(cls, uri: str, version: str) -> Self:
        """The version at `uri`, whose name is known.

        Raises:
            BrokenModel: `version.json` is missing, or is another.
        """
        try:
            content = storage.read_bytes(storage.join(uri, VERSION))
        except storage.ObjectNotFound:
            raise BrokenModel(
                f"version {version[:SHORT]} lacks {VERSION}; restore it from a copy"
            ) from None
        require_digest(f"{VERSION} of version {version[:SHORT]}", content, version)
        values = json.loads(content)
        return cls(hash=version, files=values["files"], facts=values["facts"])

    def verify(self, uri: str) -> None:
        """Read every file and compare it with its hash.

        Raises:
            BrokenModel: one is missing or is another; names it.
        """
        for path, digest in self.files.items():
            what = f"{path} of version {self.hash[:SHORT]}"
            try:
                found = digest_of(storage.join(uri, *path.split("/")))
            except storage.ObjectNotFound:
                raise BrokenModel(f"{what} is missing; restore it from a copy") from None
            if found != digest:
                raise BrokenModel(_differs(what, found, digest))


def version_of(files: Mapping[str, str], models: ModelSet) -> Version:
    """The version that the files of a model set are.

    Args:
        files: of `set_files`.
        models: loaded from there.
    """
    return Version.of({path: digest_of(uri) for path, uri in files.items()}, facts_of(models))


def set_files(models: str, encoder: str | None = None) -> dict[str, str]:
    """URIs of what a version takes of a model set, by their path below the version.

    Args:
        models: folder of the set.
        encoder: folder of the encoder, for a set without one.
    """
    folders = {model: storage.join(models, model) for model in MODELS}
    if encoder is not None:
        folders[ENCODER] = encoder
    return {
        f"{model}/{name}": uri
        for model, folder in folders.items()
        for name, uri in model_files(folder).items()
    }


def model_files(uri: str) -> dict[str, str]:
    """URIs of what a version takes of one model's folder, by name: weights, card, report, pictures.

    Nothing else is copied: a training run leaves embeddings and checkpoints there, and a file that
    runs code when it is loaded, such as a pickle, has no place in a version.
    """
    names = {found.rpartition("/")[2]: found for found in _direct(uri)}
    wanted = {CARD, WEIGHTS, "report.json"}
    return {name: names[name] for name in sorted(names) if name in wanted or name.endswith(".png")}


def facts_of(models: ModelSet) -> dict[str, Any]:
    """What the cards say, gathered: what a version can be chosen and audited by."""
    encoder, slide, risk = models.encoder, models.slide_model, models.risk_model
    cards: dict[str, Card] = {ENCODER: encoder.card, SLIDE_MODEL: slide.card, RISK_MODEL: risk.card}
    spec = models.spec
    parents = {
        ENCODER: _listed(encoder.card.get("parents")),
        SLIDE_MODEL: [encoder.hash],
        RISK_MODEL: [encoder.hash, slide.hash],
    }
    return {
        "models": {
            name: {"name": card.get("name", name), "hash": card["hash"]}
            for name, card in cards.items()
        },
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "preprocessing": {
            "stain": spec.stain or "none",
            "icc": spec.icc,
            "normalisation": encoder.card.get("normalisation", "in the weights"),
        },
        "precision": {
            "trained": encoder.card.get("precision"),
            "embeddings": slide.card.get("encoder_precision"),
        },
        "simulated_outcomes": bool(risk.card["simulated_outcomes"]),
        "parents": parents,
        **{
            kind: {name: card[kind] for name, card in cards.items() if card.get(kind) is not None}
            for kind in ("data", "metrics", "licence", "commercial_use", "versions", "seed")
        },
    }


def digest_of(uri: str) -> str:
    """SHA-256 of an object that is read in pieces."""
    digest = hashlib.sha256()
    for chunk in storage.stream_bytes(uri):
        digest.update(chunk)
    return digest.hexdigest()


def require_digest(what: str, content: bytes, digest: str) -> None:
    """Refuse content that is not what its name says.

    Raises:
        BrokenModel: names both hashes.
    """
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise BrokenModel(_differs(what, found, digest))


def _differs(what: str, found: str, digest: str) -> str:
    return f"{what} has SHA-256 {found}, not {digest}; restore it from a copy"


def _direct(uri: str) -> list[str]:
    """Objects in a folder, not those of folders below it."""
    root = storage.as_uri(uri).rstrip("/")
    return [found for found in storage.list_uris(root) if "/" not in found[len(root) + 1 :]]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
