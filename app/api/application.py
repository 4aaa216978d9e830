"""The HTTP application: routers, error answers, and what is opened and closed with it.

It imports no model and no Ray.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app import errors, log
from app.analyses import endpoints as analyses
from app.analyses import report_endpoints as reports
from app.api.error_answers import install_handlers
from app.api.requests import SameResource, only_known_queries
from app.context import CaseQueue, Context
from app.database.migrate import upgrade_to_head
from app.database.session import Database
from app.risks import endpoints as risks
from app.settings import Settings
from app.uploads.reception import remove_abandoned
from app.workflow.queue import open_queue


class Health(BaseModel):
    """The answer of /health."""

    status: str
    version: str


def create_app(
    settings: Settings, *, queue_of: Callable[[Settings], CaseQueue] = open_queue
) -> FastAPI:
    """The application.

    Args:
        settings: see `app.settings`.
        queue_of: opens the queue of cases; a test may give its own.
    """

    def open_context() -> Context:
        upgrade_to_head(settings.database_url)
        remove_abandoned(settings.uploads)
        return Context(
            settings=settings, database=Database(settings.database_url), queue=queue_of(settings)
        )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.configure()
        context = await run_in_threadpool(open_context)
        app.state.context = context
        yield
        await run_in_threadpool(context.queue.close)
        context.database.close()

    app = FastAPI(
        title="Acinus",
        version=version("acinus"),
        description="Prostate biopsies: from a slide to an explained risk report. "
        "Research use only; not a diagnosis.",
        lifespan=lifespan,
        dependencies=[Depends(only_known_queries)],
        redirect_slashes=False,  # `SameResource` takes them
        responses=errors.documented(422, 500, 503),
    )
    app.add_middleware(SameResource)
    app.state.settings = settings
    install_handlers(app)
    app.include_router(analyses.router)
    app.include_router(reports.router)
    app.include_router(risks.router)

    @app.get("/health", tags=["service"])
    def health() -> Health:
        """Whether the service answers."""
        return Health(status="ok", version=app.version)

    @app.get("/-/healthz", include_in_schema=False)
    def healthz() -> PlainTextResponse:
        """The same where Ray's own probes look for it."""
        return PlainTextResponse("success")

    return app
