"""A preparation's config and reports: config, outcome of each slide, report of the run.

Light on purpose: the process that hands out slides loads this and no library that reads them.
"""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from pipelines import storage
from pipelines.cohort import CohortSlide
from pipelines.discovery import PassedOver
from pipelines.fields import require
from pipelines.grid import SIDE, PatchSpec
from pipelines.manifest import ManifestRow
from pipelines.read_counts import ReadCounts
from pipelines.slides.errors import BrokenSlide, SlideError
from pipelines.slides.resolution import PLAUSIBLE_MPP, is_plausible
from pipelines.splits import SplitShares
from pipelines.storage import StorageError

ATTEMPTS = 4
"""Number of times that a slide is tried if its worker process dies."""
MAX_ORGANISATION = 100
"""Characters of an organisation's name: it is a folder in every address."""


class PreparationError(Exception):
    """A preparation can't be run on this machine; names the reason and the remedy."""


class OutputError(StorageError):
    """The cohort can't be written; names its location, the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare.

    Attributes:
        manifest: path or URI of the manifest; or a folder, an S3 prefix or a pattern of slides.
        out: folder or URI prefix that the cohort is written to.
        spec: what a patch is.
        organisation: owner of all derived objects, the first folder of their addresses.
        mpp: micrometres per pixel for slides whose manifest row and metadata have none.
        mpp_from_objective: take it from the objective's magnification if all three have none.
        shard_side: maximum number of patches along one side of a shard.
        shares: splits to assign by case, if the manifest has none.
        resume: keep what an earlier run finished, unless slide, mpp, spec or code have changed.

    Raises:
        ValueError: a value that can't be used; names the field, the value and what is allowed.
    """

    manifest: str
    out: str
    spec: PatchSpec = PatchSpec()
    organisation: str = "local"
    mpp: float | None = None
    mpp_from_objective: bool = False
    shard_side: int = SIDE
    shares: SplitShares | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        low, high = PLAUSIBLE_MPP
        plausible = self.mpp is None or is_plausible(self.mpp)
        allowed = f"1 to {MAX_ORGANISATION} printable characters without '/' and leading '.'"
        require("manifest", self.manifest, bool(self.manifest.strip()), "a path or URI")
        require("out", self.out, bool(self.out.strip()), "a folder or URI")
        storage.as_uri(self.out)
        require("organisation", self.organisation, _is_folder_name(self.organisation), allowed)
        require("mpp", self.mpp, plausible, f"{low:g} to {high:g} um per pixel")
        require("shard_side", self.shard_side, self.shard_side >= 1, "at least 1")


def _is_folder_name(text: str) -> bool:
    plain = text.isprintable() and not set(text) & set("/\\") and text == text.strip()
    return plain and 1 <= len(text) <= MAX_ORGANISATION and not text.startswith(".")


@dataclass(frozen=True, kw_only=True)
class SlideOutcome:
    """What became of one manifest row.

    Attributes:
        line: in the manifest, 0 if there is none.
        slide: its name.
        row: of the cohort table, None if the slide failed.
        thumbnail_sha256: of what it looks like.
        kept: whether an earlier run had finished it.
        remarks: what of the file was not read or not believed; see `Slide.remarks`.
        read: what reading it cost.
        kind: class of the error, empty if there is none.
        code: of the error, if it is a `SlideError`: an interface finds its own
            remedy by it.
        error: for people.
        trace: for engineers.
    """

    line: int
    slide: str
    row: CohortSlide | None = None
    thumbnail_sha256: str = ""
    kept: bool = False
    remarks: tuple[str, ...] = ()
    read: ReadCounts = field(default_factory=ReadCounts)
    kind: str = ""
    code: str = ""
    error: str = ""
    trace: str = ""

    @classmethod
    def failed(cls, row: ManifestRow, error: Exception) -> SlideOutcome:
        """The outcome of a row whose slide raised an error."""
        return cls(
            line=row.line,
            slide=storage.object_name(row.uri),
            kind=type(error).__name__,
            code=error.code if isinstance(error, SlideError) else "",
            error=str(error),
            trace="".join(traceback.format_exception(error)),
        )

    @classmethod
    def crashed(
        cls, row: ManifestRow, reason: str, *, attempts: int = ATTEMPTS, trace: str = ""
    ) -> SlideOutcome:
        """The outcome of a row whose slide ended each process that read it."""
        times = "once" if attempts == 1 else f"{attempts} times"
        cause = f"ended the process that read it {times} ({reason})"
        remedy = "export it again, or give workers more memory"
        outcome = cls.failed(row, BrokenSlide(storage.object_name(row.uri), cause, remedy))
        return replace(outcome, trace=trace or outcome.trace)

    @classmethod
    def not_run(cls, row: ManifestRow, reason: str) -> SlideOutcome:
        """The outcome of a row that was not attempted, or whose result was lost: not the slide's
        fault."""
        cause = f"was not prepared: the cluster failed ({reason})"
        error = SlideError(storage.object_name(row.uri), cause, "prepare the cohort again")
        return cls.failed(row, error)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turn what a store says of a write into the error that ends the run."""
    try:
        yield
    except StorageError as error:
        remedy = "make room there or fix the permissions, then run again with --resume"
        raise OutputError(out, error.reason, f"{remedy}: finished slides are kept") from error


RunSlides = Callable[[Sequence[ManifestRow], PrepareConfig], Generator[tuple[int, SlideOutcome]]]
"""Attempts every row and yields its index and outcome: `local_workers` or `ray_workers`. Closing it
ends what it has started."""


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What a run did, in the order of the manifest; `failed` is empty if every slide succeeded.

    `passed_over`: files that look like slides of formats that are not read, and unreadable folders.
    """

    out: str
    prepared: list[SlideOutcome]
    failed: list[SlideOutcome]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def n_patches(self) -> int:
        """Patches of all prepared slides."""
        return sum(outcome.row.n_patches for outcome in self.prepared if outcome.row)

    @property
    def kept(self) -> int:
        """Slides that an earlier run had finished."""
        return sum(outcome.kept for outcome in self.prepared)

    @property
    def staged(self) -> int:
        """Slides copied whole from object storage: their format can't be read in place."""
        return sum(bool(outcome.row and outcome.row.staged) for outcome in self.prepared)

    @property
    def remarks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Names of the prepared slides that have remarks, and what they are."""
        return [(outcome.slide, outcome.remarks) for outcome in self.prepared if outcome.remarks]

    @property
    def reading(self) -> ReadCounts:
        """Requests and bytes of this run."""
        return sum((outcome.read for outcome in [*self.prepared, *self.failed]), ReadCounts())

    @property
    def errors(self) -> dict[str, int]:
        """Failures by class of error, most frequent first."""
        return dict(Counter(outcome.kind for outcome in self.failed).most_common())

    @property
    def splits(self) -> dict[str, int]:
        """Prepared slides by split."""
        counts = Counter(outcome.row.split for outcome in self.prepared if outcome.row)
        return dict(sorted(counts.items()))

    def to_json(self) -> bytes:
        """`report.json`: counts first, then every failure, then every prepared slide."""
        slides = {
            "total": len(self.prepared) + len(self.failed),
            "prepared": len(self.prepared),
            "failed": len(self.failed),
            "kept": self.kept,
            "staged": self.staged,
        }
        content = {
            "out": self.out,
            "slides": slides,
            "reading": {**asdict(self.reading), "amplification": self.reading.amplification},
            "patches": self.n_patches,
            "splits": self.splits,
            "remarks": [{"slide": slide, "remarks": said} for slide, said in self.remarks],
            "errors": self.errors,
            "passed_over": [asdict(file) for file in self.passed_over],
            "failed": [asdict(outcome) for outcome in self.failed],
            "prepared": [asdict(outcome) for outcome in self.prepared],
        }
        return json.dumps(content, indent=1).encode()
