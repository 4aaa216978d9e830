"""What a caller states about a case.

It is checked here with the limits of the risk model (`training.risk.covariates`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from app.errors import InvalidRequest
from training.errors import CovariateError
from training.risk.covariates import AGE_RANGE, MAX_CORES, PSA_RANGE, T_STAGES, require_cores


def _t_stage(value: str) -> str:
    known = {stage.lower(): stage for stage in T_STAGES}
    if (stage := known.get(value.strip().lower().removeprefix("c"))) is None:
        raise ValueError(f"give the clinical T stage as one of {', '.join(T_STAGES)}")
    return stage


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def plain_number(value: object) -> object:
    """Text of a number as people write it; not Python's own `1_000`, and no decimal comma.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a number; write digits, with a decimal point")
    return text


PlainNumber = BeforeValidator(plain_number)
Pattern = Annotated[int, Field(ge=3, le=5), PlainNumber]

M = TypeVar("M", bound=BaseModel)


def checked(kind: type[M], values: Mapping[str, object]) -> M:
    """What was stated, checked.

    Raises:
        InvalidRequest: names the first field that cannot be used, and what it may be.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(
            f"{name}: {reason}." if name else f"{reason[0].upper()}{reason[1:]}."
        ) from None


class ClinicalVariables(BaseModel):
    """Clinical variables of one patient, without identity.

    Age, PSA and T stage are all needed for a risk, or all left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    age: Annotated[
        Annotated[float, Field(ge=AGE_RANGE[0], le=AGE_RANGE[1]), PlainNumber] | None,
        Field(description="Years at biopsy."),
    ] = None
    psa: Annotated[
        Annotated[float, Field(ge=PSA_RANGE[0], le=PSA_RANGE[1]), PlainNumber] | None,
        Field(description="PSA before biopsy, ng/mL."),
    ] = None
    t_stage: Annotated[
        Annotated[str, AfterValidator(_t_stage), Field(json_schema_extra={"enum": [*T_STAGES]})]
        | None,
        Field(description=f"Clinical T stage: {', '.join(T_STAGES)}."),
    ] = None
    gleason_primary: Annotated[
        Pattern | None,
        Field(
            description="Primary Gleason pattern as the pathologist reported it; else the image's."
        ),
    ] = None
    gleason_secondary: Annotated[
        Pattern | None, Field(description="Secondary Gleason pattern, likewise.")
    ] = None
    positive_cores: Annotated[
        Annotated[int, Field(ge=0, le=MAX_CORES), PlainNumber] | None,
        Field(description="Biopsy cores with cancer; they divide the intermediate NCCN group."),
    ] = None
    total_cores: Annotated[
        Annotated[int, Field(ge=1, le=MAX_CORES), PlainNumber] | None,
        Field(description="Biopsy cores taken."),
    ] = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in ("age", "psa", "t_stage") if getattr(self, name) is not None]
        if 0 < len(given) < 3:
            raise ValueError(
                "age, psa and t_stage are needed together: "
                "give all three, or none for a report without risk"
            )
        if (self.gleason_primary is None) != (self.gleason_secondary is None):
            raise ValueError("gleason_primary and gleason_secondary are needed together")
        try:
            require_cores(self.positive_cores, self.total_cores)
        except CovariateError as error:
            raise ValueError(str(error)) from None
        return self
