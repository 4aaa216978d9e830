"""Small steps get one thread, and what was set before comes back."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from training.threads import SMALL, threads_for


def test_small_steps_run_on_one_thread_and_large_ones_on_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pools = [pool["num_threads"] for pool in threadpool_info()]
    try:
        with threads_for(SMALL):
            assert torch.get_num_threads() == 2
        with threads_for(SMALL - 1):
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), threads_for(0):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
        assert [pool["num_threads"] for pool in threadpool_info()] == pools
    finally:
        torch.set_num_threads(before)
