"""The models that a case needs: in this process, or behind handles (`app.serve.deployments`).

Both do the same through the same functions of `training`, so that an analysis is the same on both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Generic, Protocol, Self, TypeVar

import pyarrow as pa

from app.cases.schemas import ClinicalVariables
from app.reports import schemas
from app.reports.findings import Findings, ModelSetFacts
from app.reports.risk import GleasonFrom
from pipelines.fingerprint import Fingerprint
from pipelines.patch_source import publish_counts
from pipelines.patches import fetch_shards
from training.cards import Card
from training.encoder.embed import embed_fetched, load_bag, require_patches
from training.encoder.encoder import Encoder
from training.model_set import ModelSet
from training.registry.source import ModelSource, open_source
from training.risk.covariates import Covariates
from training.slide import gleason
from training.slide.neighbours import Neighbours

T = TypeVar("T")

MAX_HELD: Final = 2
"""Versions in memory at a time: the one in production, and the one before it, with which analyses
under way go on."""


class Models(Protocol):
    """The models of each version that an analysis under way needs."""

    async def facts(self, version: str | None = None) -> ModelSetFacts:
        """Names, hashes and PatchSpec; without a version, of the one in production.

        Raises:
            VersionNotFound: there is no such version, or none in production.
        """

    async def embed(self, version: str, shards: pa.Table, root: str) -> None:
        """Embed these shards and write each to its address below `root`."""

    async def read(
        self,
        facts: ModelSetFacts,
        shards: pa.Table,
        root: str,
        clinical: ClinicalVariables,
        look: Fingerprint,
    ) -> Findings:
        """Read a slide whose shards are all embedded by the models that `facts` identify."""


class Held(Generic[T]):
    """What was loaded of a model set, by version: the last MAX_HELD that were loaded.

    A version is loaded when the first analysis asks for it, while others go on with theirs.
    """

    def __init__(self, load: Callable[[str], T]) -> None:
        self._load = load
        self._held: dict[str, T] = {}
        self._loading = threading.Lock()

    async def get(self, version: str) -> T:
        """Of this version; loaded once, in a thread."""
        return await asyncio.to_thread(self.get_now, version)

    def get_now(self, version: str) -> T:
        """Of this version."""
        if (found := self._held.get(version)) is not None:  # while another is being loaded, too
            return found
        with self._loading:
            if (found := self._held.get(version)) is None:
                found = self._held[version] = self._load(version)
            while len(self._held) > MAX_HELD:
                del self._held[next(iter(self._held))]
        return found


class EncoderModel:
    """The encoder in this process. One shard is fetched while another is computed."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._computing = threading.Lock()

    @property
    def key(self) -> str:
        """Names its embeddings in their addresses."""
        return self._encoder.key

    async def embed(self, shards: pa.Table, root: str) -> None:
        """Embed these shards and write each to its address below `root`."""
        require_patches(shards, self._encoder)
        fetched = await asyncio.to_thread(fetch_shards, shards)
        publish_counts(fetched)
        await asyncio.to_thread(self._compute, fetched, root)

    def _compute(self, fetched: pa.Table, root: str) -> None:
        with self._computing:  # one at a time: the network uses all threads that it was given
            embed_fetched(fetched, self._encoder, root)


class SlideRiskModel:
    """Slide model and risk model in this process."""

    def __init__(self, version: str, models: ModelSet) -> None:
        self._slide_model = models.slide_model
        self._risk_model = models.risk_model
        self.facts = facts_of(version, models)

    def read(
        self,
        shards: pa.Table,
        root: str,
        clinical: ClinicalVariables,
        look: Fingerprint,
        encoder_key: str,
    ) -> Findings:
        """Read a slide whose shards are all embedded by the encoder of that key."""
        bag = load_bag(shards, encoder_key, root)
        slide = self._slide_model.predict(
            bag.embeddings, Neighbours.of(bag.x, bag.y, bag.patch_side)
        )
        grading = self._slide_model.grade(slide)
        covariates, gleason_from, absent = covariates_of(clinical, grading)
        risk = (
            self._risk_model.predict(slide.embedding, covariates)
            if covariates is not None
            else None
        )
        return Findings(
            x=bag.x,
            y=bag.y,
            slide=slide,
            grading=grading,
            area_errors=self._slide_model.area_errors,
            likeness=self._slide_model.likeness(bag.embeddings, look),
            risk=risk,
            covariates=covariates,
            risk_absent_because=absent,
            gleason_from=gleason_from,
        )


def covariates_of(
    clinical: ClinicalVariables, grading: gleason.Grading
) -> tuple[Covariates | None, GleasonFrom, str | None]:
    """What the risk model is given, and whose Gleason patterns those are.

    Without covariates the third value says why there is no risk, as the end of a sentence.
    """
    if not clinical.stated:
        return None, "pathologist", "no clinical variable was given."
    if clinical.gleason_primary is not None:
        return clinical.covariates(), "pathologist", None
    if grading.primary is None or grading.secondary is None:
        return (
            None,
            "image",
            "no cancer was seen on this slide and no Gleason score was given; "
            "the risk is for men with cancer.",
        )
    return clinical.covariates(image=(grading.primary, grading.secondary)), "image", None


def facts_of(version: str, models: ModelSet) -> ModelSetFacts:
    """What identifies a model set."""

    def named(card: Card, name: str, digest: str) -> schemas.ModelFacts:
        software = card.get("versions", {}).get("acinus", "")
        return schemas.ModelFacts(
            name=str(card.get("name", name)), hash=digest, version=str(software)
        )

    return ModelSetFacts(
        version=version,
        spec=models.spec,
        encoder=named(models.encoder.card, "encoder", models.encoder.hash),
        slide_model=named(
            models.slide_model.card, "pattern head and gated attention", models.slide_model.hash
        ),
        risk_model=named(
            models.risk_model.card,
            "competing hazards of image and clinical variables",
            models.risk_model.hash,
        ),
        simulated_outcomes=bool(models.risk_model.card["simulated_outcomes"]),
        encoder_key=models.encoder.key,
    )


class InProcessModels:
    """All models in this process: what `acinus analyse` uses."""

    def __init__(self, source: ModelSource) -> None:
        def load(version: str) -> tuple[EncoderModel, SlideRiskModel]:
            models = source.load(version)
            return EncoderModel(models.encoder), SlideRiskModel(version, models)

        self._source = source
        self._held = Held(load)

    @classmethod
    def load(cls, uri: str) -> Self:
        """The model set at a URI, or what the registry there has in production.

        Raises:
            TrainingError: there is none, or its parts do not fit together.
        """
        models = cls(open_source(uri))
        models._held.get_now(models._source.production())
        return models

    async def facts(self, version: str | None = None) -> ModelSetFacts:
        """See `Models`."""
        if version is None:
            version = await asyncio.to_thread(self._source.production)
        return (await self._held.get(version))[1].facts

    async def embed(self, version: str, shards: pa.Table, root: str) -> None:
        """See `Models`."""
        encoder, _ = await self._held.get(version)
        await encoder.embed(shards, root)

    async def read(
        self,
        facts: ModelSetFacts,
        shards: pa.Table,
        root: str,
        clinical: ClinicalVariables,
        look: Fingerprint,
    ) -> Findings:
        """See `Models`."""
        _, slide_risk = await self._held.get(facts.version)
        return await asyncio.to_thread(
            slide_risk.read, shards, root, clinical, look, facts.encoder_key
        )
