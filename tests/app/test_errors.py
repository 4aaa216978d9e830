"""Errors: a status and a sentence each, whole after pickling, and logs that hold no patient data."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator

import pytest
import structlog

from app import errors, log
from pipelines.slides.errors import MissingResolution, NoTissue
from training.errors import SpecMismatch


def _tree(kind: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _tree(child)


@pytest.mark.parametrize("kind", list(_tree(errors.ServiceError)))
def test_every_error_is_drawn_with_its_status(kind: type[errors.ServiceError]) -> None:
    assert re.search(rf"{kind.__name__}\s+{kind.status}\b", errors.__doc__ or ""), (
        f"draw {kind.__name__} in the tree"
    )


def test_errors_survive_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.NotReady("Not yet.", analysis="a")))
    assert (type(error), error.message, error.analysis, error.status) == (
        errors.NotReady,
        "Not yet.",
        "a",
        409,
    )


def test_clinicians_get_sentences() -> None:
    assert errors.clinical_sentence(NoTissue("slide.svs", "shows no tissue", "scan it again")) == (
        "Slide slide.svs shows no tissue; scan it again."
    )
    assert "--mpp" not in errors.clinical_sentence(MissingResolution.of("slide.svs"))
    assert "internal" not in errors.clinical_sentence(KeyError("internal"))
    assert "bucket" not in errors.clinical_sentence(SpecMismatch("spec", "s3://bucket", "x", "y"))


def test_logs_withhold_patient_data(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log.configure()
    try:
        structlog.get_logger("test").info("taken in", analysis="a", psa=7.1, file_name="Doe.svs")
    finally:
        structlog.reset_defaults()
    event = json.loads(stream.getvalue())
    assert event["analysis"] == "a"
    assert event["psa"] == event["file_name"] == "[withheld]"
