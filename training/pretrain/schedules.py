"""Values that change over a run: warm-up, then a cosine from start to end. Functions of the step
alone, so resume is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up from `warmup_from` to `start`, then half a cosine from `start` to `end`.

    Attributes:
        start: value when the warm-up is over.
        end: value at the last step.
        warmup: share of the run that is warm-up, 0 to 1.
        warmup_from: value at step 0 if there is a warm-up.
    """

    start: float
    end: float
    warmup: float = 0.0
    warmup_from: float = 0.0

    def at(self, step: int, steps: int) -> float:
        """The value for step `step` (0-based) of `steps`."""
        ramp = round(self.warmup * steps)
        if step < ramp:
            return self.warmup_from + (self.start - self.warmup_from) * step / ramp
        progress = (step - ramp) / max(1, steps - 1 - ramp)
        return self.end + (self.start - self.end) * 0.5 * (
            1.0 + math.cos(math.pi * min(1.0, progress))
        )


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Linear from `start` to `end` over the first `share` of the run, then constant."""

    start: float
    end: float
    share: float

    def at(self, step: int, steps: int) -> float:
        """The value for step `step` (0-based) of `steps`."""
        ramp = self.share * steps
        return self.end if step >= ramp else self.start + (self.end - self.start) * step / ramp
