"""Every test can fail: each asserts something, and nothing that is true whatever the code does."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support import assertions

FOLDER = Path(__file__).parent


@lru_cache(maxsize=1)
def modules() -> dict[str, ast.Module]:
    """Syntax trees of the suite by path."""
    return {
        path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.rglob("*.py"))
    }


def first(code: str) -> assertions.Function:
    """The first test of some code."""
    return next(assertions.tests(ast.parse(code)))


def test_every_test_asserts_something() -> None:
    names = assertions.asserting(modules().values())
    found = [
        f"{path}:{test.lineno} {test.name}"
        for path, tree in modules().items()
        for test in assertions.tests(tree)
        if test.name not in names
    ]
    assert not found, "\n".join(found)


def test_no_assertion_is_true_whatever_the_code_does() -> None:
    found = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in modules().items()
        for node in assertions.constant_assertions(tree)
    ]
    assert not found, "\n".join(found)


def test_no_test_asserts_only_in_a_loop_that_may_not_run() -> None:
    names = assertions.asserting(modules().values())
    found = [
        f"{path}:{test.lineno} {test.name}: {', '.join(loops)}"
        for path, tree in modules().items()
        for test in assertions.tests(tree)
        if (loops := assertions.only_in_loops(test, assertions.module_constants(tree), names))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "assert 'text'",
        "assert (value == 1, 'message')",
        "assert value == 1 or 'text'",
        "assert value == 1 or f'{value}'",
        "assert value in other or report.hash",
        "assert value == 1 or found[0]",
        "assert value == value",
        "assert report.size <= report.size",
        "assert (one for one in found)",
        "assert [1, *found]",
        "assert not (value == 1 or value.name)",
    ],
)
def test_an_assertion_that_cannot_fail_is_found(code: str) -> None:
    assert len(list(assertions.constant_assertions(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "assert value",
        "assert value == 1 or value == 2",
        "assert value is None or all(value)",
        "assert value == 1 or not value.name",
        "assert make() == make()",
        "assert bool(report.remarks) == bool(found.axes or found.unreadable)",
        "assert name in (report.text or '')",
        "assert [*found]",
        "assert value, 'message'",
    ],
)
def test_an_assertion_that_can_fail_is_none(code: str) -> None:
    assert list(assertions.constant_assertions(ast.parse(code))) == []


@pytest.mark.parametrize(
    ("body", "asserts"),
    [
        ("assert value", True),
        ("with pytest.raises(ValueError): act()", True),
        ("np.testing.assert_allclose(one, two)", True),
        ("check(value)", True),
        ("act(value)", False),
        ("value == 1", False),
    ],
)
def test_what_asserts(body: str, asserts: bool) -> None:
    tree = ast.parse(f"def test_it():\n    {body}\n\ndef check(value):\n    assert value\n")
    assert ("test_it" in assertions.asserting([tree])) is asserts


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("for one in files(): assert one", ["files()"]),
        ("for one in folder.glob('*'): assert one", ["folder.glob('*')"]),
        ("for one in (1, 2): assert one", []),
        ("for one in range(3): assert one", []),
        ("for one in NAMES: assert one", []),
        ("for one in EMPTY: assert one", ["EMPTY"]),
        ("for one in TABLE.items(): assert one", []),
        ("for one in TABLE[name].items(): assert one", []),
        ("for one in files(): act(one)\n    assert one", []),
    ],
)
def test_a_loop_that_may_not_run_is_found(loop: str, expected: list[str]) -> None:
    code = f"NAMES = ['a']\nEMPTY = []\nTABLE = {{1: 2}}\ndef test_it():\n    {loop}\n"
    tree = ast.parse(code)
    names = assertions.asserting([tree])
    constants = assertions.module_constants(tree)
    assert assertions.only_in_loops(first(code), constants, names) == expected
