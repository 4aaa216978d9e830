"""The `acinus` command: every stage of the product from a shell. Each command builds one config and calls one function.

    synth  prepare  pretrain  probe  fit-slide  fit-risk  analyse  serve

Heavy imports stay inside the commands, so that `acinus --help` answers at once. Errors that say what is wrong become one line and
exit code 1; `ACINUS_TRACEBACK=1` shows the traceback too.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.prepare import PrepareConfig, PrepareReport

REMEDIES = {
    "missing-mpp": "Give --mpp or an mpp column in the manifest; "
    "or take the objective's with --mpp-from-objective."
}
"""What `prepare` says besides a failed slide's own remedy, by `SlideError.code`."""
FAILURES_SHOWN = 5
"""Failed slides that `prepare` tells in full; all are in its report."""

app = typer.Typer(
    name="acinus",
    help="AI cancer diagnostics on prostate biopsies. Research use only; not a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

Out = Annotated[str, typer.Option(help="Folder or URI (file://, s3://) to write to.")]
Data = Annotated[str, typer.Option(help="Prepared cohort: the --out of `acinus prepare`.")]
Encoder = Annotated[
    str, typer.Option(help="Encoder: the `encoder` folder that `acinus pretrain` wrote.")
]
Seed = Annotated[int, typer.Option(help="Source of all randomness.")]
Split = Annotated[str | None, typer.Option(help="Only slides of this split; all where not given.")]


def main() -> NoReturn:
    """Run the command line; the boundary where an error becomes a sentence."""
    from app.errors import ServiceError
    from pipelines.cohort import CohortError
    from pipelines.slides.errors import SlideError
    from pipelines.storage import StorageError
    from training.errors import TrainingError

    logging.getLogger("tifffile").setLevel(
        logging.CRITICAL
    )  # what it would log of damaged files, our errors say
    try:
        app(standalone_mode=True)
    except ValidationError as error:  # of clinical variables and settings
        for at in error.errors():
            errors.print(
                f"[red]{' '.join(map(str, at['loc']))}: {at['msg']}[/red]",
                highlight=False,
                soft_wrap=True,
            )
        sys.exit(1)
    except (
        SlideError,
        CohortError,
        StorageError,
        TrainingError,
        ServiceError,
        FileNotFoundError,
    ) as error:
        if os.environ.get("ACINUS_TRACEBACK"):
            errors.print_exception()
        errors.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        sys.exit(1)
    sys.exit(0)


def progress() -> Progress:
    """The one look of progress bars."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def facts(title: str, rows: dict[str, Any]) -> None:
    """Print what a command has made."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # paths are for copying: never shortened
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)


@app.command()
def synth(
    out: Annotated[
        Path, typer.Option(help="Local folder to write slides, annotations and manifest.csv to.")
    ],
    slides: Annotated[int, typer.Option(help="Number of slides.")] = 12,
    test_slides: Annotated[int, typer.Option(help="How many of them are of split `test`.")] = 3,
    tiles: Annotated[
        Path | None,
        typer.Option(help="Class folders of real tiles; generated H&E where not given."),
    ] = None,
    core_length: Annotated[int, typer.Option(help="Length of a core in tiles of 172 um.")] = 14,
    seed: Seed = 0,
) -> None:
    """Make a cohort of multi-level slides with known regions, from real tiles or generated H&E."""
    from pipelines.synthetic.synthesise import SynthConfig, synthesise

    config = SynthConfig(
        out=str(out),
        slides=slides,
        test_slides=test_slides,
        tiles=str(tiles) if tiles else None,
        core_length=core_length,
        seed=seed,
    )
    with progress() as bar:
        task = bar.add_task("slides", total=slides)
        manifest = synthesise(config, on_slide=lambda done: bar.update(task, completed=done))
    facts(
        "Cohort",
        {
            "tissue": "real tiles" if tiles else "generated H&E",
            "slides": slides,
            "manifest": manifest,
        },
    )


@app.command()
def prepare(
    manifest: Annotated[
        str,
        typer.Argument(
            help="CSV or Parquet with a `slide` column; or a folder, an S3 prefix, or a quoted pattern: 's/**/*.svs'."
        ),
    ],
    out: Out,
    size: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = 224,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of slides that do not tell theirs.")
    ] = None,
    patch_mpp: Annotated[float, typer.Option(help="Micrometres per pixel of a patch.")] = 0.5,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring patches share.")] = 0,
    min_tissue: Annotated[
        float, typer.Option(help="Least share of tissue in a patch, 0 to 1.")
    ] = 0.25,
    icc: Annotated[
        bool, typer.Option("--icc", help="Bring colours to sRGB by each slide's ICC profile.")
    ] = False,
    stain: Annotated[
        str, typer.Option(help="Normalise stain: macenko or reinhard, fitted once a slide.")
    ] = "",
    mpp_from_objective: Annotated[
        bool,
        typer.Option(
            "--mpp-from-objective",
            help="Where no mpp is told, take 10 um divided by the magnification.",
        ),
    ] = False,
    organisation: Annotated[str, typer.Option(help="Owner of the derived objects.")] = "local",
    split: Annotated[
        str | None,
        typer.Option(
            help="Assign splits by case where the manifest has none: train=0.7,validation=0.15,test=0.15."
        ),
    ] = None,
    seed: Seed = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Redo only what is missing, failed, or whose slide, mpp or spec changed.",
        ),
    ] = False,
) -> None:
    """Index slides: tissue, patches, shards, and a picture per slide. Attempts every slide; exits with 1 if any failed."""
    from pipelines.grid import STAINS, PatchSpec
    from pipelines.prepare import PrepareConfig, SlideOutcome
    from pipelines.prepare import prepare as run
    from pipelines.splits import SplitShares

    try:
        shares = SplitShares.parse(split, seed=seed) if split else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--split") from None
    if stain not in STAINS:
        raise typer.BadParameter(
            f"{stain!r} is none of {', '.join(filter(None, STAINS))}", param_hint="--stain"
        )
    config = PrepareConfig(
        manifest=manifest,
        out=out,
        spec=PatchSpec(
            size=size, mpp=patch_mpp, overlap=overlap, min_tissue=min_tissue, icc=icc, stain=stain
        ),
        organisation=organisation,
        mpp=mpp,
        mpp_from_objective=mpp_from_objective,
        shares=shares,
        resume=resume,
    )
    failures = 0
    with progress() as bar:
        task = bar.add_task("slides", total=None)

        def on_slide(outcome: SlideOutcome, total: int) -> None:
            nonlocal failures
            failures += bool(outcome.error)
            bar.update(
                task,
                total=total,
                advance=1,
                description=f"slides, {failures} failed" if failures else "slides",
            )

        report = run(config, on_slide=on_slide)
    _tell_cohort(report, config)
    if report.failed:
        _tell_failed_slides(report)
        raise typer.Exit(1)


def _tell_cohort(report: PrepareReport, config: PrepareConfig) -> None:
    """What was prepared, and where it lies."""
    kept = f", {report.kept} of them kept from an earlier run" if report.kept else ""
    splits = ", ".join(f"{name} {count}" for name, count in report.splits.items() if name) or "none"
    rows = {
        "prepared": f"{len(report.prepared)} slides{kept}",
        "patches": report.n_patches,
        "slides by split": splits,
    }
    rows["read"] = str(report.reading)
    if report.staged:
        counted = "1 slide was" if report.staged == 1 else f"{report.staged} slides were"
        rows["staged"] = f"{counted} copied whole: their format can't be read in place"
    pictures = f"{report.out}/{config.organisation}/*/{config.spec.hash}/overview.png"
    facts(
        "Prepared cohort",
        {
            **rows,
            "failed": f"{len(report.failed)} slides",
            "report": f"{report.out}/report.json",
            "pictures": pictures,
        },
    )


def _tell_failed_slides(report: PrepareReport) -> None:
    """Failures by class, and the first few in full."""
    table = Table(title="Failed slides", title_justify="left")
    table.add_column("error")
    table.add_column("slides", justify="right")
    for kind, count in report.errors.items():
        table.add_row(kind, str(count))
    errors.print(table)
    for outcome in report.failed[:FAILURES_SHOWN]:
        place = f"line {outcome.line}: " if outcome.line else ""
        errors.print(
            f"{place}{outcome.error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    for code in dict.fromkeys(outcome.code for outcome in report.failed):
        if code in REMEDIES:
            errors.print(REMEDIES[code], highlight=False, soft_wrap=True)
    if (more := len(report.failed) - FAILURES_SHOWN) > 0:
        errors.print(
            f"and {more} more, all with their causes in the report; mend them and run again with --resume",
            highlight=False,
        )


@app.command()
def pretrain(
    data: Data,
    out: Out,
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe in training/pretrain/recipes.py.")
    ] = "demo",
    steps: Annotated[
        int | None, typer.Option(help="Training steps; the recipe's own where not given.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Ray Train workers.")] = 2,
    split: Split = "train",
    seed: Seed = 0,
) -> None:
    """Train an encoder without labels (DINO: student and EMA teacher). The same --out goes on where a killed run stopped."""
    from training.pretrain.pretrain import PretrainConfig
    from training.pretrain.pretrain import pretrain as run
    from training.pretrain.progress import ProgressReport

    config = PretrainConfig(
        data=data, out=out, recipe=recipe, steps=steps, workers=workers, split=split, seed=seed
    )
    with progress() as bar:
        task = bar.add_task("steps", total=steps)

        def on_progress(at: ProgressReport) -> None:
            bar.update(
                task, completed=at.step, total=at.steps, description=f"steps, loss {at.loss:.3f}"
            )

        report = run(config, on_progress=on_progress)
    rows = {
        "encoder": report.encoder,
        "hash": report.hash,
        "steps": report.steps,
        "resumed from": report.resumed_from,
    }
    facts(
        "Encoder",
        {
            **rows,
            "patches/s": f"{report.patches_per_second:.0f}",
            "read": str(report.read),
            "loss curve": report.loss_curve,
        },
    )


@app.command()
def probe(
    tiles: Annotated[str, typer.Option(help="Folder with one folder of labelled tiles a class.")],
    encoder: Encoder,
    out: Out,
    tile_mpp: Annotated[float, typer.Option(help="Micrometres per pixel of the tiles.")] = 0.23,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    seed: Seed = 0,
) -> None:
    """Score an encoder on labelled tiles by kNN and a linear probe, beside the same network with random weights."""
    from training.encoder.probe import ProbeConfig
    from training.encoder.probe import probe as run

    config = ProbeConfig(
        tiles=tiles, encoder=encoder, out=out, tile_mpp=tile_mpp, folds=folds, seed=seed
    )
    with progress() as bar:
        task = bar.add_task("tiles", total=None)
        report = run(
            config, on_tile=lambda done, total: bar.update(task, completed=done, total=total)
        )
    table = Table(title="Balanced accuracy, mean ± spread over folds", title_justify="left")
    for column in ("", "this encoder", "random weights", "chance"):
        table.add_column(column)
    table.add_row(
        "linear probe", str(report.linear), str(report.random_linear), f"{report.chance:.3f}"
    )
    table.add_row("kNN", str(report.knn), str(report.random_knn), f"{report.chance:.3f}")
    console.print(table)
    console.print(report.caveat)
    console.print(f"picture: {report.picture}", highlight=False)


@app.command(name="fit-slide")
def fit_slide(
    data: Data,
    encoder: Encoder,
    out: Out,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation, by case.")] = 5,
    split: Split = "train",
    seed: Seed = 0,
) -> None:
    """Fit the pattern head and the slide model on annotated, labelled slides."""
    from training.slide.fit_slide import FitSlideConfig
    from training.slide.fit_slide import fit_slide as run

    config = FitSlideConfig(
        data=data, encoder=encoder, out=out, folds=folds, split=split, seed=seed
    )
    with progress() as bar:
        task = bar.add_task("shards embedded", total=None)
        report = run(
            config, on_shard=lambda done, total: bar.update(task, completed=done, total=total)
        )
    rows: dict[str, Any] = {
        "slide model": report.model,
        "hash": report.model_hash,
        "slides": report.slides,
        "patches": report.patches,
    }
    if report.patch_score:
        score = report.patch_score
        rows["patches, balanced accuracy"] = (
            f"{score.balanced_accuracy:.3f} (chance {score.chance:.3f}), held out by case"
        )
    if report.slide_score and report.slide_score.attention_kappa is not None:
        rows["slides, quadratic kappa"] = (
            f"{report.slide_score.attention_kappa:.3f} on {report.slide_score.slides} slides"
        )
    facts("Slide model", {**rows, "pictures": "\n".join(report.figures)})
    _tell_failures(report.failed, report.remarks)


@app.command(name="fit-risk")
def fit_risk(
    data: Data,
    encoder: Encoder,
    slide_model: Annotated[str, typer.Option(help="Slide model: the --out of `acinus fit-slide`.")],
    out: Out,
    patients: Annotated[int, typer.Option(help="Simulated patients.")] = 600,
    split: Split = "train",
    seed: Seed = 0,
) -> None:
    """Fit the risk model on simulated outcomes with known hazards: no open data joins prostate slides with outcomes."""
    from training.risk.fit_risk import FitRiskConfig
    from training.risk.fit_risk import fit_risk as run

    config = FitRiskConfig(
        data=data,
        encoder=encoder,
        slide_model=slide_model,
        out=out,
        patients=patients,
        split=split,
        seed=seed,
    )
    with progress() as bar:
        task = bar.add_task("shards embedded", total=None)
        report = run(
            config, on_shard=lambda done, total: bar.update(task, completed=done, total=total)
        )
    score = report.score
    rows: dict[str, Any] = {
        "risk model": report.model,
        "hash": report.model_hash,
        "outcomes": "SIMULATED",
    }
    rows["patients"] = f"{report.patients}, {report.events} events, on {report.slides} slides"
    if score.concordance is not None and score.concordance_of_truth is not None:
        rows["concordance, held out"] = (
            f"{score.concordance:.3f} (true hazards: {score.concordance_of_truth:.3f})"
        )
    facts("Risk model", {**rows, "pictures": "\n".join(report.figures)})
    _tell_failures(report.failed, report.remarks)


def _tell_failures(failed: list[str], remarks: list[str]) -> None:
    for remark in remarks:
        console.print(remark, highlight=False)
    for sentence in failed:
        errors.print(f"[red]{sentence}[/red]", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def analyse(
    slide: Annotated[str, typer.Argument(help="Slide: path or URI; a folder for a DICOM series.")],
    models: Annotated[
        str, typer.Option(help="Model set: folder with encoder, slide_model and risk_model.")
    ],
    out: Out,
    age: Annotated[float | None, typer.Option(help="Years at biopsy.")] = None,
    psa: Annotated[float | None, typer.Option(help="PSA before biopsy, ng/mL.")] = None,
    t_stage: Annotated[str | None, typer.Option(help="Clinical T stage, such as T2b.")] = None,
    gleason_primary: Annotated[
        int | None, typer.Option(help="Primary pattern of the pathologist; else the image's.")
    ] = None,
    gleason_secondary: Annotated[
        int | None, typer.Option(help="Secondary pattern, likewise.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel of a slide that does not tell its own."),
    ] = None,
) -> None:
    """Analyse one slide on this machine and write report.json, heatmap.png and report.pdf: what the service does, without it."""
    from app.analyses.status import Step
    from app.cases.schemas import ClinicalVariables
    from app.inference.analyse import analyse as run
    from app.reports.terminal import risk_table

    clinical = ClinicalVariables(
        age=age,
        psa=psa,
        t_stage=t_stage,
        gleason_primary=gleason_primary,
        gleason_secondary=gleason_secondary,
    )
    with progress() as bar:
        task = bar.add_task("starting", total=None)

        def on_progress(step: Step, done: int, total: int | None) -> None:
            bar.update(task, description=step.value, completed=done, total=total)

        result = run(slide, clinical, models, out, mpp=mpp, on_progress=on_progress)
    console.print(risk_table(result.report))
    facts(
        "Written",
        {"report": result.report_json, "heatmap": result.heatmap, "PDF": result.report_pdf},
    )


@app.command()
def serve(
    models: Annotated[str | None, typer.Option(help="Model set; else ACINUS_MODELS.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; else ACINUS_PORT.")] = None,
) -> None:
    """Serve the HTTP API until Ctrl-C. Every other setting is an ACINUS_* variable (app/settings.py)."""
    from app.serve.application import run
    from app.settings import Settings

    given: dict[str, Any] = {
        name: value for name, value in (("models", models), ("port", port)) if value is not None
    }
    run(
        Settings(**given),
        on_ready=lambda address: console.print(
            f"Acinus answers at {address} (API: {address}/docs)"
        ),
    )


if __name__ == "__main__":
    main()
