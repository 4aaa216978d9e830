"""How every error becomes an HTTP answer: one shape, one status, one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from app.errors import UNEXPECTED, UNUSABLE_DATABASE, ErrorBody, ServiceError, clinical_sentence
from pipelines.slides.errors import SlideError
from pipelines.storage import StorageError
from training.errors import TrainingError

log = structlog.get_logger(__name__)

HTTP_ERRORS = {
    404: ("NotFound", "There is nothing at this path; /docs lists what there is."),
    405: ("MethodNotAllowed", "This path does not take this method; the header Allow lists which."),
}
"""What is said instead of the status line's own words."""


def _answer(
    status: int,
    error: str,
    message: str,
    analysis: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = ErrorBody(error=error, message=message, analysis=analysis)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def _of_field(location: tuple[int | str, ...]) -> str:
    return (
        " ".join(str(part) for part in location if part not in {"body", "query", "path"})
        or "the request"
    )


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in the one shape."""

    @app.exception_handler(ServiceError)
    async def service_error(_request: Request, error: ServiceError) -> JSONResponse:
        if error.status >= 500:
            log.error(
                "request failed",
                error=type(error).__name__,
                analysis=error.analysis,
                exc_info=error,
            )
        return _answer(error.status, type(error).__name__, error.message, error.analysis)

    @app.exception_handler(SlideError)
    async def slide_error(_request: Request, error: SlideError) -> JSONResponse:
        log.warning("slide refused", error=type(error).__name__, exc_info=error)
        return _answer(422, type(error).__name__, clinical_sentence(error))

    @app.exception_handler(TrainingError)
    @app.exception_handler(StorageError)
    async def unavailable(_request: Request, error: StorageError | TrainingError) -> JSONResponse:
        log.error("request failed", error=type(error).__name__, exc_info=error)
        return _answer(503, type(error).__name__, clinical_sentence(error))

    @app.exception_handler(OperationalError)
    async def database_unavailable(_request: Request, error: OperationalError) -> JSONResponse:
        log.error("request failed", error="DatabaseUnavailable", exc_info=error)
        return _answer(503, "DatabaseUnavailable", UNUSABLE_DATABASE)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _answer(
            422,
            "InvalidRequest",
            f"The value of {_of_field(first['loc'])} cannot be used: {first['msg']}.",
        )

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        name, message = HTTP_ERRORS.get(error.status_code, ("HTTPError", str(error.detail)))
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := _methods(request)):
            headers["Allow"] = ", ".join(methods)
        return _answer(error.status_code, name, message, headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", method=request.method, route=_route(request), exc_info=error)
        return _answer(500, "InternalError", UNEXPECTED)


def _methods(request: Request) -> list[str]:
    """What a path takes; the router itself names the methods of its first function only."""
    described = request.app.openapi()["paths"].get(_route(request), {})
    methods = {method.upper() for method in described}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _route(request: Request) -> str:
    """The route's template: paths may hold identifiers that belong to nobody else's log."""
    return getattr(request.scope.get("route"), "path", "unknown")
