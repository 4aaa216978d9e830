"""`acinus pretrain`, `probe`, `fit-slide` and `fit-risk`: models from a prepared cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.boundary import usage
from app.cli.options import (
    DEFAULT_ENCODER,
    Data,
    Encoder,
    Encoders,
    Folds,
    Out,
    Ray,
    Seed,
    Split,
    on_ray,
    path_or_uri,
    path_or_uri_if_given,
    positive,
)

if TYPE_CHECKING:
    from training.pretrain.progress import ProgressReport


def pretrain(
    data: Data,
    out: Out,
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe in training/pretrain/recipes.py.")
    ] = "demo",
    steps: Annotated[
        int | None, typer.Option(help="Number of training steps; the recipe's own if missing.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of Ray Train workers.")] = 2,
    split: Split = "train",
    seed: Seed = 0,
) -> None:
    """Train an encoder without labels.

    The method is DINO: a student and its EMA teacher. Run it again with the same --out to continue
    a run that was stopped.
    """
    from app.cli import screen
    from training.pretrain.pretrain import PretrainConfig
    from training.pretrain.pretrain import pretrain as run

    with usage():
        config = PretrainConfig(
            data=data, out=out, recipe=recipe, steps=steps, workers=workers, split=split, seed=seed
        )
    with screen.progress("steps", total=steps) as show:

        def on_progress(now: ProgressReport) -> None:
            show(now.step, now.steps, f"steps, loss {now.loss:.3f}")

        report = run(config, on_progress=on_progress)
    screen.print_facts(
        "Encoder",
        {
            "encoder": report.encoder,
            "hash": report.hash,
            "steps": report.steps,
            "resumed from": report.resumed_from,
            "patches/s": f"{report.patches_per_second:.0f}",
            "read": report.read,
            "loss curve": report.loss_curve,
        },
    )
    screen.print_notes(report.damaged_checkpoints, [])


def probe(
    tiles: Annotated[
        str,
        typer.Option(
            help="Folder with one folder of labelled tiles per class, or with the unpacked "
            "archive of --dataset.",
            callback=path_or_uri,
        ),
    ],
    out: Out,
    encoder: Encoders = [DEFAULT_ENCODER],  # noqa: B006 - typer copies it
    dataset: Annotated[
        str | None,
        typer.Option(
            help="The tiles are this published set: bach, breakhis, crc, gleason_arvaniti, mhist "
            "or pcam. Its official split takes the place of folds.",
        ),
    ] = None,
    tile_mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per pixel of the tiles. Default: the published set's, or 0.23.",
            callback=positive,
        ),
    ] = None,
    folds: Folds = 5,
    shifts: Annotated[
        bool, typer.Option("--shifts", help="Embed tiles under other stains and scales too.")
    ] = False,
    stain: Annotated[
        list[str],
        typer.Option(
            help="Score each encoder with stain normalised too, and name the best: macenko, "
            "reinhard. Give it once for each."
        ),
    ] = [],  # noqa: B006 - typer copies it
    slide_model: Annotated[
        str | None,
        typer.Option(
            help="Slide model of one of the encoders: show what it looks at among the tiles.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Score encoders on labelled tiles, side by side, by a linear probe and kNN.

    Give --encoder once for each. Their architectures with random weights, and colours with local
    binary patterns, are scored next to them. A `groups.csv` (tile, group) in the folder keeps the
    tiles of a patient together.
    """
    from app.cli import screen
    from training.encoder.encoder import encoder_terms
    from training.evaluation.probe import ProbeConfig
    from training.evaluation.probe import probe as run

    with usage():
        config = ProbeConfig(
            tiles=tiles,
            encoders=tuple(encoder),
            out=out,
            dataset=dataset,
            tile_mpp=tile_mpp,
            folds=folds,
            shifts=shifts,
            stains=tuple(stain),
            slide_model=slide_model,
            seed=seed,
        )
    for each in config.encoders:
        screen.print_terms(encoder_terms(each))
    with screen.progress("tiles") as show:
        report = run(config, on_tile=show)
    screen.print_probe(report)
    if report.failed:
        raise typer.Exit(1)


def fit_slide(
    data: Data,
    out: Out,
    encoder: Encoder = DEFAULT_ENCODER,
    folds: Folds = 5,
    split: Split = "train",
    choose_aggregator: Annotated[
        bool,
        typer.Option(
            "--choose-aggregator",
            help="Also fit a mean over patches instead of attention, and take the better of both "
            "on held-out slides.",
        ),
    ] = False,
    seed: Seed = 0,
    ray: Ray = None,
) -> None:
    """Fit the pattern head and the slide model.

    Slides need annotations and labels.
    """
    from app.cli import screen
    from training.encoder.encoder import encoder_terms
    from training.slide.fit_slide import FitSlideConfig
    from training.slide.fit_slide import fit_slide as run

    with usage():
        config = FitSlideConfig(
            data=data,
            encoder=encoder,
            out=out,
            folds=folds,
            split=split,
            choose_aggregator=choose_aggregator,
            seed=seed,
            on_ray=on_ray(ray),
        )
    screen.print_terms(encoder_terms(encoder))
    with screen.progress("shards embedded") as show:
        report = run(config, on_shard=show)
    screen.print_slide_model(report)
    if report.failed:
        raise typer.Exit(1)


def fit_risk(
    out: Out,
    outcomes: Annotated[
        str | None,
        typer.Option(
            help="Table of outcomes, CSV or Parquet: case, time, event, and treatment, age, psa, "
            "t_stage, gleason_primary, gleason_secondary, positive_cores, total_cores where known.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Draw outcomes with known hazards instead.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Prepared cohort: the --out of `acinus prepare`; its cases are joined to those of "
            "the table.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
    slide_model: Annotated[
        str | None,
        typer.Option(
            help="Slide model: the --out of `acinus fit-slide`.", callback=path_or_uri_if_given
        ),
    ] = None,
    clinical_only: Annotated[
        bool, typer.Option("--clinical-only", help="Fit without slides.")
    ] = False,
    encoder: Encoder = DEFAULT_ENCODER,
    time_unit: Annotated[
        Literal["years", "months", "days"], typer.Option(help="Unit of the table's time.")
    ] = "years",
    treatment: Annotated[
        str, typer.Option(help="What the table's column treatment stands for.")
    ] = "short-term ADT",
    randomised: Annotated[
        bool, typer.Option("--randomised", help="That treatment was assigned at random.")
    ] = False,
    folds: Folds = 5,
    patients: Annotated[int, typer.Option(help="Number of simulated patients.")] = 600,
    split: Annotated[
        str | None,
        typer.Option(help="Use only the slides of this split; with --simulate, train if missing."),
    ] = None,
    seed: Seed = 0,
    ray: Ray = None,
) -> None:
    """Fit the risk model on outcomes of patients, or on simulated ones.

    With a table of outcomes: competing risks of distant metastasis and death, from slides and
    clinical variables, or from clinical variables alone. A blank clinical variable is missing, and
    handled as such.
    """
    from app.cli import screen
    from training.encoder.encoder import encoder_terms
    from training.risk.fit_risk import FitRiskConfig, ImageSource, RealOutcomes, SimulatedOutcomes
    from training.risk.fit_risk import fit_risk as run

    if (outcomes is None) != simulate:
        raise typer.BadParameter("give --outcomes TABLE, or --simulate; one of the two")
    if clinical_only != (data is None) or clinical_only != (slide_model is None):
        raise typer.BadParameter(
            "give --data and --slide-model, or --clinical-only for a model without slides"
        )
    with usage():
        image = None
        if data is not None and slide_model is not None:
            image = ImageSource(
                data=data,
                encoder=encoder,
                slide_model=slide_model,
                split=split or ("train" if simulate else None),
                on_ray=on_ray(ray),
            )
        source: RealOutcomes | SimulatedOutcomes = SimulatedOutcomes(patients=patients)
        if outcomes is not None:
            source = RealOutcomes(
                table=outcomes,
                unit=time_unit,
                treatment=treatment,
                randomised=randomised,
                folds=folds,
            )
        config = FitRiskConfig(out=out, outcomes=source, image=image, seed=seed)
    if image is None:
        report = run(config)
    else:
        screen.print_terms(encoder_terms(encoder))
        with screen.progress("shards embedded") as show:
            report = run(config, on_shard=show)
    screen.print_risk_model(report)
    if report.failed:
        raise typer.Exit(1)
