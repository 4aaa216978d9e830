"""Random damage to a slide's files. Structures are hit more often than tile data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.fuzz.specimens import Specimen, Structure

Rng = np.random.Generator

DANGEROUS = [
    *[0, 1, 2, 3, 7, 255, 256, 4097, 65535],
    *[2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1],
]
"""Numbers that overflow, turn negative or ask for much memory."""


UNDAMAGED = 0
"""The seed with which a slide stays as it is: it must open, or cases would be refused for another
reason than their damage."""


def damaged(specimen: Specimen, rng: Rng) -> dict[str, bytes]:
    """The slide's files with one to four mutations."""
    files = {name: bytearray(content) for name, content in specimen.files.items()}
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        name = str(rng.choice([name for name in files if files[name]] or list(files)))
        if not files[name]:
            continue
        mutate = _MUTATIONS[int(rng.choice(len(_MUTATIONS), p=_WEIGHTS))]
        mutate(files[name], specimen.structures[name], rng)
    return {name: bytes(content) for name, content in files.items()}


def _pick(content: bytearray, structures: Sequence[Structure], rng: Rng) -> Structure:
    """A structure that the file still has."""
    offset, length = structures[int(rng.integers(len(structures)))] if structures else (0, 16)
    offset = min(offset, len(content) - 1)
    return offset, max(1, min(length, len(content) - offset))


def _flip(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    offset, length = _pick(content, structures, rng)
    content[offset + int(rng.integers(length))] ^= 1 << int(rng.integers(8))


def _number(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    """Write a number that is dangerous: an end, a sign, a size."""
    offset, length = _pick(content, structures, rng)
    width = int(rng.choice([1, 2, 4, 8]))
    start = offset + int(rng.integers(max(1, length - width + 1))) // width * width
    size = len(content)
    value = int(
        [*DANGEROUS, size, size - 1, size - 8, offset, size // 2][
            int(rng.integers(len(DANGEROUS) + 5))
        ]
    ) % 2 ** (8 * width)
    order = "big" if content[:2] == b"MM" else "little"
    content[start : start + width] = value.to_bytes(width, order)[: max(0, size - start)]


def _swap(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    """Exchange two structures' bytes."""
    (a, n), (b, m) = (_pick(content, structures, rng) for _ in range(2))
    length = min(n, m)
    content[a : a + length], content[b : b + length] = (
        content[b : b + length],
        content[a : a + length],
    )


def _text(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    """Change a digit of a text in the headers, at the beginning or at the end of the file."""
    head, tail = range(min(len(content), 2**16)), range(max(0, len(content) - 2**14), len(content))
    digits = [offset for offset in (*head, *tail) if 48 <= content[offset] <= 57]
    if digits:
        offset = digits[int(rng.integers(len(digits)))]
        new = (b"9", b"-", b"0", b".", b"e", b"<", b"\0", b" ", b"\xff", b"N")[
            int(rng.integers(10))
        ]
        content[offset : offset + 1] = new


def _zero(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    offset, length = _pick(content, structures, rng)
    content[offset : offset + length] = bytes(length)


def _noise(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    offset, length = _pick(content, structures, rng)
    content[offset : offset + length] = rng.bytes(length)


def _truncate(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    del content[int(rng.integers(len(content))) :]


def _cut(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    """Remove bytes, so that everything after them moves."""
    offset, _ = _pick(content, structures, rng)
    del content[offset : offset + int(rng.integers(1, 64))]


def _insert(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    offset, length = _pick(content, structures, rng)
    content[offset:offset] = (
        content[offset : offset + length] if rng.random() < 0.5 else rng.bytes(length)
    )


def _splice(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    """Copy a stretch over another."""
    a, b = (int(offset) for offset in rng.integers(len(content), size=2))
    length = min(int(rng.integers(1, 4096)), len(content) - max(a, b))
    content[b : b + length] = content[a : a + length]


def _payload(content: bytearray, structures: Sequence[Structure], rng: Rng) -> None:
    for offset in rng.integers(len(content), size=int(rng.integers(1, 20))):
        content[int(offset)] = int(rng.integers(256))


Mutation = Callable[[bytearray, Sequence[Structure], Rng], None]
_WEIGHTED: dict[Mutation, int] = {
    _flip: 4,
    _number: 6,
    _text: 3,
    _swap: 2,
    _zero: 2,
    _noise: 2,
    _truncate: 2,
    _cut: 1,
    _insert: 1,
    _splice: 1,
    _payload: 2,
}
_MUTATIONS = list(_WEIGHTED)
_WEIGHTS = np.array(list(_WEIGHTED.values())) / sum(_WEIGHTED.values())
