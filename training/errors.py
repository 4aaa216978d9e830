"""What can be wrong with models and what they are given. Every error names the model or field, the
value and the remedy.

    TrainingError
    ├── ModelNotFound     no model at this URI, or one of another kind
    ├── BrokenModel       weights that are not those the card describes
    ├── WeightsUnavailable  published weights that can't be had: no network, no token
    ├── SpecMismatch      models not made for each other: another PatchSpec, encoder or slide model
    ├── RunError          a run that cannot start or continue: other data or recipe, too few CPUs
    ├── InsufficientData  a cohort that cannot be learnt from: too few slides, patterns or patients
    ├── CovariateError    a clinical variable that no patient can have
    ├── OutcomesError     a table of outcomes that can't be used as it is
    └── RegistryError
        ├── RegistryDamaged   a log with a gap, or an entry that is not one
        ├── VersionNotFound   no such version, or several that begin so
        ├── RegistryChanged   somebody else was faster
        └── PromotionRefused  a version that can't go into production
            └── NotReproducible   not shown to say the same of the same tissue

Slides that cannot be read are `pipelines.slides.errors`.
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of all errors of `training`."""


class ModelNotFound(TrainingError):  # noqa: N818 - the words of the tree read as what happened
    """There is no model at this URI, or it is of another kind."""


class BrokenModel(TrainingError):  # noqa: N818
    """Weights that are not those the card describes."""


class WeightsUnavailable(TrainingError):  # noqa: N818
    """Published weights that can't be fetched."""


class SpecMismatch(TrainingError):  # noqa: N818
    """Two models that do not belong together; names both values."""

    def __init__(self, what: str, ours: str, theirs: str, remedy: str) -> None:
        self.what, self.ours, self.theirs, self.remedy = what, ours, theirs, remedy
        super().__init__(
            what, ours, theirs, remedy
        )  # args as given, so that the error survives pickling between processes

    def __str__(self) -> str:
        return f"{self.what} differs: {self.ours} against {self.theirs}; {self.remedy}"


class RunError(TrainingError):
    """A training run that cannot begin or go on."""


class InsufficientData(TrainingError):  # noqa: N818
    """A cohort that cannot be learnt from."""


class CovariateError(TrainingError, ValueError):
    """A clinical variable that no patient can have."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(field, value, remedy)

    def __str__(self) -> str:
        return f"{self.field} {self.value!r} is not usable; {self.remedy}"


class OutcomesError(TrainingError):
    """A table of outcomes that can't be used; names its lines."""


class RegistryError(TrainingError):
    """Base of the registry's errors."""


class RegistryDamaged(RegistryError):  # noqa: N818
    """A log with a gap, or with an entry that is not one."""


class VersionNotFound(RegistryError):  # noqa: N818
    """There is no such version."""


class RegistryChanged(RegistryError):  # noqa: N818
    """Somebody else changed what is in production meanwhile."""


class PromotionRefused(RegistryError):  # noqa: N818
    """A version that can't go into production, or back."""


class NotReproducible(PromotionRefused):
    """A version that was not shown to say the same of the same tissue."""
