"""What can keep the service from starting. `app.errors` draws the whole tree."""

from __future__ import annotations

from app.errors import ServiceError


class AddressTaken(ServiceError):  # noqa: N818
    """The HTTP service cannot listen on its host and port."""
