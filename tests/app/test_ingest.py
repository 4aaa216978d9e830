"""Ingestion: de-identified, known by its hash, stored once; repeatable at every point."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import boto3
import pytest
from dbos import error as dbos_error
from sqlalchemy import select
from structlog.testing import capture_logs

from app.accounts.principal import Principal
from app.accounts.tables import Organisation
from app.analyses import service
from app.analyses.files import AnalysisFiles
from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.cases.tables import Case
from app.context import CaseQueue
from app.database.migrate import upgrade_to_head
from app.database.session import Database
from app.errors import UNUSABLE_STORE, clinical_sentence
from app.inference.models import Models
from app.settings import Settings
from app.slides import store
from app.slides.tables import SlideRecord
from app.uploads.reception import ABANDONED_SECONDS, Form
from app.workflow.case_workflow import CaseWorkflow
from app.workflow.ingestion import ingest, remove_abandoned
from pipelines import storage
from pipelines.slides.errors import BrokenSlide, SlideNotFound, UnsupportedSlide


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    upgrade_to_head(settings.database_url)
    database = Database(settings.database_url)
    with database.session() as session:
        session.add(Organisation(id="local"))
        session.flush()
        session.add(Case(organisation_id="local", id="case"))
    yield database
    database.close()


def handed_in(
    settings: Settings, database: Database, path: Path, analysis_id: str = "analysis"
) -> str:
    """An upload as the endpoint leaves it."""
    uri = store.incoming_uri(settings, "local", analysis_id, path.suffix)
    storage.write_file(uri, path)
    add_analysis(database, uri, analysis_id=analysis_id, uploaded=True)
    return uri


def add_analysis(
    database: Database, uri: str, *, analysis_id: str = "analysis", uploaded: bool = False
) -> None:
    with database.session() as session:
        session.add(
            Analysis(
                organisation_id="local",
                id=analysis_id,
                case_id="case",
                source_uri=uri,
                uploaded=uploaded,
            )
        )


def files(settings: Settings) -> list[str]:
    root = settings.data_root / "store"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def store_is_down(uri: str) -> None:
    raise storage.StoreUnavailable(uri, "can't be removed", "check the connection")


def test_a_slide_is_known_by_its_clean_bytes(
    settings: Settings, database: Database, generated_slide: Path
) -> None:
    source = handed_in(settings, database, generated_slide)
    taken = ingest(settings, database, "local", "analysis")
    stored = storage.local_path(taken.uri)
    assert stored is not None
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == taken.slide_id
    assert taken.size_bytes == stored.stat().st_size
    assert files(settings) == [f"local/{taken.slide_id}/slide.svs"], (
        "the original is gone, and nothing else was written"
    )
    assert not storage.exists(source)
    assert list(settings.staging.iterdir()) == []
    with database.session() as session:
        row = session.scalars(select(SlideRecord)).one()
        assert (row.slide_id, row.uri, row.size_bytes) == (
            taken.slide_id,
            taken.uri,
            taken.size_bytes,
        )
        assert session.scalars(select(Analysis)).one().slide_id == taken.slide_id


def test_ingesting_again_gives_the_same_and_nothing_twice(
    settings: Settings, database: Database, generated_slide: Path
) -> None:
    handed_in(settings, database, generated_slide)
    first = ingest(settings, database, "local", "analysis")
    assert ingest(settings, database, "local", "analysis") == first, (
        "after a crash behind the last commit"
    )
    handed_in(settings, database, generated_slide, "second")
    assert ingest(settings, database, "local", "second") == first, "the same slide, sent again"
    with database.session() as session:
        assert len(session.scalars(select(SlideRecord)).all()) == 1


def test_the_same_slide_sent_again_leaves_the_stored_file_untouched(
    settings: Settings, database: Database, generated_slide: Path
) -> None:
    """A running analysis holds on to the version of the file that it has indexed."""
    handed_in(settings, database, generated_slide)
    stored = storage.local_path(ingest(settings, database, "local", "analysis").uri)
    assert stored is not None
    before = stored.stat()
    handed_in(settings, database, generated_slide, "second")
    ingest(settings, database, "local", "second")
    after = stored.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [name for name in files(settings) if "incoming" in name] == []


def test_a_crash_before_the_commit_loses_nothing(
    settings: Settings, database: Database, generated_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = handed_in(settings, database, generated_slide)

    def crash(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("app.slides.repository.record", crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(settings, database, "local", "analysis")
    assert storage.exists(source)
    assert ingest(settings, database, "local", "analysis").slide_id in files(settings)[0]


def test_a_slide_given_by_uri_stays_where_it_is(
    settings: Settings, database: Database, generated_slide: Path
) -> None:
    uri = storage.join(settings.organisation_root("local"), "batch", "x.svs")
    storage.write_file(uri, generated_slide)
    add_analysis(database, uri)
    taken = ingest(settings, database, "local", "analysis")
    assert storage.exists(uri)
    add_analysis(database, taken.uri, analysis_id="again")
    assert ingest(settings, database, "local", "again") == taken, (
        "an ingested slide is not ingested again"
    )
    assert files(settings) == sorted(["local/batch/x.svs", f"local/{taken.slide_id}/slide.svs"])


def test_broken_unsupported_and_lost_slides_are_refused(
    settings: Settings, database: Database, generated_slide: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.svs"
    cut.write_bytes(generated_slide.read_bytes()[:5000])
    other = tmp_path / "other.tif"
    other.write_bytes(b"GIF89a" + b"\0" * 5000)
    gone = storage.join(settings.organisation_root("local"), "gone.svs")
    for number, (path, error) in enumerate([(cut, BrokenSlide), (other, UnsupportedSlide)]):
        handed_in(settings, database, path, str(number))
        with pytest.raises(error) as caught:
            ingest(settings, database, "local", str(number))
        assert caught.value.slide in {"slide.svs", "slide.tif"}, (
            "file names may hold names of patients"
        )
    add_analysis(database, gone)
    with pytest.raises(SlideNotFound):
        ingest(settings, database, "local", "analysis")
    assert list(settings.staging.iterdir()) == []


def test_a_slide_is_ingested_into_s3_once(
    bucket: str, tmp_path: Path, generated_slide: Path
) -> None:
    settings = Settings(data_root=tmp_path, storage_root=bucket)
    upgrade_to_head(settings.database_url)
    database = Database(settings.database_url)
    with database.session() as session:
        session.add(Organisation(id="local"))
        session.flush()
        session.add(Case(organisation_id="local", id="case"))
    source = store.incoming_uri(settings, "local", "analysis", ".svs")
    local = shutil.copy(generated_slide, tmp_path / "upload.part")
    storage.write_file_once(source, Path(local), consume=True)
    add_analysis(database, source, uploaded=True)
    taken = ingest(settings, database, "local", "analysis")
    assert taken.uri == f"{bucket}/local/{taken.slide_id}/slide.svs"
    assert hashlib.sha256(storage.read_bytes(taken.uri)).hexdigest() == taken.slide_id
    assert storage.list_uris(f"{bucket}/local") == [taken.uri]
    assert not Path(local).exists()

    def version() -> object:
        name, key = taken.uri.removeprefix("s3://").split("/", 1)
        found = boto3.client("s3").head_object(Bucket=name, Key=key)
        return found["ETag"], found["LastModified"]

    before = version()
    time.sleep(1.1)  # LastModified has whole seconds
    again = store.incoming_uri(settings, "local", "second", ".svs")
    storage.write_file(again, generated_slide)
    add_analysis(database, again, analysis_id="second", uploaded=True)
    assert ingest(settings, database, "local", "second") == taken
    assert version() == before, "what is stored is left untouched"
    assert not storage.exists(again)
    database.close()


def test_a_case_whose_store_is_down_is_failed_though_its_upload_is_not_removed(
    settings: Settings,
    database: Database,
    generated_slide: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row names the store, and the log says that the upload stays, without its URI."""
    source = handed_in(settings, database, generated_slide)
    workflow = CaseWorkflow(settings, database, cast(Models, None))
    monkeypatch.setattr(storage, "delete", store_is_down)
    files = AnalysisFiles(root=settings.storage_root, organisation="local", analysis_id="analysis")
    with capture_logs() as lines:
        down = storage.StoreUnavailable("slide.svs", "can't be read", "check the connection")
        workflow._fail(files, dbos_error.DBOSMaxStepRetriesExceeded("ingest", 6, [down]))
    with database.session() as session:
        row = session.scalars(select(Analysis)).one()
        assert (row.status, row.error) == (Status.FAILED, "StoreUnavailable")
        assert row.error_sentence == UNUSABLE_STORE
    [line] = [line for line in lines if line["event"] == "upload not removed"]
    assert (line["analysis"], line["error"]) == ("analysis", "StoreUnavailable")
    assert source not in str(lines)


@pytest.mark.parametrize("store_fails_too", [False, True])
def test_an_upload_whose_rows_cannot_be_written_is_not_kept(
    settings: Settings,
    database: Database,
    generated_slide: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    store_fails_too: bool,
) -> None:
    """The error is the database's, even if the store does not remove the upload."""
    upload = Path(shutil.copy(generated_slide, settings.data_root / "upload.part"))
    form = Form(file=upload, suffix=".svs")

    def full(*_args: object) -> None:
        raise ConnectionError("no room for rows")

    monkeypatch.setattr("app.analyses.repository.add", full)
    if store_fails_too:
        monkeypatch.setattr(storage, "delete", store_is_down)
    with pytest.raises(ConnectionError, match="no room for rows"):
        service.submit(settings, database, cast(CaseQueue, None), Principal("test", "local"), form)
    assert len(files(settings)) == store_fails_too


@pytest.mark.parametrize("root", ["disk", "s3"])
def test_uploads_that_no_open_analysis_refers_to_are_removed_after_a_day(
    root: str,
    tmp_path: Path,
    generated_slide: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process died before it wrote the row; or the store did not remove a failed case's."""
    at_root = {"storage_root": request.getfixturevalue("bucket")} if root == "s3" else {}
    settings = Settings(data_root=tmp_path, **at_root)
    upgrade_to_head(settings.database_url)
    database = Database(settings.database_url)
    kept = storage.join(settings.organisation_root("local"), "batch", "x.svs")
    orphan = store.incoming_uri(settings, "local", "orphan", ".svs")
    for uri in (kept, orphan):
        storage.write_file(uri, generated_slide)
    assert remove_abandoned(settings, database) == 0, "its row may be written yet"
    with database.session() as session:
        session.add(Organisation(id="local"))
        session.flush()
        session.add(Case(organisation_id="local", id="case"))
    waiting = handed_in(settings, database, generated_slide, "waiting")
    failed = handed_in(settings, database, generated_slide, "failed")
    with database.session() as session:
        session.get_one(Analysis, ("local", "failed")).status = Status.FAILED
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ABANDONED_SECONDS + 60)
    assert remove_abandoned(settings, database) == 2
    remaining = {uri: storage.exists(uri) for uri in (kept, orphan, waiting, failed)}
    assert remaining == {kept: True, orphan: False, waiting: True, failed: False}
    database.close()


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (storage.ObjectNotFound, SlideNotFound),
        (storage.AccessDenied, SlideNotFound),
        (storage.InvalidUri, SlideNotFound),
        (storage.StoreUnavailable, storage.StoreUnavailable),
        (storage.StorageError, storage.StoreUnavailable),
    ],
)
@pytest.mark.parametrize("source", ["disk", "s3"])
def test_a_store_that_fails_names_no_patient_in_the_error_of_its_slide(
    source: str,
    failure: type[storage.StorageError],
    error: type[Exception],
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that does not answer is tried again; the file's name goes to no log."""
    uri = f"s3://b/local/DOE_JOHN.{source}.svs"
    if source == "disk":
        uri = storage.join(settings.organisation_root("local"), "DOE_JOHN.svs")

    def fail(asked: str) -> None:
        raise failure(asked, "of DOE_JOHN", "ask DOE_JOHN")

    monkeypatch.setattr(storage, "stream_bytes", fail)
    monkeypatch.setattr(storage, "exists", fail)
    add_analysis(database, uri)
    with pytest.raises(error) as caught:
        ingest(settings, database, "local", "analysis")
    assert caught.value.__suppress_context__
    assert "DOE" not in f"{caught.value} {caught.value.args} {clinical_sentence(caught.value)}"
    assert (clinical_sentence(caught.value) == UNUSABLE_STORE) == (
        error is storage.StoreUnavailable
    )
