"""Ray Serve around plain functions: where models and case executor run.

    CaseExecutor   one replica: works the queue, its steps call the two below
    Encoder        embeds shards: rows of the shard table in, embeddings to their content address
    SlideRisk      reads a slide: bag of embeddings -> patterns, grade, risk

Both hold the versions that analyses ask for: a promotion in the registry is noticed by the next
analysis, and those under way go on with the version that they started with.

Wrappers only: each method is one call of a function that is tested without Ray. Torch runs in
threads, never on the event loop. Plain classes here; `app.serve.build` says how many of each there
are and what they may use.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from app import log
from app.cases.schemas import ClinicalVariables
from app.inference.models import EncoderModel, Held, SlideRiskModel
from app.reports.findings import Findings, ModelSetFacts
from app.settings import Settings
from app.workflow.executor import CaseExecutor
from pipelines.fingerprint import Fingerprint
from training.precision import PrecisionChoice
from training.registry.source import open_source


class EncoderDeployment:
    """One replica of the encoder.

    Requests overlap: one shard is fetched and decoded while another is computed.
    """

    def __init__(self, settings: Settings, precision: PrecisionChoice) -> None:
        log.configure()
        torch.set_num_threads(settings.torch_threads)
        device = "cuda" if settings.encoder_gpus else "cpu"
        source = open_source(settings.models)

        def load(version: str) -> EncoderModel:
            return EncoderModel(source.load(version, device=device, precision=precision).encoder)

        self._held = Held(load)
        self._held.get_now(source.production())

    async def key(self, version: str) -> str:
        """Names the embeddings of a version's encoder in their addresses."""
        return (await self._held.get(version)).key

    async def embed(self, version: str, shards: pa.Table, root: str) -> None:
        """Embed these shards and write each to its address below `root`."""
        await (await self._held.get(version)).embed(shards, root)


class SlideRiskDeployment:
    """Slide model and risk model; which version is in production."""

    def __init__(self, settings: Settings) -> None:
        log.configure()
        torch.set_num_threads(settings.torch_threads)
        self._source = source = open_source(settings.models)
        self._held = Held(lambda version: SlideRiskModel(version, source.load(version)))
        self._held.get_now(source.production())

    async def facts(self, version: str | None) -> ModelSetFacts:
        """Names, hashes and PatchSpec of a version; None is the one in production."""
        if version is None:
            version = await asyncio.to_thread(self._source.production)
        return (await self._held.get(version)).facts

    async def read(
        self,
        facts: ModelSetFacts,
        shards: pa.Table,
        root: str,
        clinical: ClinicalVariables,
        look: Fingerprint,
    ) -> Findings:
        """Read a slide whose shards are all embedded by the encoder of these facts."""
        model = await self._held.get(facts.version)
        return await asyncio.to_thread(model.read, shards, root, clinical, look, facts.encoder_key)


class ServedModels:
    """The models behind deployment handles (`app.inference.models.Models`).

    The workflow's steps run on an event loop of their own; handles are used on the replica's loop,
    where they were made.
    """

    def __init__(
        self,
        encoder: DeploymentHandle,
        slide_risk: DeploymentHandle,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._encoder = encoder
        self._slide_risk = slide_risk
        self._loop = loop

    async def facts(self, version: str | None = None) -> ModelSetFacts:
        """See `Models`."""
        facts: ModelSetFacts = await self._call(self._slide_risk, "facts", version)
        key = await self._call(self._encoder, "key", facts.version)
        return replace(facts, encoder_key=key)

    async def embed(self, version: str, shards: pa.Table, root: str) -> None:
        """See `Models`."""
        await self._call(self._encoder, "embed", version, shards, root)

    async def read(
        self,
        facts: ModelSetFacts,
        shards: pa.Table,
        root: str,
        clinical: ClinicalVariables,
        look: Fingerprint,
    ) -> Findings:
        """See `Models`."""
        findings: Findings = await self._call(
            self._slide_risk, "read", facts, shards, root, clinical, look
        )
        return findings

    async def _call(self, deployment: DeploymentHandle, method: str, *args: Any) -> Any:
        """One request on the replica's loop; errors come back as the deployment raised them."""

        async def request() -> (
            Any
        ):  # the handle binds itself to the loop on which its method is first named
            return await getattr(deployment, method).remote(*args)

        try:
            return await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(request(), self._loop)
            )
        except RayTaskError as error:
            raise error.as_instanceof_cause().cause from None


class CaseExecutorDeployment:
    """The one executor of the case workflow.

    Never more than one replica: it claims workflows under a fixed name.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, encoder: DeploymentHandle, slide_risk: DeploymentHandle
    ) -> None:
        log.configure()
        self._executor = CaseExecutor(
            settings, ServedModels(encoder, slide_risk, asyncio.get_running_loop())
        )
        await self._executor.start()

    async def ready(self) -> bool:
        """Answers once the executor works."""
        return True

    async def __del__(self) -> None:
        """Leave what is under way to the next replica."""
        await self._executor.stop()
