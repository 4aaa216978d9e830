"""Taking in an analysis: check what was sent, write the rows, put the workflow on its queue."""

from __future__ import annotations

import uuid

from app.accounts.principal import Principal
from app.analyses import repository
from app.analyses.schemas import Accepted, AnalysisRequest, Links
from app.analyses.tables import Analysis
from app.cases import repository as cases
from app.cases.schemas import checked
from app.context import CaseQueue
from app.database.session import Database
from app.errors import InvalidRequest
from app.settings import Settings
from app.slides.store import discard, incoming_uri, within_organisation
from app.uploads.reception import Form
from pipelines import storage


def parse(form: Form) -> AnalysisRequest:
    """The form's fields, checked.

    Raises:
        InvalidRequest: names the first field that cannot be used.
    """
    # A browser sends an empty field for what was not filled in. A program that sends an empty URI
    # has lost it.
    given = {
        name: value for name, value in form.fields.items() if value.strip() or name == "slide_uri"
    }
    request = checked(AnalysisRequest, given)
    if (form.file is None) == (request.slide_uri is None):
        raise InvalidRequest(
            "Send the slide as a file in the field slide, or its slide_uri: exactly one of the two."
        )
    return request


def submit(
    settings: Settings, database: Database, queue: CaseQueue, principal: Principal, form: Form
) -> Accepted:
    """Take in one analysis.

    The rows are committed before the workflow is queued, so that it finds them. If this process
    dies in between, the executor queues what waits when it starts (`app.workflow.executor`). If it
    dies before the commit, the executor removes the upload (`app.workflow.ingestion`).
    """
    request = parse(form)
    organisation_id = principal.organisation_id
    analysis_id, case_id = str(uuid.uuid4()), str(uuid.uuid4())
    if request.slide_uri is not None:
        source = within_organisation(settings, organisation_id, request.slide_uri)
    else:
        source = incoming_uri(settings, organisation_id, analysis_id, form.suffix)
        assert form.file is not None  # parse() checked it
        storage.write_file_once(source, form.file, consume=True)
    analysis = Analysis(
        organisation_id=organisation_id,
        id=analysis_id,
        case_id=case_id,
        source_uri=source,
        uploaded=request.slide_uri is None,
        mpp=request.mpp,
    )
    try:
        with database.session() as session:
            cases.add(session, organisation_id, case_id, request.variables())
            repository.add(session, analysis)
    except BaseException:
        if request.slide_uri is None:  # an original to which no row refers
            discard(source, organisation_id, analysis_id)
        raise
    queue.enqueue(organisation_id, analysis_id)
    return Accepted(analysis_id=analysis_id, case_id=case_id, links=Links.of(analysis_id))
