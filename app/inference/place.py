"""Where the objects of one analysis lie, below its organisation and the slide that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipelines import addresses, storage

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

    def of(self, address: str) -> str:
        """URI of a derived object (`pipelines.addresses`)."""
        return storage.join(self.root, *address.split("/"))

    def thumbnail(self, slide_id: str, spec_hash: str) -> str:
        """URI of the plain thumbnail that index kept."""
        return self.of(f"{addresses.patches(self.organisation, slide_id, spec_hash)}/{THUMBNAIL}")

    def file(self, slide_id: str, name: str) -> str:
        """URI of one file of the analysis."""
        return storage.join(
            self.root, self.organisation, slide_id, "analyses", self.analysis_id, name
        )
