"""What the service refuses or fails at. Each error carries its HTTP status and one plain sentence.

    ServiceError                500
    ├── InvalidRequest          422  a value that cannot be used, or a form that cannot be read
    ├── OutsideStore            403  a slide URI that is not below the organisation's own prefix
    ├── NotFound                404  no such analysis, or it belongs to another organisation
    ├── NotReady                409  the report is asked for before the analysis is done
    ├── UploadTooLarge          413
    ├── UnsupportedUpload       415  a file whose kind is not read from an upload
    ├── UploadNotStored         503  the disk that uploads arrive on is full or cannot be written
    ├── ModelSetUnusable        503  no model set at the configured place, or its parts do not fit together
    ├── AddressTaken            500  the HTTP service cannot listen where it is told to
    └── AnalysisAbandoned       500  the process died again and again while it worked on this analysis

Every answer that is not a success has the body `{"error": class, "message": sentence, "analysis": id or null}`. Slide errors
(`pipelines.slides.errors`) travel the same way: their `sentence` is for clinicians, their traceback goes to the logs, which hold
no patient data. An unexpected exception becomes a 500 whose message names nothing internal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pipelines.slides.errors import SlideError
from pipelines.storage import StorageError
from training.errors import TrainingError

log = structlog.get_logger(__name__)

HTTP_ERRORS = {
    404: ("NotFound", "There is nothing at this path; /docs lists what there is."),
    405: ("MethodNotAllowed", "This path does not take this method; the header Allow lists which."),
}
"""What is said instead of the status line's own words."""
UNEXPECTED = "Something went wrong on our side; the technical details are in the service's log."


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: str
    message: str
    analysis: str | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of answers with these statuses."""
    return {status: {"model": ErrorBody} for status in statuses}


class ServiceError(Exception):
    """Base of what the service reports to its callers.

    Args:
        message: one plain sentence; it is shown to clinicians.
        analysis: the analysis it is about, where there is one.
    """

    status = 500

    def __init__(self, message: str, *, analysis: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.analysis = analysis

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.analysis)


def _rebuild(kind: type[ServiceError], message: str, analysis: str | None) -> ServiceError:
    return kind(message, analysis=analysis)


class InvalidRequest(ServiceError):  # noqa: N818 - the words of the tree read as what happened
    """A value that cannot be used, or a form that cannot be read."""

    status = 422


class OutsideStore(ServiceError):  # noqa: N818
    """A slide URI that is not below the organisation's own prefix."""

    status = 403


class NotFound(ServiceError):  # noqa: N818
    """No such thing in the caller's organisation."""

    status = 404


class NotReady(ServiceError):  # noqa: N818
    """The report is asked for before the analysis is done, or after it failed."""

    status = 409


class UploadTooLarge(ServiceError):  # noqa: N818
    """More bytes than the service accepts."""

    status = 413


class UnsupportedUpload(ServiceError):  # noqa: N818
    """A file whose kind is not read from an upload."""

    status = 415


class UploadNotStored(ServiceError):  # noqa: N818
    """The disk that uploads arrive on is full or cannot be written."""

    status = 503


class ModelSetUnusable(ServiceError):  # noqa: N818
    """No model set at the configured place, or its parts do not fit together."""

    status = 503


class AddressTaken(ServiceError):  # noqa: N818
    """The HTTP service cannot listen where it is told to."""


class AnalysisAbandoned(ServiceError):  # noqa: N818
    """The process died again and again while it worked on this analysis."""


REMEDIES = {
    "missing-mpp": "send it again with the form's field mpp (micrometres per pixel)",
    "implausible-mpp": "send it again with its true mpp in the form's field mpp",
    "slide-not-found": "send it again",
}
"""What a caller of the HTTP API does about a slide error, by `SlideError.code`; the error's own
remedy where its code is missing here."""
UNUSABLE_MODELS = (
    "The models of this service do not fit together; its engineers must look at the installation."
)
UNUSABLE_STORE = (
    "The service cannot reach or use its store of slides and reports. Try again in a few minutes; "
    "if it stays so, its operator must look at the store."
)


def clinical_sentence(error: BaseException) -> str:
    """The sentence a clinician reads about `error`; nothing internal for errors that are not ours."""
    if isinstance(error, SlideError):
        remedy = REMEDIES.get(error.code, error.remedy)
        return f"Slide {error.slide} {error.cause}; {remedy}."
    if isinstance(error, ServiceError):
        return error.message
    if isinstance(error, TrainingError):
        return UNUSABLE_MODELS
    if isinstance(error, StorageError):
        return UNUSABLE_STORE
    return UNEXPECTED


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
