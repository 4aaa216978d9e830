"""`acinus models`: from a model set to a promoted version and its page, on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.cli.application import build
from app.cli.boundary import run
from tests.support.model_set import make_registry
from training.registry.reproducibility import CHANGES


def _acinus(*arguments: str) -> int:
    return run(build(), ["models", *arguments])


def test_a_set_is_added_measured_promoted_and_shown(
    model_set: str,
    cohort_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny set's encoder has random weights: it is not reproducible, and the gate says so."""
    monkeypatch.setenv("COLUMNS", "140")
    stain = dict(list(CHANGES.items())[:1])
    monkeypatch.setattr("training.registry.reproducibility.CHANGES", stain)
    registry = ["--registry", str(tmp_path / "registry"), "--by", "<b>ada</b>"]
    slides = [str(path) for path in sorted(cohort_folder.glob("*.svs"))[:3]]
    assert _acinus("add", model_set, *registry) == 0
    version = re.sub(r"[\s│]", "", capsys.readouterr().out)
    [version] = re.findall(r"[0-9a-f]{64}", version)
    assert _acinus("promote", version[:8], *registry) == 1
    assert "has no record of its reproducibility" in capsys.readouterr().err
    assert _acinus("reproduce", version[:8], *slides[:2], *registry) == 1
    assert "2 slides say nothing about reproducibility" in capsys.readouterr().err
    assert _acinus("reproduce", version[:8], *slides, *registry) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "in another order" in printed
    assert "risk within 10 years" in printed
    assert _acinus("promote", version[:8], *registry) == 1
    assert "intraclass correlation" in capsys.readouterr().err

    page = tmp_path / "card.html"
    assert _acinus("show", version[:8], *registry[:2], "--html", str(page)) == 0
    text = page.read_text()
    assert "Research use only; not a diagnosis. Simulated outcomes" in text
    assert "&lt;b&gt;ada&lt;/b&gt;" in text
    assert "<b>ada" not in text
    assert "share of gleason_4" in text
    for digest in (version, *re.findall(r"[0-9a-f]{64}", capsys.readouterr().out)):
        assert digest in text
    assert "http" not in text, "the page needs nothing else"


def test_production_is_changed_back_and_versions_are_retired(
    model_set: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    known, first, benign = make_registry(model_set, str(tmp_path))
    registry = ["--registry", known.uri]
    assert _acinus("promote", benign[:8], *registry) == 0
    assert _acinus("list", *registry) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"{benign[:12]}\W+production", listed)
    assert re.search(rf"{first[:12]}\W+retired", listed)
    assert _acinus("rollback", *registry) == 0
    assert known.production() == first
    assert _acinus("retire", benign[:8], *registry) == 0
    assert _acinus("promote", benign[:8], *registry) == 1
    assert "was retired by" in capsys.readouterr().err
    assert _acinus("retire", "production", *registry) == 1
    assert "promote another first" in capsys.readouterr().err
