"""What can be wrong with the models of an analysis. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class ModelSetUnusable(ServiceError):  # noqa: N818
    """The models were exchanged while an analysis was running."""

    status = 503
