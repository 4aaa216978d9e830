"""OPEN FIRST. The service on Ray Serve: what runs where, and how it starts and stops.

    build(args)      the application, for a Serve config file (`import_path: app.serve:build`)
    run(settings)    what `acinus serve` does: the application until SIGTERM or SIGINT, on a Ray of
                     its own if there is none

    client -> Ingress (FastAPI) -> queue in the workflow database
           -> CaseExecutor -> Encoder, SlideRisk -> store and database

In a Serve config file, `proxy_location: Disabled` belongs next to the application: the Ingress
listens itself, on the host and port of the settings (`app.serve.ingress` has the measured reason).

The Ingress never calls a model: it writes a case down, queues it and answers. The executor takes it
from there (`app.workflow`), so that cases survive the end of any of these processes.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import torch
from ray import serve

from app.database.migrate import upgrade_to_head
from app.serve import deployments
from app.serve.ingress import IngressDeployment, listen
from app.settings import Settings
from pipelines.ray_session import ensure_ray, on_cluster
from training.precision import precision_for
from training.registry.source import open_source

APPLICATION = "acinus"


def build(args: dict[str, Any] | Settings) -> Any:
    """The Serve application.

    Args:
        args: settings, as in the `args` of a Serve config file: names of `app.settings`; what is
            left out comes from `ACINUS_*`.
    """
    settings = args if isinstance(args, Settings) else Settings(**args)

    def deployed(kind: type, name: str, *, cpus: float, **options: Any) -> Any:
        resources = {"num_cpus": cpus, **options.pop("resources", {})}
        return serve.deployment(
            name=name, ray_actor_options=resources, graceful_shutdown_timeout_s=10, **options
        )(kind)

    # Decided once: replicas on unlike processors would else store embeddings under different keys.
    precision = "auto" if settings.encoder_gpus else precision_for(torch.device("cpu"))
    encoder = deployed(
        deployments.EncoderDeployment,
        "Encoder",
        cpus=1,
        resources={"num_gpus": settings.encoder_gpus},
        num_replicas=settings.encoder_replicas,
        # One shard is fetched while another is computed; the rest waits where it can be rerouted.
        max_ongoing_requests=2,
    ).bind(settings, precision)
    slide_risk = deployed(
        deployments.SlideRiskDeployment, "SlideRisk", cpus=0.5, max_ongoing_requests=4
    ).bind(settings)
    executor = deployed(
        deployments.CaseExecutorDeployment, "CaseExecutor", cpus=0.5, health_check_period_s=2
    )
    ingress = deployed(
        IngressDeployment,
        "Ingress",
        cpus=0.5,
        num_replicas=settings.ingress_replicas,
        max_replicas_per_node=1,  # each listens on the port
        health_check_period_s=2,
    )
    return ingress.bind(settings, executor.bind(settings, encoder, slide_risk))


def run(settings: Settings, *, on_ready: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT, then stop cleanly; the next start takes up open cases.

    Args:
        settings: see `app.settings`.
        on_ready: called with the service's address once it answers.

    Raises:
        AddressTaken: the service cannot listen on the host and port of the settings.
        TrainingError: the model set cannot be used.
        Both are noticed before anything is started, except the address on a cluster, where the
        HTTP server may run on another machine.
    """
    if not on_cluster():
        listen(settings.host, settings.port).close()
    source = open_source(settings.models)
    source.load(source.production())
    upgrade_to_head(settings.database_url)
    with _ray():
        stopping = _stop_signal()
        try:
            quiet = {"log_level": "WARNING", "enable_access_log": False}
            serve.start(proxy_location="Disabled", logging_config=quiet)
            serve.run(build(settings), name=APPLICATION, route_prefix=None, logging_config=quiet)
            on_ready(f"http://{settings.host}:{settings.port}")
            stopping.wait()
        finally:
            serve.shutdown()


@contextmanager
def _ray() -> Iterator[None]:
    """The cluster that `RAY_ADDRESS` names, or a Ray of this machine that ends with us."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ours = not ray.is_initialized()
    ensure_ray()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _stop_signal() -> threading.Event:
    """Set by the first SIGTERM or SIGINT; a second one interrupts what is then still stopping."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets handlers of its own
        signal.signal(number, stop)
    return stopping
