"""What can be wrong with a slide. Every error names the slide, the cause and the remedy.

    SlideError                       code
    ├── SlideNotFound                slide-not-found    no such object, or it may not be read
    ├── UnsupportedSlide             unsupported-slide  not a brightfield whole-slide image we open
    ├── BrokenSlide                  broken-slide       truncated or corrupt header, index or tile
    ├── MissingResolution            missing-mpp        no mpp in the metadata and none given
    ├── ImplausibleResolution        implausible-mpp    an mpp that can only be a unit error
    ├── AnisotropicResolution        anisotropic-mpp    pixels that are not square
    ├── NoTissue                     no-tissue          nothing on the slide can be analysed
    └── ManifestError                manifest           a manifest row that cannot be used

`SlideError.sentence` is one plain sentence for clinicians. `str(error)` adds the class, for
engineers. Remedies here name no option and no form field: an interface (command line, HTTP)
that has words of its own for what must be done looks them up by `SlideError.code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self


class SlideError(Exception):
    """Base of all slide errors.

    Args:
        slide: name of the slide without folders: it goes to logs and reports.
        cause: what is wrong, with the value that is wrong.
        remedy: what the person can do, in words of no particular interface.
        code: kebab-case name of the kind of mistake; `default_code` of the class if empty.
        facts: the values that the cause names, plain numbers and strings; no patient data.
    """

    default_code: ClassVar[str] = "slide"

    def __init__(
        self,
        slide: str,
        cause: str,
        remedy: str,
        *,
        code: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        # Exactly these args, and the rest in __dict__: so the error survives pickling.
        super().__init__(slide, cause, remedy)
        self.slide = slide
        self.cause = cause
        self.remedy = remedy
        self.code = code or self.default_code
        self.facts = dict(facts or {})

    @property
    def sentence(self) -> str:
        """One plain sentence for a clinician."""
        return f"Slide {self.slide} {self.cause}; {self.remedy}."

    def of_slide(self, slide: str) -> Self:
        """The same error with another name of the slide: file names may hold a patient's name."""
        return type(self)(slide, self.cause, self.remedy, code=self.code, facts=self.facts)

    def __str__(self) -> str:
        return f"{type(self).__name__}: slide {self.slide} {self.cause}; {self.remedy}"


class SlideNotFound(SlideError):  # noqa: N818 - the words of the tree read as what happened
    """There is no such object, or it may not be read."""

    default_code = "slide-not-found"


class UnsupportedSlide(SlideError):  # noqa: N818
    """The file is readable but not a brightfield whole-slide image that we open."""

    default_code = "unsupported-slide"


class BrokenSlide(SlideError):  # noqa: N818
    """Truncated or corrupt header, tile index or tile."""

    default_code = "broken-slide"


class MissingResolution(SlideError):  # noqa: N818
    """No micrometres per pixel in the metadata and none given."""

    default_code = "missing-mpp"

    @classmethod
    def of(cls, slide: str, *, found: str = "") -> Self:
        """The error for a slide without resolution.

        Args:
            slide: its name.
            found: what the metadata have instead, if anything, such as `an mpp of 'half'`.
        """
        cause = (
            f"has no usable mpp in its metadata ({found})"
            if found
            else "has no mpp in its metadata"
        )
        facts = {"found": found} if found else None
        return cls(slide, cause, "give its mpp (micrometres per pixel)", facts=facts)


class ImplausibleResolution(SlideError):  # noqa: N818
    """Micrometres per pixel that can only be a unit error."""

    default_code = "implausible-mpp"


class AnisotropicResolution(SlideError):  # noqa: N818
    """Pixels that are not square: the micrometres per pixel of the two axes differ."""

    default_code = "anisotropic-mpp"


class NoTissue(SlideError):  # noqa: N818
    """Nothing on the slide that can be analysed."""

    default_code = "no-tissue"


class ManifestError(SlideError):
    """A manifest row that cannot be used."""

    default_code = "manifest"
