"""The demo empties its output folder, but only one that a demo made."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from app.demo.__main__ import _empty


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(typer.BadParameter, match="holds files that no demo made"):
        _empty(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    _empty(out)
    (out / "report.pdf").write_bytes(b"old")
    _empty(out)
    assert [path.name for path in out.iterdir()] == [".made-by-acinus-demo"]
