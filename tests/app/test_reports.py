"""The PDF: what every page must show, the same bytes for the same report, and PDF/A."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pypdf
import pytest
from pydantic import ValidationError

from app.cases.schemas import ClinicalVariables
from app.reports import schemas
from app.reports.heatmap import heatmap_png
from app.reports.pdf import report_pages, report_pdf
from app.reports.schemas import NOTICE, SIMULATED, Report

YEARS = np.linspace(0, 10, 41)


def estimate(value: float) -> schemas.Estimate:
    return schemas.Estimate(estimate=value, lower=value * 0.6, upper=min(1.0, value * 1.6))


def example(**changes: Any) -> Report:
    incidence = (1 - np.exp(-((YEARS / 30) ** 1.25))).tolist()
    risk = schemas.Risk(
        five_year=estimate(incidence[20]),
        ten_year=estimate(incidence[40]),
        curve=schemas.RiskCurve(
            years=YEARS.tolist(),
            estimate=incidence,
            lower=[v * 0.6 for v in incidence],
            upper=[v * 1.6 for v in incidence],
        ),
        score=-0.25,
        nccn_group="intermediate",
        percentile=63.2,
        contributions={"image": 0.31, "age": -0.05, "psa": 0.12, "t_stage": -0.21, "gleason": 0.24},
        no_effect=["age"],
        outside_training_range=["psa"],
        gleason_from="image",
    )
    report = Report(
        simulated_outcomes=True,
        analysis_id="0b5f8f6e-7a5c-4f0e-9a39-2f5f6b0c1d2e",
        created_at=datetime(2026, 11, 24, 5, 2, tzinfo=UTC),
        specimen=schemas.Specimen(
            slide_id="9f" * 32,
            vendor="aperio",
            width_px=38400,
            height_px=13440,
            mpp=0.25,
            patches=1432,
            patch_area_mm2=17.97,
        ),
        clinical=ClinicalVariables(age=67, psa=8.4, t_stage="T2a"),
        reading=schemas.Reading(grade_group=2, reason="By the pattern areas."),
        likeness=schemas.Likeness(
            inside=True, score=0.4, limit=2.1, false_alarms=0.05, reason="Like them."
        ),
        grading=schemas.Grading(
            benign=0.48,
            gleason_3=0.31,
            gleason_4=0.206,
            gleason_5=0.004,
            tumour_extent=0.52,
            primary=3,
            secondary=4,
            gleason_score=7,
            grade_group=2,
            percent_pattern_4=36.5,
            percent_pattern_5=3.8,
        ),
        slide_model=schemas.SlideModelPrediction(
            grade_group=3,
            grade_group_probabilities=[0.02, 0.2, 0.15, 0.55, 0.06, 0.02],
            cancer_probability=0.98,
            agrees_with_grading=False,
        ),
        risk=risk,
        risk_absent_because=None,
        provenance=schemas.Provenance(
            encoder=schemas.ModelFacts(name="acinus-vit", hash="ab" * 32, version="0.1.0"),
            slide_model=schemas.ModelFacts(name="gated attention", hash="cd" * 32, version="0.1.0"),
            risk_model=schemas.ModelFacts(name="Cox", hash="ef" * 32, version="0.1.0"),
            patch_spec={"size": 224, "mpp": 0.5, "overlap": 0, "min_tissue": 0.25},
            patch_spec_hash="0123456789abcdef",
            software="acinus 0.1.0",
        ),
    )
    return report.model_copy(update=changes)


def heatmap(height: int = 120, width: int = 300) -> bytes:
    return heatmap_png(
        np.full((height, width, 3), 240, np.uint8),
        np.full((height, width, 4), np.nan, np.float32),
        mpp=30.0,
    )


def pages(report: Report, picture: bytes | None = None) -> list[str]:
    reader = pypdf.PdfReader(io.BytesIO(report_pdf(report, picture or heatmap())))
    return [" ".join(page.extract_text().split()) for page in reader.pages]


def test_every_page_shows_notice_and_analysis() -> None:
    texts = pages(example())
    assert len(texts) == 2
    for text in texts:
        assert NOTICE in text
        assert SIMULATED in text
        assert SIMULATED.upper() in text, "the watermark across the page"
        assert "0b5f8f6e-7a5c-4f0e-9a39-2f5f6b0c1d2e" in text


def test_without_simulated_outcomes_the_pdf_has_no_watermark() -> None:
    texts = pages(example(simulated_outcomes=False))
    assert len(texts) == 2
    for text in texts:
        assert "simulated" not in text.lower()
        assert NOTICE in text


def test_the_pdf_shows_the_values_of_the_report() -> None:
    first, second = pages(example())
    for words in (
        "Group 2",
        "Gleason 3 + 4 = 7",
        "52 %",
        "48 %",
        "31 %",
        "21 %",
        "0.4 %",
        "37 %",
        "Group 3",
        "differs from",
    ):
        assert words in first, words
    for words in (
        "10 years",
        "22 %",
        "95 % interval",
        "intermediate",
        "63",
        "−0.25",
        "T2a",
        "8.4 ng/mL",
        "× 1.36",
        "PSA.",
        "224 px",
    ):
        assert words in second, words
    assert "ab" * 12 in second


def test_an_analysis_without_risk_says_why() -> None:
    report = example(
        risk=None,
        risk_absent_because="no clinical variable was given.",
        clinical=ClinicalVariables(),
    )
    first, second = pages(report)
    assert "not calculated" in first
    assert "no clinical variable was given." in second
    assert "not given" in second


def test_a_benign_slide_has_no_score() -> None:
    grading = schemas.Grading(
        benign=1.0,
        gleason_3=0.0,
        gleason_4=0.0,
        gleason_5=0.0,
        tumour_extent=0.0,
        primary=None,
        secondary=None,
        gleason_score=None,
        grade_group=0,
        percent_pattern_4=None,
        percent_pattern_5=None,
    )
    first, _ = pages(example(grading=grading, risk=None, risk_absent_because="no cancer was seen."))
    assert "no tumour pattern" in first


@pytest.mark.parametrize("shape", [(2048, 60), (60, 2048), (500, 500)])
def test_slides_of_any_shape_leave_two_pages(shape: tuple[int, int]) -> None:
    assert len(pages(example(), heatmap(*shape))) == 2


def test_the_same_report_is_the_same_document() -> None:
    assert report_pdf(example(), heatmap()) == report_pdf(example(), heatmap())


def test_the_pdf_is_pdf_a_and_has_a_title() -> None:
    document = report_pdf(example(), heatmap())
    reader = pypdf.PdfReader(io.BytesIO(document))
    metadata = reader.xmp_metadata
    assert metadata is not None
    assert b"<pdfaid:part>2</pdfaid:part>" in document
    assert reader.metadata is not None
    assert reader.metadata.title == "Prostate biopsy analysis 0b5f8f6e-7a5c-4f0e-9a39-2f5f6b0c1d2e"


def test_the_pages_can_be_drawn_as_png() -> None:
    assert [page[:4] for page in report_pages(example(), heatmap(), ppi=40)] == [b"\x89PNG"] * 2


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValidationError):
        schemas.Estimate(estimate=1.2, lower=0, upper=1)


def test_the_report_survives_json() -> None:
    assert Report.model_validate_json(example().model_dump_json()) == example()
