"""Which split a case belongs to if nobody has decided, by its pseudonymous id and a seed alone.

A case is never in two splits, and cases that are added later move none of the old ones.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class SplitShares:
    """Splits and their expected shares of the cases.

    Attributes:
        shares: name and share of each split; shares are positive and together 1.
        seed: another seed is another assignment.
    """

    shares: tuple[tuple[str, float], ...]
    seed: int = 0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shares]
        total = sum(share for _, share in self.shares)
        named = bool(names) and all(names) and len(set(names)) == len(names)
        if not named or not all(share > 0 for _, share in self.shares):
            raise ValueError(f"{self}: each split needs a name of its own and a share above 0")
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"shares of splits are {total:g} together; they must be 1")

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> SplitShares:
        """From `train=0.7,validation=0.15,test=0.15`.

        Raises:
            ValueError: it is not written like that, or the shares are not 1 together.
        """
        shares = []
        for part in text.split(","):
            name, equals, share = part.partition("=")
            try:
                shares.append((name.strip(), float(share)))
            except ValueError:
                equals = ""
            if not equals:
                example = "train=0.7,validation=0.15,test=0.15"
                raise ValueError(f"{part!r} is not NAME=SHARE; write for example {example}")
        return cls(shares=tuple(shares), seed=seed)

    def of(self, case: str) -> str:
        """The split of a case.

        53 bits of a SHA-256 over seed and case, in lower case, compared with the cumulated shares.
        """
        digest = hashlib.sha256(f"{self.seed}:{case.casefold()}".encode()).digest()
        position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        bounds = accumulate(share for _, share in self.shares)
        return next(
            (
                name
                for (name, _), bound in zip(self.shares, bounds, strict=True)
                if position < bound
            ),
            self.shares[-1][0],
        )
