"""How many threads numerical libraries get: small steps are faster with one.

Measured on 2 busy cores, cohort of 9 slides: fitting the pattern head takes 0.1 s with one thread
and 6.6 CPU-s with two, the attention model 0.4 s and 9.4 CPU-s: threads that wait for each other
after every small step spin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

SMALL = 4_000_000
"""Numbers that one step works on, below which a second thread costs more than it brings."""


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """One thread for BLAS, OpenMP and torch within the block if a step works on fewer than SMALL
    numbers.

    Args:
        numbers: size of the largest array of a step.
    """
    if numbers >= SMALL:
        yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
