"""Who is asking. Every endpoint depends on a principal; every query filters by its organisation.

Until accounts exist the principal is a fixed local one, of the organisation in the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.settings import Settings


@dataclass(frozen=True)
class Principal:
    """A person or program that has been let in, and the organisation it acts for."""

    subject: str
    organisation_id: str


def current_principal(request: Request) -> Principal:
    """The principal of a request."""
    settings: Settings = request.app.state.settings
    return Principal(subject="local", organisation_id=settings.organisation_id)


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
