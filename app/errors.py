"""What the service refuses or fails at. Each error carries its HTTP status and one plain sentence.

    ServiceError                500
    ├── InvalidRequest          422  a value that cannot be used, or a form that cannot be read
    ├── OutsideStore            403  a slide URI that is not below the organisation's own prefix
    ├── NotFound                404  no such analysis, or it belongs to another organisation
    ├── NotReady                409  the report is asked for before the analysis is done
    ├── UploadTooLarge          413
    ├── UnsupportedUpload       415  a file whose kind is not read from an upload
    ├── UploadNotStored         503  the disk that uploads arrive on is full or cannot be written
    ├── ModelSetUnusable        503  the models were exchanged while an analysis was running
    ├── AddressTaken            500  the HTTP service cannot listen on its host and port
    ├── AnalysisAbandoned       500  the process died again and again during this analysis
    └── DemoError               500  a stage of `make demo` cannot go on; never an HTTP answer

Every answer that is not a success has the body `{"error": class, "message": sentence, "analysis":
id or null}`. Slide errors (`pipelines.slides.errors`) travel the same way: their `sentence` is for
clinicians, their traceback goes to the logs, which hold no patient data. An unexpected exception
becomes a 500 whose message names nothing internal.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipelines.slides.errors import SlideError
from pipelines.storage import StorageError
from training.errors import TrainingError

UNEXPECTED = "Something went wrong on our side; the technical details are in the service's log."


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: str
    message: str
    analysis: str | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the answers of these statuses."""
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


class NotFound(ServiceError):  # noqa: N818
    """No such thing in the caller's organisation."""

    status = 404


REMEDIES = {
    "missing-mpp": "send it again with the form's field mpp (micrometres per pixel)",
    "implausible-mpp": "send it again with its true mpp in the form's field mpp",
    "slide-not-found": "send it again",
    "one-dicom-file": "copy the whole series into the store and give its folder as slide_uri",
    "several-series": "give one file of the series that is meant as slide_uri",
    "incomplete-slide": "copy all its files, with their folder, into the store and give slide_uri",
}
"""What a caller of the HTTP API does about a slide error, by `SlideError.code`; the error's own
remedy where its code is missing here."""
UNUSABLE_MODELS = (
    "The models of this service do not fit together; its engineers must look at the installation."
)
UNUSABLE_DATABASE = (
    "The service cannot reach or use its database. Try again in a few minutes; "
    "if it stays so, its operator must look at the database."
)
UNUSABLE_STORE = (
    "The service cannot reach or use its store of slides and reports. Try again in a few minutes; "
    "if it stays so, its operator must look at the store."
)


def clinical_sentence(error: BaseException) -> str:
    """The sentence that a clinician reads about an error; nothing internal if it is not ours."""
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
