"""The service as an operator runs it, in a process of its own: `app.serve.run` with settings from
the environment."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 240.0
PROGRAM = """
from app.serve.application import run
from app.settings import Settings
run(Settings(), on_ready=lambda address: print('READY', address, flush=True))
"""


@dataclass
class Service:
    """A running service.

    Attributes:
        address: where it answers.
        data_root: its folder.
        process: `acinus serve`.
    """

    address: str
    data_root: Path
    process: subprocess.Popen[str]

    def replica(self, deployment: str) -> int:
        """Process id of a deployment's replica: a descendant of the service's own process."""
        parents: dict[int, int] = {}
        names: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    names[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                    )
                    parents[int(entry.name)] = int(
                        (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    )
                except (OSError, IndexError):
                    continue
        for process, name in names.items():
            ancestor = process
            while ancestor in parents and ancestor != self.process.pid:
                ancestor = parents[ancestor]
            if ancestor == self.process.pid and f":{deployment}" in name:
                return process
        raise LookupError(f"no replica of {deployment}")

    def stop(self) -> int:
        """SIGTERM, as a supervisor stops it; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(data_root: Path, models: str, **settings: str) -> Iterator[Service]:
    """Start the service, wait until it answers, and stop it however the block ends."""
    port = free_port()
    environment = os.environ | {
        "ACINUS_DATA_ROOT": str(data_root),
        "ACINUS_MODELS": models,
        "ACINUS_PORT": str(port),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        **{f"ACINUS_{name.upper()}": value for name, value in settings.items()},
    }
    arguments = [sys.executable, "-X", "faulthandler", "-c", PROGRAM]
    with subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Service(address=_ready(process), data_root=data_root, process=process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.close()


def _ready(process: subprocess.Popen[str]) -> str:
    """The address that the service prints; its output goes on being read, so that it never blocks
    on a full pipe."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.put(line)
        except ValueError:  # closed while reading
            pass
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    said = []
    while True:
        try:
            line = lines.get(timeout=PATIENCE_S)
        except queue.Empty:
            process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
            line = None
            said += [lines.get() or "" for _ in range(30)]
        if line is None:
            raise AssertionError("the service did not come up:\n" + "".join(said[-60:]))
        said.append(line)
        if line.startswith("READY "):
            return line.split()[1]
