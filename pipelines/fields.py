"""Fields of a config: what is wrong with a value, in one sentence for whoever wrote it."""

from __future__ import annotations


def require(name: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse a value.

    Args:
        name: of the field.
        value: that it has.
        holds: whether the value is allowed; comparisons with NaN never hold.
        allowed: what it must be.

    Raises:
        ValueError: it is not; names the field, the value and what is allowed.
    """
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
