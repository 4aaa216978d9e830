"""What can be wrong with an upload. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class UploadTooLarge(ServiceError):  # noqa: N818
    """More bytes than the service accepts."""

    status = 413


class UnsupportedUpload(ServiceError):  # noqa: N818
    """A file whose kind is not read from an upload."""

    status = 415


class UploadNotStored(ServiceError):  # noqa: N818
    """The disk that uploads arrive on is full or cannot be written."""

    status = 503
