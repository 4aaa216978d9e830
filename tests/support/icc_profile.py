"""A colour profile of a scanner that sees other primaries than sRGB, written from scratch
(ICC.1:2001-04, version 2)."""

from __future__ import annotations

import struct

Primary = tuple[float, float, float]
WHITE: Primary = (0.9642, 1.0, 0.8249)
"""XYZ of D50, to which profiles are adapted."""
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""XYZ of red, green and blue of a wider gamut than sRGB's, which add up to `WHITE`."""


def matrix_profile(
    primaries: tuple[Primary, Primary, Primary] = ADOBE, gamma: float = 1.8
) -> bytes:
    """A display profile of three primaries and one gamma."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    description = b"desc" + struct.pack(">II", 0, 8) + b"scanner\0" + bytes(8 + 3 + 67) + b"\0"
    tags = {
        b"desc": description + b"\0" * (-len(description) % 4),
        b"cprt": text,
        b"wtpt": _xyz(WHITE),
        **{
            name: _xyz(primary)
            for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = struct.pack(">I", at + len(body))
    head = (
        size
        + bytes(4)
        + b"\x02\x10\0\0mntrRGB XYZ "
        + struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
        + b"acsp"
    )
    head = head.ljust(68, b"\0") + b"".join(
        struct.pack(">i", round(value * 65536)) for value in WHITE
    )
    return head.ljust(128, b"\0") + table + body


def _xyz(values: Primary) -> bytes:
    return (
        b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)
    )
