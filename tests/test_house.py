"""The rules of the house that no reviewer should have to look for: style, types, imports, and what may not be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "cluster", "pipelines", "training")
# What tools and runs leave behind; only looked at where there is no git to say what belongs to the project.
LEFT_BEHIND = {"__pycache__", "build", "cdk.out", "demo-output", "dist", "node_modules"}

CHECKS = {
    "style": ["ruff", "check", "."],
    "layout": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}


@lru_cache(maxsize=1)
def project_files() -> tuple[Path, ...]:
    """Every file of the project: what git tracks or would take, or what lies here in a copy without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return tuple(path for path in sorted(walk(ROOT)) if path.is_file())
    return tuple(
        path
        for path in sorted(ROOT / name for name in listed.split("\0") if name)
        if path.is_file()
    )


def walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, without hidden folders but `.ci`, and without what runs leave behind."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in LEFT_BEHIND and not path.name.endswith(".egg-info"):
            if path.name == ".ci" or not path.name.startswith("."):
                yield from walk(path)
        elif path.is_file():
            yield path


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Name and text of the project's text files, of these suffixes if any are given."""
    for path in project_files():
        if suffixes and path.suffix not in suffixes:
            continue
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture


def modules(package: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of a package's public modules; an empty `__init__.py` only marks a folder."""
    for name, text in texts(".py"):
        if name.startswith(f"{package}/") and text.strip() and not Path(name).name.startswith("_"):
            yield name, ast.get_docstring(ast.parse(text)) or ""


@pytest.mark.parametrize("check", CHECKS)
def test_a_tool_finds_nothing(check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *CHECKS[check]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_run_one_way() -> None:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_package_registry() -> None:
    hosts = re.compile(
        r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|registry\.yarnpkg\.com|deb\.debian\.org"
        r"|ghcr\.io|quay\.io|docker\.io|gcr\.io|public\.ecr\.aws|\d{12}\.dkr\.ecr)\b",
    )
    assert [(name, found[0]) for name, text in texts() if (found := hosts.search(text))] == []


def test_locks_hold_versions_and_no_addresses() -> None:
    locks = re.compile(r"(constraints|requirements)[^/]*\.txt$|lock[^/]*$")
    addresses = re.compile(r'"resolved":|://.*\.(whl|zip|tgz|tar\.gz)')
    wrong = [
        (name, line)
        for name, text in texts()
        if locks.search(name)
        for line in text.splitlines()
        if addresses.search(line)
    ]
    assert wrong == []


def test_constraints_pin_versions_that_any_index_offers() -> None:
    public = re.compile(
        r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*"
    )  # no local version such as +cpu: the user's pip chooses the build
    assert [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not public.fullmatch(line)
    ] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    folder = re.compile(r"(?<![\w.}/-])/(root|home|Users|work|workspace|opt/wheels|opt/pypi)/\w")
    assert [(name, found[0]) for name, text in texts() if (found := folder.search(text))] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_one_file_to_open_first(package: str) -> None:
    assert (
        len([name for name, docstring in modules(package) if docstring.startswith("OPEN FIRST")])
        == 1
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_module_says_what_it_is(package: str) -> None:
    assert [name for name, docstring in modules(package) if not docstring] == []


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {
        name: text.count("\n")
        for name, text in texts(".py", ".ts", ".tsx", ".js", ".css", ".yaml", ".yml", ".sh")
    }
    # Written by tools: lock files.
    assert {
        name: length for name, length in lengths.items() if length > 500 and "lock" not in name
    } == {}
