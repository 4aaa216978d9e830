"""House rules that no reviewer should have to check: style, types, imports, words, and what may not
be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGES = ["app", "cluster", "pipelines", "training"]
ROOMS = [
    "app/cli",
    "app/serve",
    "cluster",
    "pipelines",
    "training/encoder",
    "training/evaluation",
    "training/pretrain",
    "training/registry",
    "training/risk",
    "training/slide",
]
"""Folders with one file to open first."""
COMMANDS = ("app/cli/", "cluster/stacks.py")
"""Commands import what they need when they run, so that help and a missing tool are reported
quickly."""
# What tools and runs leave behind. Only used without git, which says what belongs to the project.
LEFT_BEHIND = {"__pycache__", "build", "cdk.out", "demo-output", "dist", "node_modules"}

CHECKS = {
    "style": ["ruff", "check", "."],
    "layout": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}


@lru_cache(maxsize=1)
def project_files() -> tuple[Path, ...]:
    """Every file of the project: what git tracks or would add; in a copy without git, all files."""
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
    """Files below `folder`, without hidden folders except `.ci`, and without `LEFT_BEHIND`."""
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
    """Name and docstring of a package's public modules; an empty `__init__.py` marks a folder."""
    for name, text in texts(".py"):
        if name.startswith(f"{package}/") and text.strip() and not Path(name).name.startswith("_"):
            yield name, ast.get_docstring(ast.parse(text)) or ""


@pytest.mark.parametrize("check", CHECKS)
def test_style_layout_and_types(check: str) -> None:
    """`types` takes half a minute the first time, and a few seconds with the cache it leaves."""
    done = subprocess.run(
        [sys.executable, "-m", *CHECKS[check]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_run_one_way() -> None:
    program = (
        "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_package_registry() -> None:
    hosts = re.compile(
        r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org"
        r"|registry\.yarnpkg\.com|deb\.debian\.org|ghcr\.io|quay\.io|docker\.io|gcr\.io"
        r"|public\.ecr\.aws|\d{12}\.dkr\.ecr)\b",
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
    # No local version such as +cpu: the user's pip chooses the build.
    public = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*")
    assert [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not public.fullmatch(line)
    ] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    folder = re.compile(r"(?<![\w.}/-])/(root|home|Users|work|workspace|opt/wheels|opt/pypi)/\w")
    assert [(name, found[0]) for name, text in texts() if (found := folder.search(text))] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_one_file_to_open_first(room: str) -> None:
    found = [name for name, docstring in modules(room) if docstring.startswith("OPEN FIRST")]
    assert len(found) == 1, f"files of {room} that say OPEN FIRST: {found}"


def test_imports_are_at_the_top_of_a_module() -> None:
    found = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, text in texts(".py")
        if name.startswith(tuple(f"{package}/" for package in PACKAGES))
        and not name.startswith(COMMANDS)
        for function in ast.walk(ast.parse(text))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert not found, "\n".join(found)


def test_every_variable_of_the_environment_is_documented() -> None:
    """Fields of the service's settings are documented by their descriptions, see tests/app."""
    names = {
        found
        for name, text in texts(".py", "")
        if name.startswith((*PACKAGES, "Makefile", "tests/"))
        for found in re.findall(r"\b(?:ACINUS|DEMO)_[A-Z_]+[A-Z]\b", text)
    }
    fields = {f"ACINUS_{name.upper()}" for name in Settings.model_fields}
    documents = "".join(text for _, text in texts(".md"))
    assert sorted(name for name in names - fields if not re.search(rf"`{name}\b", documents)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_module_has_a_docstring(package: str) -> None:
    assert [name for name, docstring in modules(package) if not docstring] == []


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {
        name: text.count("\n")
        for name, text in texts(".py", ".ts", ".tsx", ".js", ".css", ".yaml", ".yml", ".sh")
        if "lock" not in name  # written by tools
    }
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_prose_has_at_most_100_characters_a_line() -> None:
    """ruff holds code. Tables, pictures and what is in a code block may be longer."""
    prose = re.compile(r"```.*?```", re.DOTALL)
    long = [
        f"{name}: {line[:60]}"
        for name, text in texts(".md")
        for line in prose.sub("", text).splitlines()
        if len(line) > 100 and not line.startswith(("|", "!", "<"))
    ]
    assert long == []


WORDS = {
    r"lies?": "is stored, is",
    r"what is left over": "the rest",
    r"mend(s|ed|ing)?": "fix",
    r"begun": "started",
    r"save (for|where|that|what|when|in)": "except",
    r"for ever": "forever",
    r"(?<!here )(is|are|was|were) no "
    r"(?!longer|more|less|fewer|larger|finer|coarser|other|such)[a-z]+": "is not a",
    r"tells? (no|nothing|its|their|what|how|whether|where|which|of)": "has, reports, says",
    r"(is|are|was|were|be|been|as) told|told (what|how|where|that|in|by|to)": "given, reported",
    r"held against": "compared with",
    r"answers (whether|what|how)": "returns",
    r"laid(?! out)": "placed",
    r"so many(?! that)": "that many",
    r"(LEAST|MOST) [A-Z]+": "MIN_, MAX_",
}
"""Words to avoid, and what to write instead. CONTRIBUTING.md has the list for people."""


@lru_cache(maxsize=1)
def words_to_avoid() -> dict[re.Pattern[str], str]:
    return {re.compile(rf"(?<!\w)({words})(?!\w)"): instead for words, instead in WORDS.items()}


def test_words_to_avoid_are_in_no_file() -> None:
    """In prose and in names: `test_told_mpp` is read as words. `words-ok` excepts a line."""
    found = [
        f"{name}:{number} {match[0]!r}: write {instead}"
        for name, text in texts(".py", ".md", ".typ", ".yaml", "")
        for number, line in enumerate(text.splitlines(), 1)
        if name != "tests/test_house.py" and "words-ok" not in line
        if not (name == "CONTRIBUTING.md" and line.startswith("|"))
        for pattern, instead in words_to_avoid().items()
        for match in pattern.finditer(line.replace("_", " "))
    ]
    assert not found, "\n".join([f"{len(found)} found", *found])


def test_contributing_lists_the_words_to_avoid() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| avoid | write |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [row for row in rows if not row[0].endswith((")", "anything"))]  # for people to judge
    avoided, written = (" ".join(row[k].replace("_", " ") for row in rows) for k in (0, 1))
    assert [words.pattern for words in words_to_avoid() if not words.search(avoided)] == []
    assert [words.pattern for words in words_to_avoid() if words.search(written)] == []
