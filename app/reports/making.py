"""The report as it follows from what the models found. Knows no store and runs no model."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version

from app.cases.schemas import ClinicalVariables
from app.reports import schemas
from app.reports.findings import AnalysedSlide, Findings, ModelSetFacts
from app.reports.risk import GleasonFrom, risk_part, share
from app.reports.schemas import Report
from pipelines.grid import PatchSpec
from training.slide.domain import Likeness
from training.slide.reading import Reading, read_grade


def make_report(
    analysis_id: str,
    facts: ModelSetFacts,
    slide: AnalysedSlide,
    findings: Findings,
    *,
    clinical: ClinicalVariables,
    made_at: datetime,
) -> Report:
    """What the models found, as a report."""
    grading, prediction = findings.grading, findings.slide
    spec = facts.spec
    area = _patch_area_mm2(slide, spec)
    reading = read_grade(
        areas=grading.grade_group,
        slide_model=prediction.grade_group,
        tissue_mm2=area,
        likeness=findings.likeness,
    )
    return Report(
        simulated_outcomes=facts.simulated_outcomes,
        analysis_id=analysis_id,
        created_at=made_at,
        specimen=schemas.Specimen(
            slide_id=slide.slide_id,
            vendor=slide.vendor,
            width_px=slide.width,
            height_px=slide.height,
            mpp=slide.mpp,
            patches=slide.n_patches,
            patch_area_mm2=area,
        ),
        clinical=clinical,
        likeness=None
        if findings.likeness is None
        else schemas.Likeness(**asdict(findings.likeness)),
        reading=schemas.Reading(grade_group=reading.grade_group, reason=reading.reason),
        grading=schemas.Grading(
            **grading.shares,
            tumour_extent=min(grading.tumour_extent, 1.0),
            primary=grading.primary,
            secondary=grading.secondary,
            gleason_score=grading.gleason_score,
            grade_group=grading.grade_group,
            percent_pattern_4=grading.percent_pattern_4,
            percent_pattern_5=grading.percent_pattern_5,
            tumour_extent_error=findings.area_errors[0],
            percent_pattern_4_error=findings.area_errors[1],
        ),
        slide_model=schemas.SlideModelPrediction(
            grade_group=prediction.grade_group,
            grade_group_probabilities=[share(p) for p in prediction.grade_group_probabilities],
            cancer_probability=share(prediction.cancer_probability),
            agrees_with_grading=prediction.grade_group == grading.grade_group,
        ),
        risk=_risk(findings, reading),
        risk_absent_because=findings.risk_absent_because,
        provenance=schemas.Provenance(
            model_version=facts.version,
            encoder=facts.encoder,
            slide_model=facts.slide_model,
            risk_model=facts.risk_model,
            patch_spec=spec.to_dict(),
            patch_spec_hash=spec.hash,
            software=f"acinus {version('acinus')}",
        ),
    )


def _risk(findings: Findings, reading: Reading) -> schemas.Risk | None:
    if findings.risk is None or findings.covariates is None:
        return None
    return risk_part(
        findings.risk,
        findings.covariates,
        findings.gleason_from,
        doubts=doubts_of(findings.likeness, reading, findings.gleason_from),
    )


def doubts_of(likeness: Likeness | None, reading: Reading, gleason_from: GleasonFrom) -> list[str]:
    """Why no treatment may be chosen by what was found on a slide, one sentence each.

    Args:
        likeness: of the slide to those of training; None where that is not known.
        reading: which grade is to be read.
        gleason_from: whose Gleason patterns the risk used.
    """
    doubts = []
    if likeness is not None and not likeness.inside:
        doubts.append(f"The slide: {likeness.reason}")
    if gleason_from == "image" and reading.grade_group is None:
        doubts.append("The Gleason score is the image's, and this report has no grade to read.")
    return doubts


def _patch_area_mm2(slide: AnalysedSlide, spec: PatchSpec) -> float:
    """Area that the patches cover together; overlaps count once."""
    step = slide.patch_side * (1 - spec.overlap / spec.size)
    return slide.n_patches * (step * slide.mpp / 1000) ** 2
