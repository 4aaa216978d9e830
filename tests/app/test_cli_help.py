"""`acinus --help` answers at once: it loads none of the product's libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.cli.application import build
from app.cli.boundary import run

COMMANDS = (
    "synth",
    "manifest",
    "prepare",
    "encoders",
    "embed",
    "save-encoder",
    "pretrain",
    "probe",
    "fit-slide",
    "fit-risk",
    "analyse",
    "serve",
)
HEAVY = (
    "fastapi",
    "matplotlib",
    "numpy",
    "obstore",
    "pandas",
    "pyarrow",
    "ray",
    "rich",
    "scipy",
    "sqlalchemy",
    "structlog",
    "torch",
)
LOADED_BY = """
import sys
from app.cli.application import build
from app.cli.boundary import run
code = run(build(), sys.argv[1:])
print("CODE", code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded_by(*arguments: str) -> tuple[int, set[str], str]:
    """Exit code, top-level modules that a command line loads in a fresh process, and its output."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    _, code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), set(modules), done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], ["serve", "--help"]])
def test_help_loads_no_library_of_the_product(arguments: list[str]) -> None:
    code, modules, text = loaded_by(*arguments)
    assert code == 0
    assert "Usage: acinus" in text
    assert not modules.intersection(HEAVY)
    if arguments == ["--help"]:  # typer itself loads it to parse the options of a command
        assert "pydantic" not in modules


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(build(), ["--help"]) == 0
    text = capsys.readouterr().out
    assert "Research use only; not a diagnosis" in " ".join(text.split())
    for command in COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(build(), [command, "--help"]) == 0
    options = capsys.readouterr().out.partition("Options:")[2].splitlines()
    named = [line for line in options if line.startswith("  --")]
    assert named
    for line, after in zip(options, [*options[1:], ""], strict=True):
        if line.startswith("  --"):
            explained = line.partition(">")[2] or line.strip().partition("  ")[2]
            assert explained.strip() or after.startswith("   "), line
