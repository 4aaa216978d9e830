"""A real S3 server on loopback, and a proxy before it that delays every answer, as a bucket in the
same region does.

rclone's `serve s3` reads a folder, range requests included; the proxy passes bytes on late, without
limiting their rate. It fixes one thing: rclone answers a range with status 200, S3 with 206, and
clients check it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CREDENTIALS = ("benchmark", "benchmark-secret")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


@contextmanager
def served(
    folder: Path, *, latency: float, cores: set[int] | None = None
) -> Iterator[dict[str, str]]:
    """Serve each subfolder of `folder` as a bucket.

    Args:
        folder: what is served.
        latency: seconds added between a request and its answer.
        cores: processors that server and proxy are kept to; None for all.

    Yields:
        The environment variables that make S3 clients come here.
    """
    server, proxy = free_port(), free_port()
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone is missing: install the test extra"
    options = ["--vfs-cache-mode", "off", "--read-only", "--config", os.devnull]
    keys, address = ",".join(CREDENTIALS), f"127.0.0.1:{server}"

    commands = [
        [rclone, "serve", "s3", "--auth-key", keys, "--addr", address, *options, str(folder)],
        [
            sys.executable,
            "-c",
            f"from tests.benchmarks.s3 import delay; delay({proxy}, {server}, {latency})",
        ],
    ]
    running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    for process in running:
        os.sched_setaffinity(process.pid, cores or os.sched_getaffinity(0))
    try:
        _wait(server)
        _wait(proxy)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy}",
            "AWS_ACCESS_KEY_ID": CREDENTIALS[0],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS[1],
            "AWS_REGION": "us-east-1",
        }
    finally:
        for process in running:
            process.terminate()
            process.wait()


def _as_partial(data: bytes) -> bytes:
    """A response starts a chunk: no client sends a request before the last one is answered."""
    if (
        data.startswith(b"HTTP/1.1 200 OK")
        and b"\r\nContent-Range:" in data.partition(b"\r\n\r\n")[0]
    ):
        return data.replace(b"200 OK", b"206 Partial Content", 1)
    return data


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
) -> None:
    """Copy a stream, every chunk `delay` seconds after it came, as many in flight as there are."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()

    sender = asyncio.create_task(send())
    with suppress(ConnectionError):
        while data := await reader.read(1 << 18):
            waiting.put_nowait((loop.time() + delay, _as_partial(data)))
    waiting.put_nowait((loop.time() + delay, b""))
    with suppress(ConnectionError):
        await sender
    writer.close()


def delay(port: int, server: int, latency: float) -> None:
    """Be the proxy until killed: listen on `port`, pass on to `server`."""
    asyncio.run(_proxy(port, server, latency))


async def _proxy(port: int, server: int, latency: float) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server)
        await asyncio.gather(
            _pass_on(reader, far_writer, latency / 2), _pass_on(far_reader, writer, latency / 2)
        )

    async with await asyncio.start_server(connection, "127.0.0.1", port) as listener:
        await listener.serve_forever()
