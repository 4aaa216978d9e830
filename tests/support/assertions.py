"""Assertions of tests that cannot fail, found in their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef
LITERALS = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Constant)
ALWAYS_TRUE = (ast.JoinedStr, ast.Lambda, ast.GeneratorExp)


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def asserting(trees: Iterable[ast.AST]) -> set[str]:
    """Names of functions that assert something, by themselves or through a function of the same
    trees."""
    every = [function for tree in trees for function in functions(tree)]
    names: set[str] = set()
    while True:
        found = {
            function.name
            for function in every
            if any(_asserts(node, names) for node in ast.walk(function))
        }
        if found == names:
            return names
        names = found


def tests(tree: ast.Module) -> Iterator[Function]:
    """The tests of a module."""
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("test_"):
            yield node


def constant_assertions(tree: ast.AST) -> Iterator[ast.Assert]:
    """Assertions of what is true whatever the code does: a constant, `... or text`, a value that
    equals itself.

    An operand of `or` has to be a comparison, a negation or a call: any other value is true as soon
    as it is not empty.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and (
            _is_true(node.test) or any(map(_is_weak, _conditions(node.test)))
        ):
            yield node


def only_in_loops(test: Function, constants: Mapping[str, ast.expr], names: set[str]) -> list[str]:
    """The iterables of a test's loops, if it asserts in loops only and each of them may be empty.

    Args:
        test: the test.
        constants: values of the module's names.
        names: of functions that assert.
    """
    local = {
        target.id: node.value
        for node in ast.walk(test)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    outside, loops = _split(test, names)
    if outside or any(_is_filled(loop.iter, {**constants, **local}) for loop in loops):
        return []
    return [ast.unparse(loop.iter) for loop in loops]


def module_constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Values by name of what a module assigns at its top level."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {name.id: node.value for name in node.targets if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


def _asserts(node: ast.AST, names: set[str]) -> bool:
    """Whether a node is an assertion, expects an error or a warning, or calls a function that
    asserts."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func).rpartition(".")[2]
    return called in {"raises", "warns", "fail", *names} or called.startswith("assert_")


def _is_true(node: ast.expr) -> bool:
    """Whether an expression is true by its form."""
    match node:
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(map(_is_true, values))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(map(_is_true, values))
        case ast.Constant(value=value):
            return bool(value)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return any(not isinstance(element, ast.Starred) for element in elements)
        case ast.Dict(keys=keys):
            return bool(keys)
    return isinstance(node, ALWAYS_TRUE)


def _conditions(node: ast.expr) -> Iterator[ast.expr]:
    """An assertion's expression and the operands of its `and`, `or` and `not`."""
    yield node
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                yield from _conditions(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield from _conditions(operand)


def _is_weak(node: ast.expr) -> bool:
    """Whether a condition is true of nearly everything."""
    match node:
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(
                isinstance(value, (ast.Name, ast.Attribute, ast.Subscript)) for value in values
            )
        case ast.Compare(
            left=left, ops=[ast.Eq() | ast.LtE() | ast.GtE() | ast.Is()], comparators=[right]
        ):
            calls = any(isinstance(part, ast.Call) for part in ast.walk(left))
            return not calls and ast.dump(left) == ast.dump(right)
    return False


def _split(test: Function, names: set[str]) -> tuple[list[ast.AST], list[ast.For | ast.AsyncFor]]:
    """A test's assertions outside loops, and the outermost loops that hold others."""
    outside: list[ast.AST] = []
    loops: list[ast.For | ast.AsyncFor] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.For, ast.AsyncFor)):
                outside.extend(node for node in ast.walk(child.iter) if _asserts(node, names))
                if any(_asserts(inner, names) for inner in ast.walk(child)):
                    loops.append(child)
            elif _asserts(child, names):
                outside.append(child)
            else:
                visit(child)

    visit(test)
    return outside, loops


def _is_filled(node: ast.expr, values: Mapping[str, ast.expr]) -> bool:
    """Whether a loop over this runs at least once, as far as its form shows."""
    filled = isinstance(node, LITERALS) and _is_true(node)
    match node:
        case ast.Name(id=name) if name in values:
            filled = _is_filled(values[name], {})
        case ast.Name(id=name) | ast.Attribute(attr=name):
            filled = name.isupper()  # a constant of another module
        case ast.Call(func=ast.Name(id="range" | "zip" | "enumerate" | "sorted"), args=given):
            filled = any(_is_filled(one, values) for one in given)
        case ast.Call(func=ast.Attribute(value=value, attr="items" | "values" | "keys")):
            filled = _is_filled(value, values)
        case ast.Subscript(value=value):
            filled = _is_filled(value, values)
        case ast.Call(func=ast.Attribute(attr="array_split")):
            filled = True
        case ast.IfExp(body=body, orelse=other):
            filled = _is_filled(body, values) and _is_filled(other, values)
    return filled
