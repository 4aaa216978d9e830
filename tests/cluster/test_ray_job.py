"""A job submitted to a Ray cluster of two nodes, started with the manifest's own parameters and
with its token on.

The head has no CPUs, as in ray-cluster.yaml: whatever runs, runs on the worker. Nodes are processes
of this test on a loopback address; they are ended by their own process id, since `ray stop` would
end every Ray on the machine.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from pipelines.cohort import load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.synthetic.synthesise import SynthConfig, synthesise

HOST = "127.0.0.7"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 120


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """A running cluster: where its dashboard listens, and what a client's environment holds."""

    dashboard: str
    environment: dict[str, str]

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        """A request to the dashboard, with a token if one is given."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{self.dashboard}{path}", headers=headers, timeout=30)

    def cpus(self) -> float:
        """CPUs of all nodes that have joined."""
        nodes = self.get("/api/v0/nodes?detail=1", self.token).json()["data"]["result"]["result"]
        return float(
            sum(each["resources_total"].get("CPU", 0) for each in nodes if each["state"] == "ALIVE")
        )

    @property
    def token(self) -> str:
        """What every client shows."""
        return self.environment["RAY_AUTH_TOKEN"]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, above those that Ray gives to its workers."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def node(log: Path, environment: dict[str, str], *options: str) -> Iterator[None]:
    """A Ray node as a process that ends with the block."""
    command = [
        *RAY,
        "start",
        "--block",
        f"--node-ip-address={HOST}",
        "--disable-usage-stats",
        *options,
    ]
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(what: str, holds: Callable[[], bool], logs: Path) -> None:
    """Wait until it holds; after `SECONDS_TO_START`, an error with what the nodes wrote."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass  # nothing listens yet
        time.sleep(0.5)
    written = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs.glob("*.log"))
    raise TimeoutError(f"{what} took more than {SECONDS_TO_START} s\n{written}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Head and one worker, token authentication on."""
    gcs, dashboard, client, *agents = free_ports(5)
    spec = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["spec"]
    head_options = [
        f"--{name}={value}" for name, value in spec["headGroupSpec"]["rayStartParams"].items()
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "NO_COLOR": "1",
        "RAY_AUTH_MODE": spec["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    running = LocalCluster(dashboard=f"http://{HOST}:{dashboard}", environment=environment)
    logs = tmp_path_factory.mktemp("ray-logs")
    folder = tempfile.mkdtemp(
        prefix="r", dir="/tmp"
    )  # short: the path of a Unix socket has 107 bytes
    head = (
        *(
            "--head",
            f"--port={gcs}",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={folder}",
        ),
        *(
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agents[0]}",
            "--object-store-memory=100000000",
        ),
    )
    worker = (
        *(f"--address={HOST}:{gcs}", "--num-cpus=4", f"--dashboard-agent-listen-port={agents[1]}"),
        "--object-store-memory=200000000",
    )
    try:
        with node(logs / "head.log", environment, *head, *head_options):
            wait_for(
                "the head", lambda: running.get("/api/version", running.token).is_success, logs
            )
            with node(logs / "worker.log", environment, *worker):
                wait_for("the worker", lambda: running.cpus() == 4, logs)
                yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_job_api_refuses_a_missing_or_wrong_token(cluster: LocalCluster) -> None:
    assert cluster.get("/api/jobs/").status_code == 401
    assert cluster.get("/api/jobs/", token=secrets.token_hex(32)).status_code == 403
    assert cluster.get("/api/jobs/", token=cluster.token).status_code == 200
    job = {"entrypoint": "true"}
    refused = httpx.post(f"{cluster.dashboard}/api/jobs/", json=job, timeout=30)
    assert (refused.status_code, cluster.get("/api/jobs/", token=cluster.token).json()) == (401, [])


def test_the_command_line_is_refused_without_the_token(cluster: LocalCluster) -> None:
    stranger = {
        name: value
        for name, value in cluster.environment.items()
        if not name.startswith("RAY_AUTH")
    }
    command = [*RAY, "job", "list", f"--address={cluster.dashboard}"]
    done = subprocess.run(
        command,
        env=stranger | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Missing authentication token" in done.stderr


@pytest.mark.timeout(600)  # half a minute on an idle machine with two cores
def test_a_cohort_is_prepared_as_a_ray_job(cluster: LocalCluster, tmp_path: Path) -> None:
    manifest = synthesise(
        SynthConfig(out=str(tmp_path / "slides"), slides=2, test_slides=0, cores=1, core_length=2)
    )
    out = tmp_path / "cohort"
    submit = [
        *RAY,
        "job",
        "submit",
        f"--address={cluster.dashboard}",
        "--submission-id=prepare",
        "--",
    ]
    entrypoint = [
        str(Path(sys.executable).with_name("acinus")),
        "prepare",
        manifest,
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [*submit, *entrypoint],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"prepared\W+2 slides", done.stdout)
    assert cluster.get("/api/jobs/prepare", token=cluster.token).json()["status"] == "SUCCEEDED"
    assert len(load_cohort(str(out))) == 2
    assert sum(load_shards(str(out))["n_patches"].to_pylist()) > 0
    assert len(list(out.rglob("overview.png"))) == 2
