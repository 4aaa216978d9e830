"""URIs of the files that belong to one analysis, below its organisation and its slide."""

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
class AnalysisFiles:
    """URIs of the files of one analysis. No other analysis writes them.

    Attributes:
        root: URI of the store.
        organisation: first folder of every key.
        analysis_id: of the analysis.
    """

    root: str
    organisation: str
    analysis_id: str

    def uri(self, slide_id: str, name: str) -> str:
        """URI of one file."""
        return storage.join(
            self.root, self.organisation, slide_id, "analyses", self.analysis_id, name
        )
