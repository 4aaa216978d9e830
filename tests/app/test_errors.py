"""Errors: each has a status and a sentence and survives pickling; logs hold no patient data."""

from __future__ import annotations

import ast
import importlib
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from app import errors, log
from app.analyses.errors import NotReady
from app.analyses.schemas import AnalysisRequest
from pipelines.slides.errors import MissingResolution, NoTissue
from pipelines.storage import ObjectNotFound
from training.errors import SpecMismatch

ROOT = Path(__file__).parents[2]
for path in Path(errors.__file__).parent.glob("*/errors.py"):
    importlib.import_module(f"app.{path.parent.name}.errors")


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
    error = pickle.loads(pickle.dumps(NotReady("Not yet.", analysis="a")))
    assert (type(error), error.message, error.analysis, error.status) == (
        NotReady,
        "Not yet.",
        "a",
        409,
    )


def test_clinicians_get_sentences() -> None:
    assert errors.clinical_sentence(NoTissue("slide.svs", "shows no tissue", "scan it again")) == (
        "Slide slide.svs shows no tissue; scan it again."
    )
    assert errors.clinical_sentence(MissingResolution.of("slide.svs")) == (
        "Slide slide.svs has no mpp in its metadata; "
        "send it again with the form's field mpp (micrometres per pixel)."
    )
    assert "internal" not in errors.clinical_sentence(KeyError("internal"))
    assert "bucket" not in errors.clinical_sentence(SpecMismatch("spec", "s3://bucket", "x", "y"))
    lost = ObjectNotFound("s3://bucket/x", "is not there", "look for it")
    assert "bucket" not in errors.clinical_sentence(lost)


def test_remedies_over_http_name_fields_of_the_form_that_exist() -> None:
    fields = {"slide", *AnalysisRequest.model_fields}
    named = {
        name for remedy in errors.REMEDIES.values() for name in re.findall(r"field (\w+)", remedy)
    }
    assert named
    assert named <= fields
    assert "slide_uri" in fields


def test_every_remedy_over_http_is_of_a_code_that_slides_have() -> None:
    """A code that nobody raises any more would leave a row that is never shown."""
    source = "".join(path.read_text() for path in (ROOT / "pipelines").rglob("*.py"))
    assert [code for code in errors.REMEDIES if f'"{code}"' not in source] == []


def test_no_sentence_of_the_library_or_the_service_names_an_option_of_the_command_line() -> None:
    """Callers of the HTTP API see these sentences too; docstrings and comments are for engineers.

    Errors of `training` are not shown to them (see `clinical_sentence`), nor those of a cohort.
    """
    option = re.compile(r"(?<![\w-])--[a-z]")
    found = []
    for package in ("pipelines/slides", "pipelines/storage", "app"):
        for path in (ROOT / package).rglob("*.py"):
            room = path.relative_to(ROOT).parts[:2]
            if room not in {("app", "cli"), ("app", "demo")}:
                found += [f"{path}: {text}" for text in _sentences(path) if option.search(text)]
    assert found == []


def _sentences(path: Path) -> Iterator[str]:
    """String literals of a module, docstrings excepted."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    for node in constants:
        if isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


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
