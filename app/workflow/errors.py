"""What can end a workflow that no step ended. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class AnalysisAbandoned(ServiceError):  # noqa: N818
    """The process died again and again while it worked on this analysis."""
