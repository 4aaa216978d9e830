"""What can be wrong with what is asked of an analysis. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class NotReady(ServiceError):  # noqa: N818
    """The report is asked for before the analysis is done, or after it failed."""

    status = 409
