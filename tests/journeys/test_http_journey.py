"""The whole journey over HTTP, through a real Serve instance: what a clinician's client does, and
what an operator sees of it."""

from __future__ import annotations

import io
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pypdf
import pytest
from PIL import Image

from app.reports.schemas import NOTICE, SIMULATED, Report
from tests.support.model_set import make_registry
from tests.support.service import Service, running
from training.registry.registry import Registry

CLINICAL = {"age": "66", "psa": "7.2", "t_stage": "T2a"}
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def versions(model_set: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, str, str]:
    """A registry, the version in production, and one that finds only benign tissue."""
    return make_registry(model_set, str(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def service(
    versions: tuple[Registry, str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("service"), versions[0].uri) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.address, timeout=30) as client:
        yield client


def send(client: httpx.Client, slide: Path, **fields: str) -> dict[str, Any]:
    with slide.open("rb") as stream:
        answer = client.post(
            "/api/v1/analyses", files={"slide": (slide.name, stream)}, data={**CLINICAL, **fields}
        )
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def finished(client: httpx.Client, accepted: dict[str, Any]) -> list[dict[str, Any]]:
    """All states seen until the last one."""
    states = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        states.append(client.get(accepted["links"]["analysis"]).raise_for_status().json())
        if states[-1]["status"] in {"done", "failed"}:
            return states
        time.sleep(0.05)
    raise AssertionError(f"not finished: {states[-1]}")


def test_from_a_slide_to_a_report(client: httpx.Client, generated_slide: Path) -> None:
    start = time.monotonic()
    accepted = send(client, generated_slide)
    states = finished(client, accepted)
    print(f"journey {time.monotonic() - start:.1f} s")
    last = states[-1]
    assert last["status"] == "done", last
    steps = [state["step"] for state in states if state["step"]]
    assert steps == sorted(steps, key=["ingest", "index", "embed", "predict", "report"].index)
    assert last["progress"]["shards_done"] == last["progress"]["shards_total"] >= 2

    links = accepted["links"]
    answer = client.get(links["report_json"])
    assert answer.headers["content-type"] == "application/json"
    report = Report.model_validate_json(answer.content)
    assert report == Report.model_validate(last["result"])
    assert report.analysis_id == accepted["analysis_id"]
    assert report.specimen.slide_id == last["slide_id"]
    assert report.clinical.psa == 7.2
    assert report.simulated_outcomes
    picture = client.get(links["heatmap"])
    assert picture.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(picture.content)).size) > 300
    document = client.get(links["report_pdf"])
    assert document.headers["content-type"] == "application/pdf"
    for page in pypdf.PdfReader(io.BytesIO(document.content)).pages:
        text = page.extract_text()
        assert NOTICE in text
        assert SIMULATED in text


def test_a_risk_without_a_slide_is_averaged_over_the_image(client: httpx.Client) -> None:
    answer = client.post("/api/v1/risks", json={"age": 66, "psa": 7.2, "t_stage": "T2a"})
    report = answer.raise_for_status().json()
    assert report["notice"] == NOTICE
    assert report["simulated_outcomes"]
    assert "image" in report["risk"]["missing"]
    assert report["risk"]["recommendation"]["advice"] is None


def test_a_slide_within_the_store_by_its_uri(
    service: Service, client: httpx.Client, generated_slide: Path
) -> None:
    first = finished(client, send(client, generated_slide))[-1]
    folder = service.data_root / "store" / "local"
    uri = f"file://{folder}/{first['slide_id']}/slide.svs"
    answer = client.post("/api/v1/analyses", data={"slide_uri": uri}, files={"unused": (None, "")})
    last = finished(client, answer.raise_for_status().json())[-1]
    assert (last["status"], last["slide_id"]) == ("done", first["slide_id"])
    assert last["result"]["risk"] is None


def test_a_bad_slide_is_reported_in_one_sentence(
    client: httpx.Client, generated_slide: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "Doe^John.svs"
    cut.write_bytes(generated_slide.read_bytes()[:100_000])
    accepted = send(client, cut)
    last = finished(client, accepted)[-1]
    assert (last["status"], last["error"]) == ("failed", "BrokenSlide")
    assert "Doe" not in last["error_sentence"]
    assert last["error_sentence"].endswith(".")
    assert client.get(accepted["links"]["report_pdf"]).status_code == 409


def test_an_upload_stays_out_of_memory(service: Service, client: httpx.Client) -> None:
    size = 400 * 2**20

    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="slide"; filename="s.svs"\r\n\r\n'
        for _ in range(size // 2**20):
            yield b"x" * 2**20
        yield b"\r\n--b--\r\n"

    def peak() -> int:
        status = Path(f"/proc/{service.replica('Ingress')}/status").read_text()
        return (
            int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
            * 1024
        )

    before = peak()
    answer = client.post(
        "/api/v1/analyses",
        content=form(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 202
    assert peak() - before < 64 * 2**20
    last = finished(client, answer.json())[-1]
    assert last["status"] == "failed"
    incoming = service.data_root / "store" / "local" / "incoming"
    deadline = time.monotonic() + 30  # a failure is noted first: the store may be its reason
    while list(incoming.rglob("*.svs")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(incoming.rglob("*.svs")), "what cannot be cleaned is not kept"


def test_the_service_listens_only_on_the_given_address(service: Service) -> None:
    port = int(service.address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", port), timeout=2)


def test_cases_survive_the_death_of_the_executor(
    service: Service, client: httpx.Client, generated_slide: Path
) -> None:
    cases = [send(client, generated_slide, psa=str(5 + number)) for number in range(4)]
    victim = service.replica("CaseExecutor")
    while client.get(cases[0]["links"]["analysis"]).json()["status"] == "queued":
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    states = [finished(client, case)[-1] for case in cases]
    print(
        f"{len(states)} cases done {time.monotonic() - start:.1f} s after the executor was killed"
    )
    assert [state["status"] for state in states] == ["done"] * 4
    assert [state["result"]["clinical"]["psa"] for state in states] == [5, 6, 7, 8]
    listed = client.get("/api/v1/analyses", params={"limit": 100}).json()["items"]
    assert len({item["id"] for item in listed}) == len(listed)


def indexed(client: httpx.Client, accepted: dict[str, Any]) -> bool:
    state = client.get(accepted["links"]["analysis"]).raise_for_status().json()
    return state["step"] in {"embed", "predict", "report"} or state["status"] == "done"


def test_promotion_and_rollback_lose_and_mix_no_analysis(
    client: httpx.Client, versions: tuple[Registry, str, str], generated_slide: Path
) -> None:
    """Each report is of one version, and says which; what is sent later has the newer one."""
    registry, first, benign = versions
    cases = []
    for change in (
        lambda: registry.promote(benign, by="test"),
        lambda: registry.rollback(by="test"),
        lambda: None,
    ):
        cases.append([send(client, generated_slide, psa=str(5 + k)) for k in range(3)])
        while not indexed(client, cases[-1][0]):
            time.sleep(0.02)
        change()
    states = [[finished(client, case)[-1] for case in sent] for sent in cases]
    assert {state["status"] for sent in states for state in sent} == {"done"}
    reports = [[Report.model_validate(state["result"]) for state in sent] for sent in states]
    for report in (one for sent in reports for one in sent):
        version = report.provenance.model_version
        assert version in {first, benign}
        assert (report.grading.benign > 0.99) == (version == benign)
    assert reports[0][0].provenance.model_version == first, "it was under way"
    assert benign in {one.provenance.model_version for one in reports[1]}
    last = finished(client, send(client, generated_slide))[-1]["result"]
    assert last["provenance"]["model_version"] == first


def test_a_restart_continues_the_analyses_that_were_running(
    service: Service,
    client: httpx.Client,
    versions: tuple[Registry, str, str],
    generated_slide: Path,
) -> None:
    """The last test: it stops the service that the others use. Meanwhile a version is promoted."""
    registry, _, benign = versions
    cases = [send(client, generated_slide) for _ in range(3)]
    assert service.stop() == 0
    registry.promote(benign, by="test")
    with (
        running(service.data_root, registry.uri) as again,
        httpx.Client(base_url=again.address, timeout=30) as later,
    ):
        assert [finished(later, case)[-1]["status"] for case in cases] == ["done"] * 3
