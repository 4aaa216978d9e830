"""The Serve application: what it is made of, from settings or from the arguments of a Serve config file; no Ray is started."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from app.errors import AddressTaken
from app.serve.application import build, run
from app.serve.ingress import listen
from app.settings import Settings
from training.errors import ModelNotFound


def deployments(application: Any) -> dict[str, Any]:
    """The bound deployments of an application, by name."""
    found = {application._bound_deployment.name: application._bound_deployment}
    for argument in application._bound_deployment.init_args:
        if hasattr(argument, "_bound_deployment"):
            found |= deployments(argument)
    return found


def test_what_runs_where(tmp_path: Path) -> None:
    found = deployments(
        build(
            {
                "data_root": str(tmp_path),
                "encoder_replicas": 3,
                "encoder_gpus": 0.5,
                "ingress_replicas": 2,
            }
        )
    )
    assert set(found) == {"Ingress", "CaseExecutor", "Encoder", "SlideRisk"}
    assert found["CaseExecutor"].num_replicas == 1, (
        "two executors would both recover the same workflows"
    )
    assert found["Encoder"].num_replicas == 3
    assert found["Encoder"].ray_actor_options["num_gpus"] == 0.5
    assert found["Ingress"].num_replicas == 2
    assert sum(one.num_replicas * one.ray_actor_options["num_cpus"] for one in found.values()) <= 6


def test_defaults_fit_a_machine_of_two_cores(tmp_path: Path) -> None:
    found = deployments(build(Settings(data_root=tmp_path)))
    assert sum(one.num_replicas * one.ray_actor_options["num_cpus"] for one in found.values()) <= 4


def test_a_serve_config_file_names_it() -> None:
    config = {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "acinus",
                "import_path": "app.serve:build",
                "route_prefix": None,
                "args": {"data_root": "/data", "port": 8000},
            }
        ],
    }
    assert ServeDeploySchema.model_validate(config).applications[0].import_path == "app.serve:build"


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder_replica"):
        build({"encoder_replica": 2})


def test_without_models_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        run(Settings(data_root=tmp_path))


def test_a_taken_port_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressTaken, match="proxy_location: Disabled"):
            listen("127.0.0.1", port)
