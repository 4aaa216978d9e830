"""What can be wrong with a slide. Every error names the slide, the cause and the remedy.

    SlideError
    ├── SlideNotFound       no such object, or it may not be read
    ├── UnsupportedSlide    readable, but not a brightfield whole-slide image that we open
    ├── BrokenSlide         truncated or corrupt: header, tile index or tile
    ├── MissingResolution   no mpp in the metadata and none given
    ├── NoTissue            nothing on the slide that can be analysed
    └── ManifestError       a manifest row that cannot be used (names the line)

`SlideError.sentence` is one plain sentence for clinicians; `str(error)` adds the class and the remedy for engineers.
"""

from __future__ import annotations


class SlideError(Exception):
    """Base of all slide errors.

    Args:
        slide: name of the slide without folders: it goes to logs and reports.
        cause: what is wrong, with the value that is wrong.
        remedy: what the person can do.
    """

    def __init__(self, slide: str, cause: str, remedy: str) -> None:
        self.slide = slide
        self.cause = cause
        self.remedy = remedy
        super().__init__(
            slide, cause, remedy
        )  # args as given, so that the error survives pickling between processes

    @property
    def sentence(self) -> str:
        """One plain sentence for a clinician."""
        return f"Slide {self.slide} {self.cause}; {self.remedy}."

    def __str__(self) -> str:
        return f"{type(self).__name__}: slide {self.slide} {self.cause}; {self.remedy}"


class SlideNotFound(SlideError):  # noqa: N818 - the words of the tree read as what happened
    """There is no such object, or it may not be read."""


class UnsupportedSlide(SlideError):  # noqa: N818
    """The file is readable but not a brightfield whole-slide image that we open."""


class BrokenSlide(SlideError):  # noqa: N818
    """Truncated or corrupt header, tile index or tile."""


class MissingResolution(SlideError):  # noqa: N818
    """No micrometres per pixel in the metadata and none given."""

    @classmethod
    def of(cls, slide: str) -> MissingResolution:
        """The error for a slide whose metadata carry no resolution."""
        remedy = "give --mpp or an mpp column in the manifest, or take the objective's with --mpp-from-objective"
        return cls(slide, "has no mpp in its metadata", remedy)


class NoTissue(SlideError):  # noqa: N818
    """Nothing on the slide that can be analysed."""


class ManifestError(SlideError):
    """A manifest row that cannot be used."""
