"""The Ray that a command runs on: the cluster it was submitted to, or one on this machine."""

from __future__ import annotations

import logging
import os

import ray

LOGICAL_CPUS = 4
"""Minimum number of logical CPUs of a local Ray: with 2, a pipeline's reading and the model's
workers wait for each other forever."""


def on_cluster() -> bool:
    """Whether commands run on the cluster that `RAY_ADDRESS` names, not on this machine alone."""
    return bool(os.environ.get("RAY_ADDRESS"))


def ensure_ray() -> None:
    """Connect to the cluster that `RAY_ADDRESS` names, else start Ray on this machine; does nothing
    if Ray is running already."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if on_cluster():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",
        num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,  # a command prints its own messages only
        _node_ip_address="127.0.0.1",
    )
