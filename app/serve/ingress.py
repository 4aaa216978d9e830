"""The HTTP deployment: FastAPI under uvicorn in a Serve replica. Imports no model: it takes cases in and queues them.

The replica listens itself, and Serve's own HTTP proxies stay off, because their path holds a request's body in memory without
bound. An upload of 1.5 GB took 1.6 GB in the proxy and 1.9 GB in the replica; behind HAProxy 1.2 GB in the replica; with
uvicorn's flow control 7 MB, at 382 instead of 208 MiB/s. It also listens on the given address only (HAProxy opens two more
ports on every one) and answers as many requests as behind HAProxy (300-360/s beside 140-190/s through Serve's proxy, same busy
2 cores). Serve still places, checks and restarts the replica; several nodes have one each, behind a load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from ray.serve.handle import DeploymentHandle

from app.api import create_app
from app.errors import AddressTaken
from app.settings import Settings

GRACE_SECONDS = 5


class IngressDeployment:
    """One HTTP server. Holds the executor's handle so that both are deployed together."""

    async def __init__(self, settings: Settings, executor: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        self._executor = executor
        listening = listen(settings.host, settings.port)
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise RuntimeError("the HTTP server ended before it began; its log says why")
            await asyncio.sleep(0.02)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        if self._serving.done():
            raise RuntimeError("the HTTP server has ended")

    async def __del__(self) -> None:
        """Answer what is under way, then close."""
        self._server.should_exit = True
        await self._serving


class Server(uvicorn.Server):
    """uvicorn without signal handlers: signals are for the process, which belongs to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        AddressTaken: another program, or Serve's own HTTP proxy, listens there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise AddressTaken(
            f"Nothing can listen on {host}:{port} ({error.strerror}): choose another port, or turn Serve's own HTTP proxy off "
            "(`proxy_location: Disabled`)."
        ) from None
    return listening
