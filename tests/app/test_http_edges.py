"""Requests that people and programs really send, from odd to wrong: none ends in a 500."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text, update

from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.settings import Settings
from app.slides.tables import SlideRecord
from tests.app.test_api import CLINICAL, left_behind, post, run

ANALYSES = "/api/v1/analyses"
FORM = {"content-type": "multipart/form-data; boundary=b"}


def part(headers: bytes, content: bytes = b"x" * 100) -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


def slide_part(file_name: bytes, content: bytes = b"x" * 100) -> bytes:
    return part(b'Content-Disposition: form-data; name="slide"; ' + file_name, content)


def text_part(name: str, value: str) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), value.encode())


END = b"--b--\r\n"


@pytest.mark.parametrize(
    "file_name",
    [
        'filename="切片.svs"'.encode(),
        'filename="ł.svs"'.encode(),
        'filename="a’b.svs"'.encode(),
        'filename="ä.svs"'.encode(),
        b'filename="Pr\xe4parat.svs"',
        b"filename*=UTF-8''Pr%C3%A4parat.svs",
        b"filename*=iso-8859-1'de'Pr%E4parat.svs",
        b"filename=\"plain.svs\"; filename*=UTF-8''other.exe",
        b'filename="a;b.svs"',
        b'filename="C:\\Slides\\B 12.SVS"',
        b'filename="trailing space.svs "',
        b"filename=unquoted.svs",
    ],
)
def test_a_slide_is_taken_in_whatever_its_file_name(app: FastAPI, file_name: bytes) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await client.post(ANALYSES, content=slide_part(file_name) + END, headers=FORM)
        assert answer.status_code == 202, answer.text

    run(app, journey)


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data; boundary=" + "b" * 257, b"", "257 characters"),
        ("multipart/form-data; boundary=", b"", "multipart/form-data"),
        ("multipart/form-data", b"", "multipart/form-data"),
        ("multipart/form-data; boundary=ł", b"--b", "cannot be read"),
        ("application/x-www-form-urlencoded", b"age=66", "multipart/form-data"),
        ("", b"", "multipart/form-data"),
        (FORM["content-type"], slide_part(b'filename="a.svs"', b"") + END, "empty file (0 bytes)"),
        (FORM["content-type"], slide_part(b"x=1") + END, "-F slide=@FILE"),
        (FORM["content-type"], slide_part(b'filename="a.svs"').replace(b"slide", b"scan") + END,
         "field scan"),
        (FORM["content-type"], text_part("age", "66") + text_part("age", "67") + END,
         "field age more than once"),
        (FORM["content-type"], slide_part(b'filename="a.svs"') * 2 + END,
         "field slide more than once"),
        (FORM["content-type"], b"".join(text_part(f"f{k}", "x") for k in range(40)) + END,
         "more than 32 fields"),
        (FORM["content-type"], text_part("age", "6" * 9000) + END, "longer than 8192 bytes"),
        (FORM["content-type"], part(b"X: " + b"y" * 70000) + END, "cannot be read"),
        (FORM["content-type"], part(b"\r\n".join(b"X: y" for _ in range(500))) + END,
         "cannot be read"),
        (FORM["content-type"], slide_part(b'filename="a.svs"'), "breaks off"),
        (FORM["content-type"], b"", "breaks off"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_used_is_refused_by_name(
    app: FastAPI, settings: Settings, content_type: str, body: bytes, words: str
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        headers = {"content-type": content_type.encode()}
        answer = await client.post(ANALYSES, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "InvalidRequest"), answer.text
        assert words in answer.json()["message"]
        assert left_behind(settings) == []

    run(app, journey)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("psa", "7,2", "'7,2' is not a number"),
        ("psa", "nan", "'nan' is not a number"),
        ("psa", "inf", "'inf' is not a number"),
        ("psa", "1e400", "less than or equal to 5000"),
        ("psa", "1_0", "'1_0' is not a number"),
        ("psa", "７", "is not a number"),
        ("age", "0x42", "'0x42' is not a number"),
        ("mpp", "0,25", "'0,25' is not a number"),
        ("mpp", "nan", "'nan' is not a number"),
        ("gleason_primary", "0_3", "'0_3' is not a number"),
        ("gleason_primary", "3.5", "integer"),
        ("t_stage", "\0", "T1c"),
    ],
)
def test_a_value_that_is_not_a_number_is_refused_by_name(
    app: FastAPI, field: str, value: str, words: str
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await post(client, data={**CLINICAL, field: value})
        assert answer.status_code == 422
        assert answer.json()["message"].startswith(f"{field}: ")
        assert words in answer.json()["message"]

    run(app, journey)


def test_a_browsers_empty_file_input_beside_a_uri_counts_as_no_file(
    app: FastAPI, settings: Settings
) -> None:
    uri = f"{settings.organisation_root('local')}/batch/a.svs"

    async def journey(client: httpx.AsyncClient) -> None:
        body = slide_part(b'filename=""', b"") + text_part("slide_uri", uri) + END
        answer = await client.post(ANALYSES, content=body, headers=FORM)
        assert answer.status_code == 202, answer.text

    run(app, journey)


def test_uploads_that_cannot_be_stored_are_503_with_a_sentence(
    app: FastAPI, settings: Settings
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        settings.uploads.parent.mkdir(parents=True, exist_ok=True)
        settings.uploads.write_bytes(b"a file where the folder should be")
        answer = await post(client)
        assert (answer.status_code, answer.json()["error"]) == (503, "UploadNotStored")
        assert str(settings.data_root) not in answer.text

    run(app, journey)


def test_a_database_that_cannot_be_used_is_503_with_a_sentence(
    app: FastAPI, settings: Settings
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        app.state.context.database.close()
        for path in settings.data_root.glob("acinus.db*"):
            path.unlink()
        for path in (ANALYSES, f"{ANALYSES}/{'0' * 8}-0000-0000-0000-{'0' * 12}/report.pdf"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (503, "DatabaseUnavailable")
            assert "sqlite" not in answer.text.lower()

    run(app, journey)


def test_clinical_variables_of_a_failed_statement_are_not_logged(
    app: FastAPI, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        with app.state.context.database.session() as session:
            session.execute(text("DROP TABLE analyses"))
            session.execute(text("DROP TABLE cases"))
        answer = await post(client, data={**CLINICAL, "psa": "7.0321"})
        assert (answer.status_code, answer.json()["error"]) == (503, "DatabaseUnavailable")

    run(app, journey)
    logged = "".join(capsys.readouterr())
    assert "no such table: cases" in logged
    assert "7.0321" not in logged


def test_a_lost_report_is_503_and_names_no_path(app: FastAPI, settings: Settings) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        body = (await post(client)).json()
        with app.state.context.database.session() as session:
            session.add(
                SlideRecord(organisation_id="local", slide_id="f" * 64, uri="x", size_bytes=1)
            )
            session.flush()
            session.execute(update(Analysis).values(status=Status.DONE, slide_id="f" * 64))
        for link in ("report_json", "heatmap", "report_pdf"):
            answer = await client.get(body["links"][link])
            assert (answer.status_code, answer.json()["error"]) == (503, "ObjectNotFound")
            assert str(settings.data_root) not in answer.text

    run(app, journey)


@pytest.mark.parametrize(
    ("before", "status"),
    [
        ("2026-11-25T10:00:00Z", 200),
        ("2026-11-25T10:00:00.123456789+01:00", 200),
        ("2026-11-25t10:00:00z", 200),
        ("0001-01-01T00:00:00+14:00", 200),
        ("9999-12-31T23:59:59-14:00", 200),
        ("2026-11-25T10:00:00", 422),
        ("2026-11-25", 422),
        ("2026-02-30T10:00:00Z", 422),
        ("0.5", 422),
        ("1e9", 422),
        ("1764064800", 422),
        ("", 422),
        ("now", 422),
        ("２026-11-25T10:00:00Z", 422),
        ("2026-11-25T10:00:00Z\0", 422),
    ],
)
def test_before_is_a_time_with_its_zone(app: FastAPI, before: str, status: int) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await client.get(ANALYSES, params={"before": before})
        assert answer.status_code == status, answer.text
        if status == 422:
            assert "before" in answer.json()["message"]

    run(app, journey)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=1&limit=2", "limit is given 2 times"),
        ("befor=2026-11-25T10:00:00Z", "'befor'"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
    ],
)
def test_a_query_that_cannot_be_used_is_refused_by_name(
    app: FastAPI, query: str, words: str
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        answer = await client.get(f"{ANALYSES}?{query}")
        assert answer.status_code == 422
        assert words in answer.json()["message"]

    run(app, journey)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 100])
def test_pages_lose_no_analyses_that_arrived_at_the_same_time(app: FastAPI, limit: int) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        ids = [(await post(client, size=10)).json()["analysis_id"] for _ in range(6)]
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        with app.state.context.database.session() as session:
            session.execute(
                update(Analysis).where(Analysis.id.in_(ids[1:4])).values(created_at=moment)
            )
        listed, before = [], None
        for _ in range(10):
            params = {"limit": limit} | ({"before": before} if before else {})
            page = (await client.get(ANALYSES, params=params)).raise_for_status().json()
            listed += [item["id"] for item in page["items"]]
            before = page["next_before"]
            if before is None:
                break
        assert sorted(listed) == sorted(ids)

    run(app, journey)


@pytest.mark.parametrize(
    "name", ["%00", "%ff", "nonsense", "..%2f..%2fetc", "%F0%9F%92%A9", "0" * 5000]
)
def test_an_id_that_is_none_is_not_found(app: FastAPI, name: str) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        for end in ("", "/report.json", "/heatmap.png", "/report.pdf"):
            answer = await client.get(f"{ANALYSES}/{name}{end}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound"), answer.text

    run(app, journey)


def test_a_slash_at_the_end_is_the_same_resource(app: FastAPI) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        assert (await client.get(f"{ANALYSES}/")).json() == {"items": [], "next_before": None}
        assert (await client.get("/health/")).json()["status"] == "ok"
        body = slide_part(b'filename="a.svs"') + END
        assert (await client.post(f"{ANALYSES}/", content=body, headers=FORM)).status_code == 202

    run(app, journey)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_a_method_that_is_not_allowed_is_405_and_says_which_are(app: FastAPI, method: str) -> None:
    allowed = {
        ANALYSES: "GET, HEAD, POST",
        f"{ANALYSES}/x": "GET, HEAD",
        f"{ANALYSES}/x/report.pdf": "GET, HEAD",
        "/health": "GET, HEAD",
    }

    async def journey(client: httpx.AsyncClient) -> None:
        for path, methods in allowed.items():
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]) == (405, "MethodNotAllowed"), path
            assert answer.headers["allow"] == methods

    run(app, journey)


def exchange(address: tuple[str, int], request: bytes) -> tuple[int, bytes]:
    """Send bytes and return status and body of the answer; the server closes."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def raw(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: service", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def test_head_is_get_without_the_body(address: tuple[str, int]) -> None:
    status, body = exchange(address, raw("HEAD", "/health"))
    assert (status, body) == (200, b"")
    assert exchange(address, raw("HEAD", f"{ANALYSES}/x/report.pdf")) == (404, b"")


def test_wrong_lengths_and_bytes_that_are_not_http_are_400(
    address: tuple[str, int], settings: Settings
) -> None:
    body = slide_part(b'filename="a.svs"') + END
    kind = "Content-Type: multipart/form-data; boundary=b"
    length = f"Content-Length: {len(body)}"
    assert exchange(address, raw("POST", ANALYSES, kind, length, body=body))[0] == 202
    for wrong in (
        [kind, length, "Content-Length: 7"],
        [kind, "Content-Length: -1"],
        [kind, "Content-Length: many"],
        [kind, length, "Transfer-Encoding: chunked"],
        [kind, "Transfer-Encoding: chunked"],
    ):
        assert exchange(address, raw("POST", ANALYSES, *wrong, body=body))[0] == 400, wrong
    assert exchange(address, b"\x16\x03\x01 this is TLS\r\n\r\n")[0] == 400
    short = raw("POST", ANALYSES, kind, f"Content-Length: {len(body) - 20}", body=body)
    status, answer = exchange(address, short)
    assert (status, json.loads(answer[: answer.rindex(b"}") + 1])["error"]) == (
        422,
        "InvalidRequest",
    )
    huge = raw("POST", ANALYSES, kind, f"Content-Length: {10**15}", body=body)
    assert exchange(address, huge)[0] == 413
    assert exchange(address, raw("GET", "/health"))[0] == 200
    assert left_behind(settings) == []


def test_names_of_patients_in_addresses_are_not_logged(
    app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        await client.get(f"{ANALYSES}/{quote('Doe^John')}/report.pdf")
        await client.get(f"{ANALYSES}?before=Doe%5EJohn")

    run(app, journey)
    assert "Doe" not in "".join(capsys.readouterr())


def test_nothing_of_a_form_is_written_outside_the_uploads(
    app: FastAPI, settings: Settings, tmp_path: Path
) -> None:
    async def journey(client: httpx.AsyncClient) -> None:
        body = slide_part(b'filename="../../../evil.svs"') + END
        assert (await client.post(ANALYSES, content=body, headers=FORM)).status_code == 202

    run(app, journey)
    assert not list(tmp_path.parent.rglob("evil*"))
