"""The Serve application: what it is made of, and what is refused before Ray starts."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from app.serve.application import build, run
from app.serve.errors import AddressTaken
from app.serve.ingress import listen
from app.settings import Settings
from pipelines import storage
from training.errors import ModelNotFound, TrainingError


def deployments(application: Any) -> dict[str, Any]:
    """The bound deployments of an application, by name."""
    found = {application._bound_deployment.name: application._bound_deployment}
    for argument in application._bound_deployment.init_args:
        if hasattr(argument, "_bound_deployment"):
            found |= deployments(argument)
    return found


def test_the_application_has_four_deployments_of_the_given_sizes(tmp_path: Path) -> None:
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


def test_a_serve_config_file_can_name_the_application() -> None:
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


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray must not be started: it takes most of a minute, and its errors have dozens of lines."""

    def start(*_args: object, **_options: object) -> None:
        raise AssertionError("Ray was started before the mistake was found")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_missing_model_set_is_refused_before_ray_starts(no_ray: None, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        run(Settings(data_root=tmp_path, port=free_port()))


def test_a_broken_model_set_is_refused_before_ray_starts(
    no_ray: None, tmp_path: Path, model_set: str
) -> None:
    source = storage.local_path(model_set)
    assert source is not None
    for number, (name, damage) in enumerate(
        [
            ("encoder/card.json", b"{"),
            ("encoder/card.json", b"{}"),
            ("slide_model/model.safetensors", b""),
            ("risk_model/card.json", None),
        ]
    ):
        models = tmp_path / str(number)
        shutil.copytree(source, models)
        damaged = models / name
        assert damaged.is_file(), [str(path) for path in models.rglob("*")]
        if damage is None:
            damaged.unlink()
        else:
            damaged.write_bytes(damage)
        with pytest.raises(TrainingError):
            run(Settings(data_root=tmp_path / "data", models=str(models), port=free_port()))


def test_a_used_port_is_refused_before_ray_starts(
    no_ray: None, tmp_path: Path, used_port: int, model_set: str
) -> None:
    with pytest.raises(AddressTaken, match=rf"Another program listens on 127.0.0.1:{used_port}"):
        run(Settings(data_root=tmp_path, models=model_set, port=used_port))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "The host 192.0.2.1 is not an address of this machine"),
        ("no-such-host.invalid", "no-such-host.invalid is not an address of this machine"),
        ("a" * 70, "is not"),
        ("127.0.0.1:80", "is not an address of this machine"),
    ],
)
def test_a_host_that_is_not_of_this_machine_is_refused(host: str, words: str) -> None:
    with pytest.raises(AddressTaken, match=words):
        listen(host, 8000)


def test_a_port_that_needs_more_rights_is_refused() -> None:
    """In a process of its own: the suite may run as root, for whom every port is open."""
    program = """
import os, sys
from app.serve.ingress import listen
if os.getuid() == 0:
    os.setuid(65534)
try:
    listen("127.0.0.1", 81)
except Exception as error:
    print(type(error).__name__, error)
"""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("this machine opens low ports to everyone")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("AddressTaken Port 81 needs the rights of an administrator")


def test_a_port_in_use_names_serves_own_proxy(used_port: int) -> None:
    with pytest.raises(AddressTaken, match="proxy_location: Disabled"):
        listen("127.0.0.1", used_port)
