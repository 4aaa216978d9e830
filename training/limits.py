"""Limits of a configuration's values: an error names the field, the value and the range."""

from __future__ import annotations

import math
from typing import Final

MAX_SEED: Final = 2**32 - 1
"""The largest seed that NumPy, torch and scikit-learn all take."""


def require_range(
    field: str, value: float, low: float, high: float | None = None, *, unit: str = ""
) -> None:
    """Refuse a value outside its range.

    Args:
        field: name in the configuration.
        value: that was given.
        low: the minimum.
        high: the maximum; None for any finite value.
        unit: of the value, for the message.

    Raises:
        ValueError: it is not a finite number, below `low` or above `high`.
    """
    if math.isfinite(value) and low <= value and (high is None or value <= high):
        return
    allowed = f"{low:.10g} or more" if high is None else f"{low:.10g} to {high:.10g}"
    raise ValueError(f"{field} is {value!r}; it must be {allowed}{unit and ' ' + unit}")
