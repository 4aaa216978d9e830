"""Risk without a slide, over HTTP and in a terminal: one patient, nothing stored, no torch."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from app.api.application import create_app
from app.cases.schemas import ClinicalVariables, patterns_of
from app.cases.tables import Case
from app.database.session import Database
from app.errors import InvalidRequest
from app.risks.assess import assess, current_risk_model
from app.settings import Settings
from pipelines import storage
from tests.app.conftest import client_of
from tests.support.clinical_risk import make_clinical_risk_model
from tests.support.shared_data import needs_shared_data, shared_data
from training.errors import ModelNotFound, VersionNotFound
from training.registry.history import VERSIONS, Log

RISKS = "/api/v1/risks"
MAN: dict[str, Any] = {
    "age": 67,
    "psa": 14.0,
    "t_stage": "T2a",
    "gleason_primary": 3,
    "gleason_secondary": 4,
    "positive_cores": 3,
    "total_cores": 12,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clinical_risk_model(str(tmp_path_factory.mktemp("clinical")))


@pytest.fixture
def settings(tmp_path: Path, models: str) -> Settings:
    return Settings(data_root=tmp_path, models=models)


def post(app: FastAPI, body: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client_of(app) as client:
            return await client.post(RISKS, json=body)

    return asyncio.run(ask())


def test_a_risk_is_answered_with_group_recommendation_and_notice(app: FastAPI) -> None:
    report = post(app, MAN).raise_for_status().json()
    assert report["notice"] == "Research use only; not a diagnosis"
    assert report["simulated_outcomes"] is False
    risk = report["risk"]
    assert 0 < risk["ten_year"]["lower"] < risk["ten_year"]["upper"] < 1
    assert risk["nccn_group"] == "unfavourable intermediate"
    assert risk["missing"] == []
    assert risk["recommendation"]["options"][0]["treatment"] == "radiotherapy"
    assert risk["recommendation"]["options"][1]["trials"][0].startswith("RTOG 9408")
    assert risk["benefit"]["treatment"] == "short-term ADT"
    assert set(risk["curves"]) == {
        "distant metastasis",
        "death of prostate cancer",
        "death of another cause",
    }


def test_risks_by_cause_and_no_event_sum_to_at_most_one(models: str) -> None:
    curves = assess(models, ClinicalVariables(**MAN)).risk.curves
    assert 0 < sum(curve.estimate[-1] for curve in curves.values()) < 1


def test_nothing_that_is_sent_is_stored(app: FastAPI, settings: Settings) -> None:
    post(app, {**MAN, "psa": 14.0321}).raise_for_status()
    database = Database(settings.database_url)
    with database.session() as session:
        assert session.scalars(select(Case)).all() == []
    database.close()
    written = [path for path in settings.data_root.rglob("*") if path.is_file()]
    assert not [path for path in written if b"14.0321" in path.read_bytes()]


def test_a_patient_without_psa_has_a_risk_that_says_so(app: FastAPI) -> None:
    without = {name: value for name, value in MAN.items() if name != "psa"}
    left_out = post(app, without).raise_for_status().json()
    unknown = post(app, {**MAN, "psa": "unknown"}).raise_for_status().json()
    assert left_out["risk"]["missing"] == ["psa"]
    assert left_out["risk"]["nccn_group"] is None
    assert left_out["risk"]["recommendation"]["advice"] is None
    assert unknown["risk"] == left_out["risk"]
    assert (left_out["clinical"]["unknown"], unknown["clinical"]["unknown"]) == ([], ["psa"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Give at least one clinical variable"),
        ({"unknown": ["psa"]}, "Give at least one clinical variable"),
        ({**MAN, "psa": "14"}, "psa"),
        ({**MAN, "psa": 0}, "psa"),
        ({**MAN, "psaa": 1}, "psaa"),
        ({**MAN, "positive_cores": 13}, "give 0 to 12"),
        ({**MAN, "gleason_secondary": None}, "needed together"),
        ({**MAN, "unknown": ["psa"]}, "psa has a value and is stated as unknown"),
        ({"age": 60, "unknown": ["psa", "psa"]}, "names a variable twice"),
        ({"age": 60, "unknown": ["name"]}, "unknown"),
    ],
)
def test_what_no_patient_can_have_is_refused(
    app: FastAPI, body: dict[str, Any], words: str
) -> None:
    answer = post(app, body)
    assert (answer.status_code, answer.json()["error"]) == (422, "InvalidRequest")
    assert words in answer.json()["message"]


def test_a_service_without_a_risk_model_says_so(tmp_path: Path) -> None:
    app = create_app(Settings(data_root=tmp_path, models=str(tmp_path / "none")))
    answer = post(app, MAN)
    assert (answer.status_code, answer.json()["error"]) == (503, "ModelNotFound")


def test_the_web_process_loads_neither_torch_nor_ray(models: str) -> None:
    program = (
        "import sys; from app.api.application import create_app; from app.risks.assess import "
        "assess; from app.cases.schemas import ClinicalVariables; "
        f"assess({models!r}, ClinicalVariables(age=60)); "
        "print(sorted({'torch', 'ray', 'lifelines', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_model_that_takes_slides_averages_over_the_image(tmp_path: Path) -> None:
    models = make_clinical_risk_model(str(tmp_path), image=8)
    risk = assess(models, ClinicalVariables(**MAN)).risk
    assert risk.missing == ["image"]
    assert "image" in risk.contributions


def test_another_model_in_the_folder_is_taken(tmp_path: Path) -> None:
    real = make_clinical_risk_model(str(tmp_path))
    assert current_risk_model(real) is current_risk_model(real)
    assert assess(real, ClinicalVariables(age=60)).simulated_outcomes is False
    make_clinical_risk_model(str(tmp_path), simulated_outcomes=True, seed=1)
    assert assess(real, ClinicalVariables(age=60)).simulated_outcomes is True


def test_the_risk_model_is_the_one_that_a_registry_has_in_production(
    tmp_path: Path,
) -> None:
    registry = storage.as_uri(str(tmp_path))
    log = Log(registry)
    for version, seed in (("a", 1), ("b", 2)):
        make_clinical_risk_model(str(tmp_path / VERSIONS / version), seed=seed)
        log.append("add", "tester", lambda _, version=version: version)
    with pytest.raises(VersionNotFound, match="promote one"):
        current_risk_model(registry)
    log.append("promote", "tester", lambda _: "a")
    first = current_risk_model(registry)
    log.append("promote", "tester", lambda _: "b")
    assert current_risk_model(registry).hash != first.hash


def test_a_folder_without_a_risk_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="risk_model"):
        assess(str(tmp_path), ClinicalVariables(age=60))


def test_a_patient_of_whom_nothing_is_known_has_no_risk(models: str) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        assess(models, ClinicalVariables())


@pytest.mark.parametrize(
    ("text", "patterns"),
    [("3+4", ("3", "4")), (" 5 + 3 ", ("5", "3")), ("unknown", ("unknown", "unknown"))],
)
def test_a_gleason_score_is_read_as_people_write_it(text: str, patterns: tuple[str, str]) -> None:
    assert patterns_of(text) == patterns


@pytest.mark.parametrize("text", ["7", "3+", "2+3", "3+6", "3+4=7", ""])
def test_what_is_not_a_gleason_score_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a Gleason score"):
        patterns_of(text)


def acinus(*line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "risk", *line],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_terminal_prints_what_the_file_has(models: str, tmp_path: Path) -> None:
    file = tmp_path / "risk.json"
    line = ("--age", "67", "--psa", "unknown", "--t-stage", "cT2a", "--gleason", "3+4")
    done = acinus("--models", models, *line, "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["clinical"]["unknown"] == ["psa"]
    assert f"{report['risk']['ten_year']['estimate']:.1%}" in done.stdout
    for words in ("Research use only; not a diagnosis", "PSA, positive cores: the risks", "NCCN"):
        assert words in done.stdout, words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("--gleason", "7"), "--gleason"),
        (("--age", "400"), "--age"),
        (("--psa", "7,2"), "--psa"),
        (("--t-stage", "T9"), "--t-stage"),
        (("--positive-cores", "3"), "total_cores"),
    ],
)
def test_a_mistake_in_the_command_line_is_named(
    models: str, line: tuple[str, ...], words: str
) -> None:
    done = acinus("--models", models, *line)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_any_variable_the_command_says_what_to_give(models: str) -> None:
    done = acinus("--models", models)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Give at least one clinical variable" in done.stderr


@needs_shared_data
@pytest.mark.parametrize(
    ("table", "columns", "men"),
    [
        ("blood_storage_medicaldata", {"age": "Age", "psa": "PreopPSA", "t_stage": "T.Stage"}, 316),
        ("byar_green_prostate_b", {"age": "age", "t_stage": "stage"}, 502),
        ("h2o_prostate380", {"age": "AGE", "psa": "PSA"}, 380),
        ("stagec_rpart", {"age": "age"}, 146),
    ],
)
def test_every_man_of_a_public_table_can_be_entered(
    models: str, table: str, columns: dict[str, str], men: int
) -> None:
    folder = shared_data()
    assert folder is not None
    with (folder / "clinical" / f"{table}.csv").open() as file:
        rows = list(csv.DictReader(file))
    entered = []
    for row in rows:
        stated = {name: row[column] for name, column in columns.items()}
        if stated.get("t_stage") not in (None, "", "NA"):
            stated["t_stage"] = f"T{stated['t_stage']}"
        known = {
            name: "unknown" if value in ("", "NA") else value for name, value in stated.items()
        }
        entered.append(ClinicalVariables.model_validate(known))
    assert len(entered) == men
    for clinical in entered[::50]:
        assert assess(models, clinical).risk.ten_year.estimate > 0
