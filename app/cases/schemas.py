"""What a caller states about a case. Checked here with the limits that the risk model knows (`training.risk.covariates`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import InvalidRequest
from training.risk.covariates import AGE_RANGE, PSA_RANGE, T_STAGES


def _t_stage(value: str) -> str:
    known = {stage.lower(): stage for stage in T_STAGES}
    if (stage := known.get(value.strip().lower().removeprefix("c"))) is None:
        raise ValueError(f"give the clinical T stage as one of {', '.join(T_STAGES)}")
    return stage


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
    """Clinical variables of one patient, without identity. Age, PSA and T stage are all needed for a risk, or all left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    age: Annotated[
        float | None, Field(ge=AGE_RANGE[0], le=AGE_RANGE[1], description="Years at biopsy.")
    ] = None
    psa: Annotated[
        float | None,
        Field(ge=PSA_RANGE[0], le=PSA_RANGE[1], description="PSA before biopsy, ng/mL."),
    ] = None
    t_stage: Annotated[
        Annotated[str, AfterValidator(_t_stage)] | None,
        Field(description=f"Clinical T stage: {', '.join(T_STAGES)}."),
    ] = None
    gleason_primary: Annotated[
        int | None,
        Field(
            ge=3,
            le=5,
            description="Primary Gleason pattern as the pathologist reported it; else the image's.",
        ),
    ] = None
    gleason_secondary: Annotated[
        int | None, Field(ge=3, le=5, description="Secondary Gleason pattern, likewise.")
    ] = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in ("age", "psa", "t_stage") if getattr(self, name) is not None]
        if 0 < len(given) < 3:
            raise ValueError(
                "age, psa and t_stage are needed together: give all three, or none for a report without risk"
            )
        if (self.gleason_primary is None) != (self.gleason_secondary is None):
            raise ValueError("gleason_primary and gleason_secondary are needed together")
        return self

    @property
    def allow_risk(self) -> bool:
        """Whether they suffice for a risk (the Gleason patterns may come from the image)."""
        return self.age is not None
