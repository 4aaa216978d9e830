"""The case workflow: the next process goes on where one was killed; each result counts once."""

from __future__ import annotations

import base64
import json
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, select, text

from app.accounts.principal import Principal
from app.analyses import service
from app.analyses.files import PDF, REPORT, AnalysisFiles
from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.cases.tables import Case
from app.database.migrate import upgrade_to_head
from app.database.session import Database
from app.settings import Settings
from app.slides.tables import SlideRecord
from app.uploads.reception import Form
from app.workflow.queue import DurableQueue
from pipelines import storage

PRINCIPAL = Principal("test", "local")
FIELDS = {
    "age": "66",
    "psa": "7.2",
    "t_stage": "T2a",
    "gleason_primary": "3",
    "gleason_secondary": "4",
}


@pytest.fixture
def service_settings(tmp_path: Path, model_set: str) -> Settings:
    return Settings(data_root=tmp_path / "data", models=model_set, shards_in_flight=1)


@pytest.fixture
def database(service_settings: Settings) -> Iterator[Database]:
    upgrade_to_head(service_settings.database_url)
    database = Database(service_settings.database_url)
    yield database
    database.close()


def submit(
    settings: Settings, database: Database, slide: Path, fields: dict[str, str] = FIELDS
) -> str:
    """What the web process does."""
    queue = DurableQueue(settings)
    settings.uploads.mkdir(parents=True, exist_ok=True)
    upload = settings.uploads / "upload.part"
    upload.write_bytes(slide.read_bytes())
    form = Form(fields=dict(fields), file=upload, suffix=slide.suffix)
    accepted = service.submit(settings, database, queue, PRINCIPAL, form)
    queue.close()
    return accepted.analysis_id


def executor(settings: Settings, crash: str = "") -> subprocess.CompletedProcess[str]:
    """Run an executor until all is done, or until it dies at the step named."""
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.support.executor_process",
        settings.model_dump_json(),
        crash,
    ]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)


def steps(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [
        line.removeprefix("step ") for line in run.stdout.splitlines() if line.startswith("step ")
    ]


def analysis(database: Database, analysis_id: str) -> Analysis:
    with database.session() as session:
        return session.get_one(Analysis, ("local", analysis_id))


def test_killed_at_any_moment_the_next_process_carries_on(
    service_settings: Settings, database: Database, generated_slide: Path
) -> None:
    """Five processes in a row work on one case; four of them are killed."""
    analysis_id = submit(service_settings, database, generated_slide)
    for crash, expected in (
        ("index", ["ingest", "index"]),  # between two steps
        ("embed:1", ["index", "embed"]),  # within a step, one of its shards being done
        ("report", ["embed", "predict", "report"]),
        ("done", ["report"]),  # the result is written down, the workflow does not know
    ):
        run = executor(service_settings, crash)
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert steps(run) == expected, "finished steps are not run again"
        if crash == "embed:1":
            stored = {
                path: path.stat().st_mtime_ns
                for path in service_settings.data_root.rglob("[0-9]*.safetensors")
            }
            assert stored
    last = executor(service_settings)
    assert last.returncode == 0, last.stderr
    assert steps(last) == [], "what is done is done"

    row = analysis(database, analysis_id)
    assert (row.status, row.step, row.error, row.attempts) == (Status.DONE, None, None, 4)
    assert row.shards_total is not None
    assert row.shards_done == row.shards_total >= 2
    assert row.result is not None
    assert row.slide_id is not None
    with database.session() as session:
        assert [
            len(session.scalars(select(table)).all()) for table in (Case, SlideRecord, Analysis)
        ] == [1, 1, 1]
    files = AnalysisFiles(
        root=service_settings.storage_root, organisation="local", analysis_id=analysis_id
    )
    assert json.loads(storage.read_bytes(files.uri(row.slide_id, REPORT))) == row.result
    assert storage.read_bytes(files.uri(row.slide_id, PDF)).startswith(b"%PDF")
    assert not (service_settings.data_root / "store" / "local" / "incoming" / analysis_id).exists()
    embeddings = {
        path: path.stat().st_mtime_ns
        for path in service_settings.data_root.rglob("[0-9]*.safetensors")
    }
    assert len(embeddings) == row.shards_total
    assert stored.items() <= embeddings.items(), "a shard that was done was not computed again"


def test_a_queue_of_good_and_bad_cases(
    service_settings: Settings,
    database: Database,
    generated_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One executor works on them all: each ends as it should, whatever becomes of the others."""
    cut = tmp_path / "cut.svs"
    cut.write_bytes(generated_slide.read_bytes()[:200_000])
    bad = submit(service_settings, database, cut)
    poison = submit(service_settings, database, generated_slide)
    with database.session() as session:
        session.get_one(Analysis, ("local", poison)).attempts = 5
    good = submit(
        service_settings, database, generated_slide, {**FIELDS, "age": "71.625", "psa": "13.125"}
    )
    with monkeypatch.context() as patch:
        patch.setattr(DurableQueue, "enqueue", dies)
        with pytest.raises(ConnectionError):
            submit(service_settings, database, generated_slide, {})
    run = executor(service_settings)
    assert run.returncode == 0, run.stderr

    row = analysis(database, bad)
    assert (row.status, row.error) == (Status.FAILED, "BrokenSlide")
    assert row.error_sentence is not None
    assert row.error_sentence.startswith("Slide slide.svs ")
    assert not storage.exists(row.source_uri), "an original that was not de-identified is not kept"
    row = analysis(database, poison)
    assert (row.status, row.error) == (Status.FAILED, "AnalysisAbandoned")
    row = analysis(database, good)
    assert row.status is Status.DONE
    with database.session() as session:
        unqueued = session.scalars(select(Analysis).order_by(Analysis.created_at.desc())).first()
    assert unqueued is not None
    assert unqueued.status is Status.DONE, (
        "what the web process wrote down but could not queue is queued at the next start"
    )
    assert unqueued.slide_id == row.slide_id
    assert unqueued.result is not None
    assert unqueued.result["risk"] is None
    assert "no clinical variable was given" in unqueued.result["risk_absent_because"]
    embeddings = list(service_settings.data_root.rglob("[0-9]*.safetensors"))
    assert len(embeddings) == row.shards_total, "the same slide twice is embedded once"

    known = workflow_database(service_settings)
    assert "SlideSource" in known, "the test reads what DBOS keeps"
    assert good in known
    assert "71.625" not in known
    assert "13.125" not in known
    assert "71.625" not in run.stderr + run.stdout
    assert "13.125" not in run.stderr + run.stdout


@pytest.mark.parametrize("root", ["disk", "s3"])
def test_the_same_slide_uploaded_many_times_while_it_is_analysed_gives_each_its_report(
    root: str,
    tmp_path: Path,
    model_set: str,
    generated_slide: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A double click, a retry, a corrected PSA: no upload disturbs an analysis that is running."""
    store = {"storage_root": request.getfixturevalue("bucket")} if root == "s3" else {}
    settings = Settings(data_root=tmp_path / "data", models=model_set, concurrent_cases=3, **store)
    upgrade_to_head(settings.database_url)
    database = Database(settings.database_url)
    uploads = {
        submit(settings, database, generated_slide, {**FIELDS, "psa": str(psa)}): float(psa)
        for psa in range(4, 10)
    }
    run = executor(settings)
    assert run.returncode == 0, run.stderr
    rows = {analysis_id: analysis(database, analysis_id) for analysis_id in uploads}
    assert {row.error_sentence for row in rows.values()} == {None}
    assert {row.status for row in rows.values()} == {Status.DONE}
    for analysis_id, psa in uploads.items():
        result = rows[analysis_id].result
        assert result is not None
        assert result["clinical"]["psa"] == psa
    assert len({row.slide_id for row in rows.values()}) == 1
    database.close()


def test_a_killed_case_is_finished_on_postgresql(
    postgres: str, tmp_path: Path, model_set: str, generated_slide: Path
) -> None:
    """Rows and workflow in one PostgreSQL, as in the cloud: the next process finishes."""
    server = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        for name in ("service", "workflows"):
            connection.execute(text(f"CREATE DATABASE {name}"))
    server.dispose()
    urls = {
        field: make_url(postgres).set(database=name).render_as_string(hide_password=False)
        for field, name in (("database_url", "service"), ("workflow_database_url", "workflows"))
    }
    settings = Settings(data_root=tmp_path / "data", models=model_set, shards_in_flight=1, **urls)
    upgrade_to_head(settings.database_url)
    database = Database(settings.database_url)
    analysis_id = submit(settings, database, generated_slide)
    assert executor(settings, "embed").returncode == -signal.SIGKILL
    last = executor(settings)
    assert last.returncode == 0, last.stderr
    assert steps(last) == ["embed", "predict", "report"]
    row = analysis(database, analysis_id)
    assert (row.status, row.attempts) == (Status.DONE, 2)
    database.close()


def dies(*_args: object) -> None:
    raise ConnectionError


def workflow_database(settings: Settings) -> str:
    """Everything that DBOS keeps, decoded."""
    connection = sqlite3.connect(settings.data_root / "workflows.db")
    values = [
        value
        for table in ("workflow_status", "operation_outputs", "workflow_inputs")
        for row in (
            connection.execute(f"SELECT * FROM {table}") if has_table(connection, table) else ()
        )
        for value in row
        if isinstance(value, str)
    ]
    connection.close()
    return " ".join(decoded(value) for value in values)


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    return bool(
        connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    )


def decoded(value: str) -> str:
    try:
        return repr(pickle.loads(base64.b64decode(value, validate=True)))
    except (ValueError, pickle.UnpicklingError, EOFError, KeyError, IndexError):
        return value
