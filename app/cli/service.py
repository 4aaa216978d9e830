"""`acinus analyse`, `risk` and `serve`: from a slide or clinical variables to a report, on this
machine or over HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.boundary import usage
from app.cli.options import (
    Age,
    Out,
    PositiveCores,
    Psa,
    TotalCores,
    TStage,
    path_or_uri,
    path_or_uri_if_given,
    positive,
)

if TYPE_CHECKING:
    from app.analyses.status import Step


def analyse(
    slide: Annotated[
        str,
        typer.Argument(
            help="Slide: path or URI; for a DICOM series, its folder.", callback=path_or_uri
        ),
    ],
    models: Annotated[
        str,
        typer.Option(
            help="Registry, or folder with encoder, slide_model and risk_model.",
            callback=path_or_uri,
        ),
    ],
    out: Out,
    age: Age = None,
    psa: Psa = None,
    t_stage: TStage = None,
    gleason_primary: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|unknown",
            help="The pathologist's primary pattern; the image's if missing.",
        ),
    ] = None,
    gleason_secondary: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|unknown",
            help="The pathologist's secondary pattern; the image's if missing.",
        ),
    ] = None,
    positive_cores: PositiveCores = None,
    total_cores: TotalCores = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per pixel, if the slide's file gives none.", callback=positive
        ),
    ] = None,
) -> None:
    """Analyse one slide on this machine, without the service.

    Writes report.json, heatmap.png and report.pdf.
    """
    from app.cases.schemas import ClinicalVariables
    from app.cli import screen
    from app.inference.analyse import analyse as run
    from app.reports.terminal import risk_table

    with usage():
        clinical = ClinicalVariables.model_validate(
            {
                "age": age,
                "psa": psa,
                "t_stage": t_stage,
                "gleason_primary": gleason_primary,
                "gleason_secondary": gleason_secondary,
                "positive_cores": positive_cores,
                "total_cores": total_cores,
            }
        )
    with screen.progress("starting") as show:

        def on_progress(step: Step, done: int, total: int | None) -> None:
            show(done, total, step.value)

        result = run(slide, clinical, models, out, mpp=mpp, on_progress=on_progress)
    screen.print_analysis(result, risk_table(result.report))


def risk(
    models: Annotated[
        str,
        typer.Option(
            help="Model set, or a folder with its risk_model alone.", callback=path_or_uri
        ),
    ],
    age: Age = None,
    psa: Psa = None,
    t_stage: TStage = None,
    gleason: Annotated[
        str | None,
        typer.Option(metavar="3+4|unknown", help="Gleason score as the pathologist reported it."),
    ] = None,
    positive_cores: PositiveCores = None,
    total_cores: TotalCores = None,
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also write the report to this path or URI.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
) -> None:
    """Risk, NCCN group and recommendation from clinical variables, without a slide.

    What is not given, and the image, is averaged over.
    """
    from app.cases.schemas import ClinicalVariables, patterns_of
    from app.cli import screen
    from app.reports.terminal import clinical_risk_table
    from app.risks.assess import assess
    from pipelines import storage

    with usage("--gleason"):
        primary, secondary = patterns_of(gleason)
    with usage():
        clinical = ClinicalVariables.model_validate(
            {
                "age": age,
                "psa": psa,
                "t_stage": t_stage,
                "gleason_primary": primary,
                "gleason_secondary": secondary,
                "positive_cores": positive_cores,
                "total_cores": total_cores,
            }
        )
    report = assess(models, clinical)
    if json is not None:
        storage.write_bytes(storage.as_uri(json), report.model_dump_json(indent=1).encode())
    screen.print_clinical_risk(clinical_risk_table(report))


def serve(
    models: Annotated[
        str | None,
        typer.Option(
            help="Registry or folder of a model set; ACINUS_MODELS if missing.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; ACINUS_PORT if missing.")] = None,
) -> None:
    """Serve the HTTP API until Ctrl-C.

    Every other setting is an ACINUS_* environment variable; app/settings.py explains each.
    """
    from app.cli import screen
    from app.serve.application import run
    from app.settings import Settings

    given: dict[str, Any] = {
        name: value for name, value in (("models", models), ("port", port)) if value is not None
    }
    with usage(lambda field: f"--{field}" if field in given else f"ACINUS_{field.upper()}"):
        settings = Settings(**given)
    run(settings, on_ready=screen.print_address)
