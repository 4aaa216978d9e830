"""What schemathesis cannot make of our form by itself; loaded by its command line.

The form has either `slide` or `slide_uri` (`oneOf` of two `required`). Schemathesis 4.32 fills in
both and calls that valid, and leaves one branch's field out and calls that invalid. The rule is
taken out of what it reads; requests that break it are left to `tests/app/test_api.py`. So are those
with more positive cores than cores: no schema compares two fields. For the same reason
`tests/app/test_risks.py` has the risks of patients who cannot be.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, schema: dict[str, Any]) -> None:
    body = schema["paths"]["/api/v1/analyses"]["post"]["requestBody"]
    del body["content"]["multipart/form-data"]["schema"]["oneOf"]


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    if case.method != "POST" or not isinstance(case.body, dict):
        return True
    right = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if not right:
        return True
    if case.path == "/api/v1/risks":
        return _one_patient(case.body)
    positive, total = case.body.get("positive_cores"), case.body.get("total_cores")
    if isinstance(positive, int) and isinstance(total, int) and positive > total:
        return False
    return ("slide" in case.body) != ("slide_uri" in case.body)


def _one_patient(body: dict[str, Any]) -> bool:
    """Whether the fields agree with each other."""
    unknown = body.get("unknown", [])
    given = {
        name: value
        for name, value in body.items()
        if name != "unknown" and value not in (None, "unknown")
    }
    also_unknown = [name for name, value in body.items() if value == "unknown"]
    pairs = (("gleason_primary", "gleason_secondary"), ("positive_cores", "total_cores"))
    return (
        bool(given)
        and not set(unknown) & {*given, *also_unknown}
        and all((one in given) == (other in given) for one, other in pairs)
        and given.get("positive_cores", 0) <= given.get("total_cores", 0)
    )
