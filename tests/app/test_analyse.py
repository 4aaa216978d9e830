"""One analysis in this process, through the real models: what it writes, repeats and refuses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from app.analyses.files import AnalysisFiles
from app.analyses.status import Step
from app.cases.schemas import ClinicalVariables
from app.inference.analyse import analyse
from app.inference.errors import ModelSetUnusable
from app.inference.models import InProcessModels, covariates_of
from app.inference.stages import (
    AnalysisResult,
    SlideSource,
    Work,
    embed,
    index,
    predict,
    report,
)
from app.reports.schemas import Report
from pipelines import storage
from pipelines.slides.errors import BrokenSlide, NoTissue, SlideError
from tests.support.model_set import make_registry
from tests.support.shared_data import needs_shared_data, shared_data
from training.slide.gleason import grade

CLINICAL = ClinicalVariables(
    age=66, psa=7.2, t_stage="cT2a", gleason_primary=3, gleason_secondary=4
)


@pytest.fixture(scope="module")
def models(model_set: str) -> InProcessModels:
    return InProcessModels.load(model_set)


def patches(result: AnalysisResult) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(
        storage.read_bytes(result.report_json.replace("report.json", "patches.safetensors"))
    )


def test_a_report_says_what_the_models_say(
    models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    told: list[tuple[Step, int, int | None]] = []
    result = analyse(
        str(generated_slide),
        CLINICAL,
        models,
        str(tmp_path),
        on_progress=lambda *progress: told.append(progress),
    )
    report = result.report
    assert Report.model_validate_json(storage.read_bytes(result.report_json)) == report
    assert storage.read_bytes(result.heatmap).startswith(b"\x89PNG")
    assert storage.read_bytes(result.report_pdf).startswith(b"%PDF")
    assert [step for step, _, _ in told] == sorted(
        [step for step, _, _ in told], key=list(Step).index
    )
    assert told[-1][1] == told[-1][2] >= 2

    assert report.simulated_outcomes
    assert report.clinical == CLINICAL
    assert report.risk is not None
    assert report.risk.gleason_from == "pathologist"
    assert (
        report.risk.five_year.lower <= report.risk.five_year.estimate <= report.risk.five_year.upper
    )
    assert report.risk.five_year.estimate <= report.risk.ten_year.estimate
    assert sum(report.risk.contributions.values()) == pytest.approx(report.risk.score)
    stored = patches(result)
    assert len(stored["x"]) == report.specimen.patches
    counts = (
        np.bincount(stored["probabilities"].argmax(axis=1), minlength=4) / report.specimen.patches
    )
    grading = report.grading
    assert [
        grading.benign,
        grading.gleason_3,
        grading.gleason_4,
        grading.gleason_5,
    ] == pytest.approx(counts.tolist())
    side_um = 140 * report.specimen.mpp  # 64 pixels of 0.5 um are 70 of the level that is read
    assert report.specimen.patch_area_mm2 == pytest.approx(
        report.specimen.patches * (side_um / 1000) ** 2
    )
    facts, made_by = asyncio.run(models.facts()), report.provenance
    assert (made_by.patch_spec, made_by.patch_spec_hash) == (facts.spec.to_dict(), facts.spec.hash)
    assert (made_by.encoder, made_by.slide_model, made_by.risk_model) == (
        facts.encoder,
        facts.slide_model,
        facts.risk_model,
    )
    assert made_by.model_version == facts.version


def test_analysing_again_computes_nothing_and_gives_the_same_report(
    models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    first = analyse(str(generated_slide), CLINICAL, models, str(tmp_path), analysis_id="one")
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[0-9]*.safetensors")}
    again = analyse(str(generated_slide), CLINICAL, models, str(tmp_path), analysis_id="two")
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("[0-9]*.safetensors")
    } == stored
    varying = {"analysis_id", "created_at"}
    assert again.report.model_dump(exclude=varying) == first.report.model_dump(exclude=varying)
    assert storage.read_bytes(again.heatmap) == storage.read_bytes(first.heatmap)


def test_analyses_of_one_slide_with_different_mpp_do_not_mix(
    models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    """A second analysis with a corrected mpp begins while the first is between two of its steps."""
    slide = tmp_path / "slide.svs"
    content = generated_slide.read_bytes()
    assert b"MPP = " in content
    slide.write_bytes(content.replace(b"MPP = ", b"XXX = "))

    results: list[AnalysisResult] = []

    def work(name: str) -> Work:
        return Work(
            models=models,
            files=AnalysisFiles(
                root=storage.as_uri(tmp_path / "out"), organisation="a", analysis_id=name
            ),
            in_flight=1,
            clinical=lambda: CLINICAL,
            on_shards=lambda _done, _total: None,
            on_result=results.append,
        )

    async def both() -> None:
        started = []
        for name, mpp in (("first", 0.23), ("second", 0.46)):
            source = SlideSource(uri=slide.as_uri(), slide_id="s", mpp=mpp)
            started.append((work(name), await index(work(name), source)))
        for one, indexed in started:
            await embed(one, indexed)
            await predict(one, indexed)
            await report(one, indexed)

    asyncio.run(both())
    first, second = results
    assert (first.report.specimen.mpp, second.report.specimen.mpp) == (0.23, 0.46)
    for result in (first, second):
        assert len(patches(result)["x"]) == result.report.specimen.patches
    assert first.report.specimen.patches < second.report.specimen.patches
    alone = analyse(str(slide), CLINICAL, models, str(tmp_path / "alone"), mpp=0.23)
    assert alone.report.grading == first.report.grading


@pytest.mark.parametrize("differing", ["version", "encoder_key"])
def test_models_that_were_exchanged_after_indexing_are_refused(
    differing: str, models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    """Another encoder may cut slides alike; its embeddings are not there, and would not fit."""
    work = work_of(models, tmp_path, [])
    indexed = asyncio.run(index(work, SlideSource(uri=generated_slide.as_uri(), slide_id="s")))
    before = replace(indexed, **{differing: "another"})
    for stage in (embed, predict):
        with pytest.raises(ModelSetUnusable, match="exchanged"):
            asyncio.run(stage(work, before))


def work_of(models: InProcessModels, folder: Path, results: list[AnalysisResult]) -> Work:
    return Work(
        models=models,
        files=AnalysisFiles(root=storage.as_uri(folder), organisation="a", analysis_id="one"),
        in_flight=1,
        clinical=lambda: CLINICAL,
        on_shards=lambda _done, _total: None,
        on_result=results.append,
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_an_analysis_ends_with_the_version_that_it_started_with(
    restarted: bool, model_set: str, generated_slide: Path, tmp_path: Path
) -> None:
    """Also where another process takes it up after a promotion; both have the same encoder."""
    registry, first, benign = make_registry(model_set, str(tmp_path))
    models = InProcessModels.load(registry.uri)
    results: list[AnalysisResult] = []
    source = SlideSource(uri=generated_slide.as_uri(), slide_id="s")
    indexed = asyncio.run(index(work_of(models, tmp_path, results), source))
    registry.promote(benign, by="test")
    if restarted:
        models = InProcessModels.load(registry.uri)
    for stage in (embed, predict, report):
        asyncio.run(stage(work_of(models, tmp_path, results), indexed))
    for promoted in (benign, first):
        results.append(analyse(str(generated_slide), CLINICAL, models, str(tmp_path)))
        if promoted == benign:
            registry.rollback(by="test")
    made = [result.report for result in results]
    assert [one.provenance.model_version for one in made] == [first, benign, first]
    assert [one.grading.benign > 0.99 for one in made] == [False, True, False]
    assert made[0].provenance.encoder == made[1].provenance.encoder


def test_a_lost_shard_is_computed_again(
    models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    first = analyse(str(generated_slide), CLINICAL, models, str(tmp_path))
    lost, *kept = sorted(tmp_path.rglob("[0-9]*.safetensors"))
    content, times = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    again = analyse(str(generated_slide), CLINICAL, models, str(tmp_path))
    assert lost.read_bytes() == content
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert again.report.grading == first.report.grading


@pytest.mark.parametrize(
    ("clinical", "words"),
    [
        (ClinicalVariables(), "no clinical variable was given"),
        (ClinicalVariables(age=60, psa=5, t_stage="T1c"), "no cancer was seen on this slide"),
    ],
)
def test_a_risk_that_cannot_be_given_says_why(clinical: ClinicalVariables, words: str) -> None:
    covariates, _, absent = covariates_of(clinical, grade(np.array([1.0, 0, 0, 0])))
    assert covariates is None
    assert absent is not None
    assert words in absent


def test_the_images_grade_is_used_where_the_pathologists_is_not_given() -> None:
    grading = grade(np.array([0.2, 0.5, 0.3, 0.0]))
    covariates, source, absent = covariates_of(
        ClinicalVariables(age=60, psa=5, t_stage="T1c"), grading
    )
    assert covariates is not None
    assert (covariates.primary, covariates.secondary, source, absent) == (3, 4, "image", None)


def test_a_truncated_slide_says_so(
    models: InProcessModels, generated_slide: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.svs"
    cut.write_bytes(generated_slide.read_bytes()[: generated_slide.stat().st_size // 2])
    with pytest.raises(BrokenSlide) as caught:
        analyse(str(cut), CLINICAL, models, str(tmp_path / "out"))
    assert caught.value.sentence.count(".") <= 3


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("wsi/CMU-1-Small-Region.svs", None),
        ("dicom/cytomine_wsi", None),
        ("wsi/hamamatsu_test3-DAPI-2-387.ndpi", NoTissue),
        ("odd/", SlideError),
    ],
)
def test_real_slides_give_a_report_or_a_sentence(
    models: InProcessModels, tmp_path: Path, name: str, error: type[SlideError] | None
) -> None:
    folder = shared_data()
    assert folder is not None
    if error is None:
        result = analyse(str(folder / name), CLINICAL, models, str(tmp_path))
        assert json.loads(storage.read_bytes(result.report_json))["specimen"][
            "mpp"
        ] == pytest.approx(0.499)
        return
    with pytest.raises(error):
        analyse(str(folder / name), CLINICAL, models, str(tmp_path))
