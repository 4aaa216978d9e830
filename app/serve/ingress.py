"""The HTTP deployment: FastAPI under uvicorn in a Serve replica.

It imports no model: it takes cases in and queues them.

The replica listens itself, and Serve's own HTTP proxies stay off, because their path holds a
request's body in memory without bound. An upload of 1.5 GB took 1.6 GB in the proxy and 1.9 GB in
the replica; behind HAProxy 1.2 GB in the replica; with uvicorn's flow control 7 MB, at 382 instead
of 208 MiB/s. It also listens on the given address only: HAProxy opens two more ports on every one.
It answers as many requests as behind HAProxy: 300-360/s, compared with 140-190/s through Serve's
proxy on the same 2 busy cores. Serve still places, checks and restarts the replica; several nodes
have one each, behind a load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from ray.serve.handle import DeploymentHandle

from app.api.application import create_app
from app.serve.errors import AddressTaken
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
                raise RuntimeError("the HTTP server ended before it started; its log says why")
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
        AddressTaken: the port is in use or needs more rights, or the host is not of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressTaken(_why_not(host, port, error)) from None
    except UnicodeError:
        raise AddressTaken(f"{host!r} is not the name of a host; {_CHOOSE_HOST}.") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise AddressTaken(_why_not(host, port, error)) from None
    return listening


_CHOOSE_HOST = "choose 127.0.0.1, or 0.0.0.0 for every interface"


def _why_not(host: str, port: int, error: OSError) -> str:
    """What keeps us from listening there, and what to do."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"The host {host} is not an address of this machine; {_CHOOSE_HOST}."
    if error.errno == errno.EACCES:
        return f"Port {port} needs the rights of an administrator; choose a port from 1024 on."
    if error.errno == errno.EADDRINUSE:
        return (
            f"Another program listens on {host}:{port}; stop it or choose another port. "
            "In a Serve config file, turn Serve's own HTTP proxy off (`proxy_location: Disabled`)."
        )
    return f"Nothing can listen on {host}:{port} ({error.strerror}); choose another host or port."
