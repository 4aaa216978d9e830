"""The schema, on SQLite and on a real PostgreSQL: migrations give exactly the declared tables."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from app.accounts.tables import Organisation
from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.cases.tables import Case
from app.database.base import Base
from app.database.migrate import upgrade_to_head
from app.database.session import Database, insert_if_absent
from app.slides.tables import SlideRecord


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'acinus.db'}"
    url: str = request.getfixturevalue("postgres")
    database = Database(url)
    with database.session() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    database.close()
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    upgrade_to_head(url)
    database = Database(url)
    with database.session() as session:
        insert_if_absent(session, Organisation(id="a"))
        insert_if_absent(session, Organisation(id="b"))
    yield database
    database.close()


def test_migrations_give_the_models_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_table_carries_the_organisation(database: Database) -> None:
    inspector = inspect(database.engine)
    tables = set(inspector.get_table_names()) - {"alembic_version", "organisations"}
    assert len(tables) >= 3
    for table in tables:
        columns = {column["name"]: column for column in inspector.get_columns(table)}
        assert "organisation_id" in columns, table
        assert "organisation_id" in inspector.get_pk_constraint(table)["constrained_columns"], table


def test_migrating_twice_and_at_once_is_migrating_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_to_head, [url] * 4))
    upgrade_to_head(url)
    database = Database(url)
    with database.session() as session:
        assert session.scalars(text("SELECT version_num FROM alembic_version")).all() == ["0003"]
    database.close()


def test_a_row_cannot_point_into_another_organisation(database: Database) -> None:
    with database.session() as session:
        session.add(Case(organisation_id="a", id="case"))
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(
            Analysis(
                organisation_id="b", id="analysis", case_id="case", source_uri="x", uploaded=True
            )
        )


def test_inserting_again_changes_nothing(database: Database) -> None:
    for size in (1, 2):
        with database.session() as session:
            insert_if_absent(
                session,
                SlideRecord(
                    organisation_id="a", slide_id="f" * 64, uri="file:///x", size_bytes=size
                ),
            )
    with database.session() as session:
        assert [row.size_bytes for row in session.scalars(select(SlideRecord))] == [1]


def test_an_analysis_round_trips(database: Database) -> None:
    instant = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=9)))
    with database.session() as session:
        session.add(Case(organisation_id="a", id="case", psa=6.5))
        session.flush()
        session.add(
            Analysis(
                organisation_id="a",
                id="x",
                case_id="case",
                source_uri="u",
                uploaded=False,
                result={"a": [1]},
                created_at=instant,
            )
        )
    with database.session() as session:
        row = session.get_one(Analysis, ("a", "x"))
        assert row.status is Status.QUEUED
        assert row.result == {"a": [1]}
        assert row.created_at == instant
        assert row.created_at.utcoffset() == timedelta()


def test_a_naive_time_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="naive datetime"), database.session() as session:
        session.add(Case(organisation_id="a", id="naive", created_at=datetime(2026, 1, 1)))


def test_an_error_rolls_the_whole_unit_of_work_back(database: Database) -> None:
    def fails() -> None:
        with database.session() as session:
            session.add(Case(organisation_id="a", id="lost"))
            session.flush()
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    with database.session() as session:
        assert session.get(Case, ("a", "lost")) is None
