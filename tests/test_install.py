"""`.ci/install`, with stand-ins for Python and uv: what it refuses and how, what it calls, and that
it does nothing twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# An interpreter whose version is right, that makes environments of itself and writes down how pip
# is called.
GOOD = """#!/bin/bash
case "$*" in
    *"import ensurepip"*) exit ${WITHOUT_ENSUREPIP:-0} ;;
    *"pip config get global.find-links"*) echo "/srv/wheels /srv/more" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip install"*) echo "pip $*" >> calls ;;
esac
"""
OLD = """#!/bin/bash
if [ "$1" = --version ]; then echo "Python 3.9.2"; exit 0; fi
exit 1
"""
UV = """#!/bin/bash
echo "uv $* [$UV_FIND_LINKS]" >> calls
if [ "$1" = venv ]; then mkdir -p .venv/bin; cp "$4" .venv/bin/python; fi
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of only what the installer looks at, and a PATH folder `bin` beside it."""
    folder = tmp_path / "project"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "install", folder / ".ci" / "install")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "cp", "dirname", "env", "mkdir", "tr"):
        (programs / name).symlink_to(str(shutil.which(name)))
    return folder


def program(project: Path, name: str, text: str) -> str:
    """Put a program on the installer's PATH."""
    path = project.parent / "bin" / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def install(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installer, with nothing on PATH but what the test put there."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "UV_", "PYTHON", "INSTALLER"))
    }
    command = [str(project.parent / "bin" / "bash"), str(project / ".ci" / "install"), *arguments]
    path = str(project.parent / "bin")
    return subprocess.run(
        command,
        env=clean | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(project: Path) -> list[str]:
    """What pip and uv were called with so far."""
    file = project / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("python", "environment", "sentence"),
    [
        (None, {}, "Python 3.11 or later is needed and none is on PATH"),
        (
            OLD,
            {},
            "Python 3.11 or later is needed and none is on PATH (Python 3.9.2); "
            "install one or set PYTHON",
        ),
        (OLD, {"PYTHON": "python3"}, "python3 is not Python 3.11 or later (Python 3.9.2)"),
        (
            GOOD,
            {"WITHOUT_ENSUREPIP": "1"},
            "python3 cannot create an environment: its venv or ensurepip module is missing",
        ),
        (GOOD, {"INSTALLER": "conda"}, "INSTALLER=conda is neither pip nor uv"),
        (GOOD, {"INSTALLER": "uv"}, "INSTALLER=uv, and no uv is on PATH"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(
    project: Path, python: str | None, environment: dict[str, str], sentence: str
) -> None:
    if python:
        program(project, "python3", python)
    done = install(project, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"install: {sentence}")
    assert done.stderr.count("\n") == 1
    assert calls(project) == []


def test_an_old_python_is_skipped(project: Path) -> None:
    program(project, "python3", OLD)
    program(project, "python3.12", GOOD)
    assert install(project).returncode == 0


def test_pip_is_given_the_pins_and_nothing_that_overrides_its_configuration(
    project: Path,
) -> None:
    program(project, "python3", GOOD)
    assert install(project).returncode == 0
    assert install(project, "test").returncode == 0
    assert calls(project) == [
        "pip -m pip install -qq --no-input --constraint constraints.txt --editable .",
        "pip -m pip install -qq --no-input --constraint constraints.txt --editable .[test]",
    ]


def test_only_a_change_installs_again(project: Path) -> None:
    program(project, "python3", GOOD)
    for _ in range(2):
        assert install(project).returncode == 0
    assert len(calls(project)) == 1
    for name in ("pyproject.toml", "constraints.txt"):
        later = time.time() + 10
        before = len(calls(project))
        os.utime(project / name, (later, later))
        assert install(project).returncode == 0
        assert len(calls(project)) == before + 1
        os.utime(project / name, (0, 0))


def test_a_moved_project_is_installed_again(project: Path) -> None:
    program(project, "python3", GOOD)
    assert install(project).returncode == 0
    moved = project.rename(project.with_name("moved"))
    assert install(moved).returncode == 0
    assert len(calls(moved)) == 2


def test_uv_is_given_the_find_links_of_pip(project: Path) -> None:
    python = program(project, "python3", GOOD)
    program(project, "uv", UV)
    assert install(project, INSTALLER="uv").returncode == 0
    made, installed = calls(project)
    assert made == f"uv venv --quiet --python {python} .venv []"
    assert installed.endswith("--constraint constraints.txt --editable . [/srv/wheels,/srv/more]")


def test_find_links_of_uv_come_before_those_of_pip(project: Path) -> None:
    program(project, "python3", GOOD)
    program(project, "uv", UV)
    assert (
        install(project, INSTALLER="uv", UV_FIND_LINKS="/mine", PIP_FIND_LINKS="/theirs").returncode
        == 0
    )
    assert calls(project)[1].endswith("[/mine]")
