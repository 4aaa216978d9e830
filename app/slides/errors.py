"""What can be wrong with where a slide is. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class OutsideStore(ServiceError):  # noqa: N818
    """A slide URI that is not below the organisation's own prefix."""

    status = 403
