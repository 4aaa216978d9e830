"""README's commands have the options that it gives them, and its Python imports what there is."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from tests.app.test_cli_boundary import options_of

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if line.startswith("acinus ")
] + re.findall(r"`(acinus [a-z-]+ [^`]*)`", README)
PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_there_are_commands_and_python_to_check() -> None:
    assert len(COMMANDS) >= 10
    assert len(PYTHON) >= 1


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_the_options_that_readme_gives(line: str) -> None:
    _, name, *words = shlex.split(line)
    names = (name, words[0]) if name == "models" else (name,)
    assert {word for word in words if word.startswith("--")} <= options_of(*names)


@pytest.mark.parametrize("text", PYTHON)
def test_what_readme_imports_exists(text: str) -> None:
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        for name in node.names:
            assert hasattr(module, name.name), f"{node.module} has no {name.name}"
