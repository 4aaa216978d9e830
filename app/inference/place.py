"""Where the objects of one analysis lie, below its organisation and the slide that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipelines import storage

REPORT: Final = "report.json"
HEATMAP: Final = "heatmap.png"
PDF: Final = "report.pdf"
PATCHES: Final = "patches.safetensors"
THUMBNAIL: Final = "thumbnail.png"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the objects of one analysis lie.

    Attributes:
        root: URI of the store.
        organisation: first folder of every key.
        analysis_id: names the analysis.
    """

    root: str
    organisation: str
    analysis_id: str

    def file(self, slide_id: str, name: str) -> str:
        """URI of one file of the analysis."""
        return storage.join(
            self.root, self.organisation, slide_id, "analyses", self.analysis_id, name
        )
