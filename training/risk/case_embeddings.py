"""One slide embedding a case, of a prepared cohort: all slides of a case are one bag.

Slides are read one case at a time and every slide is attempted. A case with a slide that can't be
used is left out whole: half a case is another case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cohort import load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.read_counts import ReadCounts
from pipelines.slides.errors import SlideError
from training.data_facts import DataFacts
from training.encoder.cohort_embeddings import embed_on_cluster
from training.encoder.embed import embed_shards, load_bag
from training.encoder.encoder import Encoder
from training.errors import InsufficientData
from training.slide.labelled_slides import FailedSlide, Progress
from training.slide.slide_model import SlideModel


@dataclass(frozen=True, kw_only=True)
class CaseEmbeddings:
    """Cases C that could be read.

    Attributes:
        cases: their ids, in the cohort's order.
        embeddings: float32 [C, E].
        failed: slides that could not be used; their cases are left out.
        data: facts for a card.
        read: what embedding took that was not embedded before.
    """

    cases: list[str]
    embeddings: npt.NDArray[np.float32]
    failed: list[FailedSlide] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    read: ReadCounts = field(default_factory=ReadCounts)


def embed_cases(
    data: str,
    encoder: Encoder,
    slide_model: SlideModel,
    *,
    wanted: Collection[str],
    split: str | None = None,
    on_ray: str | None = None,
    on_shard: Progress = lambda _done, _total: None,
) -> CaseEmbeddings:
    """Slide embeddings of the wanted cases of a prepared cohort; embeds what is not embedded yet.

    Args:
        data: the URI that `prepare` wrote to.
        encoder: that embeds.
        slide_model: fitted on embeddings of that encoder.
        wanted: case ids; others are not read.
        split: only slides of this split; None for all.
        on_ray: name or URI of the encoder, to embed on the cluster what is not embedded yet; None
            to do so in this process.
        on_shard: called with the number of shards that are done and their total.

    Raises:
        CohortError: nothing was prepared there, or the split has no slide.
        SpecMismatch: the cohort was prepared for another encoder.
        InsufficientData: no wanted case could be read.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for row in load_cohort(data, split=split).to_pylist():
        if row["case"] in wanted:
            cases[row["case"]].append(row["slide_id"])
    if not cases:
        raise InsufficientData(
            f"none of the {len(wanted)} cases with an outcome is in the cohort; write the cases as "
            "in the manifest that it was prepared from"
        )
    shards = load_shards(data, split=split)
    ids = pa.array([slide for slides in cases.values() for slide in slides])
    shards = shards.filter(pc.is_in(shards["slide_id"], ids))
    read = ReadCounts()
    if on_ray is not None:
        read += embed_on_cluster(shards, on_ray, data, on_shard=on_shard).read
    found: dict[str, npt.NDArray[np.float32]] = {}
    failed: list[FailedSlide] = []
    done = 0
    for case, slides in cases.items():
        bags = []
        for slide in slides:
            own = shards.filter(pc.equal(shards["slide_id"], slide))
            try:
                read += embed_shards(own, encoder, data).read
                bags.append((load_bag(own, encoder.key, data).embeddings, None))
            except SlideError as error:
                failed.append(FailedSlide(slide_id=slide, code=error.code, error=str(error)))
            done += len(own)
            on_shard(done, len(shards))
        if len(bags) == len(slides):
            found[case] = slide_model.predict_case(bags).whole.embedding
    if not found:
        causes = "; ".join(map(str, failed))
        raise InsufficientData(f"no case with an outcome could be read: {causes}")
    return CaseEmbeddings(
        cases=list(found),
        embeddings=np.stack(list(found.values())),
        failed=failed,
        data=DataFacts.of(shards).to_dict(),
        read=read,
    )
