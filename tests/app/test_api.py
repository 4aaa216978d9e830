"""HTTP without the executor: what is taken in or refused, and who sees whose analyses."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import select

from app.accounts.principal import Principal, current_principal
from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.api.application import create_app
from app.cases import repository as cases
from app.cases.schemas import ClinicalVariables
from app.cases.tables import Case
from app.database.session import Database
from app.settings import Settings
from app.slides.tables import SlideRecord
from app.uploads import reception
from pipelines import storage
from tests.app.conftest import client_of

CLINICAL = {"age": "66", "psa": "7.2", "t_stage": "T2a"}
OPEN = {"/health", "/-/healthz", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}


def run(app: FastAPI, journey: Any) -> Any:
    async def inside() -> Any:
        async with client_of(app) as client:
            return await journey(client)

    return asyncio.run(inside())


async def post(
    client: httpx.AsyncClient,
    *,
    data: dict[str, str] | None = None,
    name: str = "Doe^John.svs",
    size: int = 1000,
) -> httpx.Response:
    files = {"slide": (name, b"x" * size)} if size else None
    return await client.post(
        "/api/v1/analyses", data=CLINICAL if data is None else data, files=files
    )


def left_behind(settings: Settings) -> list[Path]:
    return (
        [path for path in settings.uploads.rglob("*") if path.is_file()]
        if settings.uploads.exists()
        else []
    )


def _depends(dependant: Dependant, call: object) -> bool:
    return dependant.call is call or any(_depends(child, call) for child in dependant.dependencies)


def _routes(app: FastAPI) -> Iterator[APIRoute]:
    """Every route, also of included routers."""
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if isinstance(route, APIRoute):
            yield route
        pending.extend(
            getattr(route, "routes", None)
            or getattr(getattr(route, "original_router", None), "routes", [])
        )


def test_every_endpoint_depends_on_the_principal(app: FastAPI) -> None:
    paths = set(app.openapi()["paths"])
    seen = set()
    for route in _routes(app):
        if route.path in OPEN:
            continue
        seen.add(route.path)
        assert _depends(route.dependant, current_principal), f"{route.path} lets anyone in"
    assert paths - OPEN <= seen, "the walk missed a route"
    assert len(seen) >= 5


def test_an_upload_is_taken_in(app: FastAPI, settings: Settings) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await post(client, size=2 * 2**20)
        assert answer.status_code == 202, answer.text
        body = answer.json()
        state = (await client.get(body["links"]["analysis"])).json()
        assert state["status"] == "queued"
        assert state["progress"] == {"shards_done": 0, "shards_total": None}
        assert state["result"] is None
        listed = (await client.get("/api/v1/analyses")).json()["items"]
        assert [item["id"] for item in listed] == [body["analysis_id"]]
        for link in ("report_json", "heatmap", "report_pdf"):
            refused = await client.get(body["links"][link])
            assert refused.status_code == 409
            assert refused.json() == {
                "error": "NotReady",
                "message": "The analysis is not done yet; look again in a moment.",
                "analysis": body["analysis_id"],
            }
        with app.state.context.database.session() as session:
            row = session.scalars(select(Analysis)).one()
            case = session.scalars(select(Case)).one()
            assert (case.organisation_id, case.age, case.psa, case.t_stage) == (
                "local",
                66.0,
                7.2,
                "T2a",
            )
            stored = storage.local_path(row.source_uri)
        assert stored is not None
        assert stored.read_bytes() == b"x" * 2 * 2**20
        assert stored.is_relative_to(settings.data_root / "store" / "local")
        everything = [str(path) for path in settings.data_root.rglob("*")]
        assert not any("doe" in path.lower() or "john" in path.lower() for path in everything), (
            "file names hold names of patients"
        )
        assert left_behind(settings) == []

    run(app, journey)


def test_what_is_unknown_is_kept_apart_from_what_was_left_out(
    app: FastAPI, settings: Settings
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        stated = {"age": "66", "psa": "unknown", "gleason_primary": "Unknown", "t_stage": "cTX"}
        accepted = (await post(client, data=stated)).raise_for_status().json()
        database = Database(settings.database_url)
        with database.session() as session:
            found = cases.clinical_variables(session, settings.organisation_id, accepted["case_id"])
        database.close()
        assert found == ClinicalVariables(age=66, unknown=("gleason_primary", "psa", "t_stage"))

    run(app, journey)


@pytest.mark.parametrize(
    ("change", "status", "error", "words"),
    [
        ({"data": {**CLINICAL, "psa": "-1"}}, 422, "InvalidRequest", "psa"),
        ({"data": {**CLINICAL, "age": "old"}}, 422, "InvalidRequest", "age"),
        (
            {"data": {**CLINICAL, "t_stage": "T9"}},
            422,
            "InvalidRequest",
            "T1, T1a, T1b, T1c, T2, T2a, T2b, T2c, T3, T3a, T3b, T4",
        ),
        ({"data": {**CLINICAL, "gleason_primary": "3"}}, 422, "InvalidRequest", "together"),
        ({"data": {"positive_cores": "3"}}, 422, "InvalidRequest", "total_cores, or neither"),
        (
            {"data": {"positive_cores": "4", "total_cores": "3"}},
            422,
            "InvalidRequest",
            "give 0 to 3, the total of cores",
        ),
        ({"data": {**CLINICAL, "unknown": "psa"}}, 422, "InvalidRequest", "unknown"),
        ({"data": {**CLINICAL, "psaa": "7"}}, 422, "InvalidRequest", "psaa"),
        ({"data": {**CLINICAL, "mpp": "250"}}, 422, "InvalidRequest", "mpp"),
        ({"data": {**CLINICAL, "mpp": "x" * 9000}}, 422, "InvalidRequest", "longer than"),
        ({"size": 0}, 422, "InvalidRequest", "multipart/form-data"),
        ({"name": "slide.exe"}, 415, "UnsupportedUpload", "given by URI"),
        ({"size": 3 * 2**20 + 1}, 413, "UploadTooLarge", "0.00293 GiB"),
        ({"size": 5 * 2**20}, 413, "UploadTooLarge", "accepts"),
    ],
)
def test_what_is_refused_says_why_and_leaves_nothing(
    app: FastAPI, settings: Settings, *, change: dict[str, Any], status: int, error: str, words: str
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await post(client, **change)
        body = answer.json()
        assert (answer.status_code, body["error"]) == (status, error), body
        assert words in body["message"]
        assert body["message"].endswith(".")
        assert left_behind(settings) == []
        assert (await client.get("/api/v1/analyses")).json()["items"] == []

    run(app, journey)


def test_an_upload_without_announced_length_is_limited_while_it_arrives(
    app: FastAPI, settings: Settings
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="slide"; filename="s.svs"\r\n\r\n'
        while sent < 100 * 2**20:
            sent += 2**20
            yield b"x" * 2**20

    async def journey(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/api/v1/analyses", content=endless(), headers=headers)
        assert answer.status_code == 413
        assert sent < 10 * 2**20
        assert left_behind(settings) == []

    run(app, journey)


@pytest.mark.parametrize(
    "body",
    [
        b'--b\r\nContent-Disposition: form-data; name="slide"; filename="s.svs"\r\n\r\nhalf a sli',
        b"not a form at all",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="age"\r\n\r\n\xff\xfe\r\n--b--\r\n',
    ],
)
def test_a_broken_form_is_refused_and_leaves_nothing(
    app: FastAPI, settings: Settings, body: bytes
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post("/api/v1/analyses", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "InvalidRequest")
        assert left_behind(settings) == []

    run(app, journey)


def test_two_slides_or_none_are_refused(app: FastAPI) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        both = [("slide", ("a.svs", b"x")), ("slide", ("b.svs", b"x"))]
        assert (await client.post("/api/v1/analyses", data=CLINICAL, files=both)).status_code == 422
        files = {"slide": ("a.svs", b"x")}
        answer = await client.post(
            "/api/v1/analyses", data={**CLINICAL, "slide_uri": "file:///x.svs"}, files=files
        )
        assert "exactly one of the two" in answer.json()["message"]

    run(app, journey)


def test_uris_outside_the_organisations_store_are_refused(
    app: FastAPI, settings: Settings, tmp_path: Path
) -> None:
    root = settings.organisation_root("local")
    inside = tmp_path / "store" / "local" / "batch"
    inside.mkdir(parents=True)
    (inside / "a slide.svs").write_bytes(b"x")
    (tmp_path / "secret.svs").write_bytes(b"x")
    (inside / "link.svs").symlink_to(tmp_path / "secret.svs")
    outside = [
        f"file://{tmp_path}/secret.svs",
        f"{root}/../secret.svs",
        f"{root}/batch/%2e%2e/%2e%2e/%2e%2e/secret.svs",
        f"{root}/batch/link.svs",
        f"{root}-other/x.svs",
        f"{settings.storage_root}/other/x.svs",
        root,
        "s3://bucket/local/x.svs",
        "http://127.0.0.1/x.svs",
        f"{tmp_path}/secret.svs",
        f"{root}/x.svs?versionId=1",
        f"{root}/x%00.svs",
    ]

    async def journey(client: httpx.AsyncClient) -> None:
        for uri in outside:
            files = {"unused": (None, "")}
            answer = await client.post(
                "/api/v1/analyses", data={**CLINICAL, "slide_uri": uri}, files=files
            )
            assert (answer.status_code, answer.json()["error"]) == (403, "OutsideStore"), uri
            assert str(tmp_path) not in answer.text
        answer = await client.post(
            "/api/v1/analyses",
            data={**CLINICAL, "slide_uri": f"{root}/batch/a%20slide.svs"},
            files=files,
        )
        assert answer.status_code == 202, answer.text

    run(app, journey)


def test_another_organisation_sees_nothing(settings: Settings) -> None:
    app = create_app(settings)
    asking = Principal("local", "local")
    app.dependency_overrides[current_principal] = lambda: asking

    async def journey(client: httpx.AsyncClient) -> None:
        nonlocal asking
        mine = (await post(client)).json()
        asking = Principal("intruder", "other")
        for path in (*mine["links"].values(),):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound"), path
        assert (await client.get("/api/v1/analyses")).json()["items"] == []
        theirs = (await post(client)).json()
        assert [item["id"] for item in (await client.get("/api/v1/analyses")).json()["items"]] == [
            theirs["analysis_id"]
        ]

    run(app, journey)


def test_the_list_is_paged_newest_first(app: FastAPI) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        ids = [(await post(client)).json()["analysis_id"] for _ in range(5)]
        page = (await client.get("/api/v1/analyses", params={"limit": 2})).json()
        pages = [item["id"] for item in page["items"]]
        while page["next_before"]:
            page = (
                await client.get(
                    "/api/v1/analyses", params={"limit": 2, "before": page["next_before"]}
                )
            ).json()
            pages += [item["id"] for item in page["items"]]
        assert pages == ids[::-1]
        assert (await client.get("/api/v1/analyses", params={"limit": 1000})).json()[
            "error"
        ] == "InvalidRequest"

    run(app, journey)


def test_a_failed_analysis_gives_its_sentence(app: FastAPI) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        body = (await post(client)).json()
        with app.state.context.database.session() as session:
            row = session.scalars(select(Analysis)).one()
            row.status, row.error, row.error_sentence = (
                Status.FAILED,
                "NoTissue",
                "Slide slide.svs shows no stained tissue.",
            )
        state = (await client.get(body["links"]["analysis"])).json()
        assert (state["status"], state["error"], state["error_sentence"]) == (
            "failed",
            "NoTissue",
            "Slide slide.svs shows no stained tissue.",
        )
        answer = await client.get(body["links"]["report_pdf"])
        assert answer.status_code == 409
        assert "no stained tissue" in answer.json()["message"]

    run(app, journey)


def test_an_unexpected_error_names_nothing_internal(settings: Settings) -> None:
    app = create_app(settings)

    def broken() -> Principal:
        raise RuntimeError("postgresql://user:password@host")

    app.dependency_overrides[current_principal] = broken

    async def journey(client: httpx.AsyncClient) -> None:
        answer = await client.get("/api/v1/analyses")
        assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
        assert "password" not in answer.text
        assert (await client.get("/nowhere")).json()["error"] == "NotFound"
        assert (await client.get("/health")).json()["status"] == "ok"

    run(app, journey)


def test_uploads_of_a_process_that_died_are_removed_after_a_day(settings: Settings) -> None:
    settings.uploads.mkdir(parents=True)
    old, new = settings.uploads / "old.part", settings.uploads / "new.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * reception.ABANDONED_SECONDS,) * 2)
    assert reception.remove_abandoned(settings.uploads) == 1
    assert (old.exists(), new.exists()) == (False, True)


def test_the_form_is_described(app: FastAPI) -> None:
    content = app.openapi()["paths"]["/api/v1/analyses"]["post"]["requestBody"]["content"]
    fields = content["multipart/form-data"]["schema"]["properties"]
    clinical = {"age", "psa", "t_stage", "gleason_primary", "gleason_secondary", "mpp"}
    clinical |= {"positive_cores", "total_cores"}
    assert set(fields) == clinical | {"slide", "slide_uri"}
    assert fields["slide"]["format"] == "binary"
    age, unknown = fields["age"]["anyOf"]
    assert (age["minimum"], age["maximum"], unknown) == (30, 100, {"const": "unknown"})


def test_no_query_forgets_the_organisation() -> None:
    from app.analyses import repository as analyses
    from app.cases import repository as cases
    from app.slides import repository as slides

    for module in (analyses, cases, slides):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and name not in {"queued", "add"}:
                assert "organisation_id" in inspect.signature(function).parameters, (
                    f"{module.__name__}.{name}"
                )
    assert SlideRecord.__table__.primary_key.columns.keys()[0] == "organisation_id"
