"""What a caller states about a case.

It is checked here with the limits of the risk model (`training.risk.covariates`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args

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
from training.risk.covariates import (
    AGE_RANGE,
    MAX_CORES,
    PSA_RANGE,
    T_STAGES,
    Covariates,
    require_cores,
)

UNKNOWN: Final = "unknown"
"""What may be stated of a variable in place of a value: it was looked for and is not known."""
_NOT_ASSESSED: Final = ("tx", "ctx")
"""The same of a T stage, in the words of the TNM classification."""


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

_GLEASON = re.compile(r"\s*([345])\s*\+\s*([345])\s*", re.ASCII)


def patterns_of(gleason: str | None) -> tuple[str | None, str | None]:
    """Both patterns of a Gleason score as people write it, such as 3+4; or UNKNOWN, or None.

    Raises:
        ValueError: it is anything else.
    """
    if gleason is None or gleason.strip().lower() == UNKNOWN:
        return gleason, gleason
    if (found := _GLEASON.fullmatch(gleason)) is None:
        raise ValueError(f"{gleason[:40]!r} is not a Gleason score of 3 to 5, such as 3+4")
    return found[1], found[2]


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


Variable = Literal[
    "age",
    "psa",
    "t_stage",
    "gleason_primary",
    "gleason_secondary",
    "positive_cores",
    "total_cores",
]


def _says_unknown(name: str, text: str) -> bool:
    said = text.strip().lower()
    return said == UNKNOWN or (name == "t_stage" and said in _NOT_ASSESSED)


def _describe_unknown(schema: dict[str, Any]) -> None:
    """Each variable may be UNKNOWN."""
    for name in get_args(Variable):
        kinds = schema["properties"][name]["anyOf"]
        kinds.insert(len(kinds) - 1, {"const": UNKNOWN})


class ClinicalVariables(BaseModel):
    """Clinical variables of one patient, without identity. Each may be left out, or unknown.

    A risk is averaged over what is not known, and says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_describe_unknown)

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
    unknown: Annotated[
        tuple[Variable, ...],
        Field(
            strict=False,
            json_schema_extra={"uniqueItems": True},
            description="Variables that were looked for and are not known, other than those left "
            f'out. The value "{UNKNOWN}" of a variable says the same.',
        ),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_the_unknown(cls, values: Any) -> Any:
        """Move variables with the value UNKNOWN to `unknown`."""
        if not isinstance(values, Mapping):
            return values
        stated = {
            name
            for name, value in values.items()
            if name in get_args(Variable) and isinstance(value, str) and _says_unknown(name, value)
        }
        given = values.get("unknown") or ()
        if not stated or not isinstance(given, (list, tuple)):
            return values
        rest = {name: value for name, value in values.items() if name not in stated}
        return {**rest, "unknown": [*given, *sorted(stated)]}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.gleason_primary is None) != (self.gleason_secondary is None):
            raise ValueError("gleason_primary and gleason_secondary are needed together")
        try:
            require_cores(self.positive_cores, self.total_cores)
        except CovariateError as error:
            raise ValueError(str(error)) from None
        if both := [name for name in self.unknown if getattr(self, name) is not None]:
            raise ValueError(f"{both[0]} has a value and is stated as unknown; give one of the two")
        if len(set(self.unknown)) < len(self.unknown):
            raise ValueError("unknown names a variable twice; name each once")
        return self

    @property
    def stated(self) -> bool:
        """Whether any variable has a value."""
        return any(getattr(self, name) is not None for name in get_args(Variable))

    def covariates(self, *, image: tuple[int, int] | None = None) -> Covariates:
        """As the risk model takes them; what is unknown or left out is missing.

        Args:
            image: Gleason patterns to use where the pathologist's were not given.
        """
        primary, secondary = self.gleason_primary, self.gleason_secondary
        if primary is None and image is not None:
            primary, secondary = image
        return Covariates(
            age=self.age,
            psa=self.psa,
            t_stage=self.t_stage,
            primary=primary,
            secondary=secondary,
            positive_cores=self.positive_cores,
            total_cores=self.total_cores,
        )
