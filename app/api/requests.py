"""What holds for every request: habits that must not matter, and slips that must not pass."""

from __future__ import annotations

from collections import Counter

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidRequest


def only_known_queries(request: Request) -> None:
    """Let a request pass whose query has only names that its route knows, each once.

    A misspelt `before` would otherwise give the first page forever, and of two values one would
    count without a word.

    Raises:
        InvalidRequest: names the parameter.
    """
    route = request.scope.get("route")
    params = route.dependant.query_params if isinstance(route, APIRoute) else []
    known = {param.alias for param in params}
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(
                f"There is no query parameter {name[:40]!r} here; known are: {allowed}."
            )
        if count > 1:
            raise InvalidRequest(
                f"The query parameter {name} is given {count} times; give it once."
            )


class SameResource:
    """Answers HEAD as GET without the body, and a path with a slash at its end as without.

    FastAPI answers HEAD by 405, and a slash by a redirect whose address holds the `Host` header and
    the inner scheme: behind a load balancer that leads elsewhere, after the whole slide was sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if scope["method"] != "HEAD":
            await self._app({**scope, "path": path}, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "path": path, "method": "GET"}, receive, without_body)
