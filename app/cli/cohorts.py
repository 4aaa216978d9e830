"""`acinus synth`, `manifest` and `prepare`: slides, and the cohort that is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.boundary import usage
from app.cli.options import (
    Out,
    Ray,
    Seed,
    encoder_name_if_given,
    on_ray,
    path_or_uri,
    path_or_uri_if_given,
    positive,
)

if TYPE_CHECKING:
    from pipelines.grid import PatchSpec
    from pipelines.preparation import RunSlides, SlideOutcome


def synth(
    out: Annotated[
        str,
        typer.Option(
            help="Local folder to write slides, annotations and manifest.csv to.",
            callback=path_or_uri,
        ),
    ],
    slides: Annotated[int, typer.Option(help="Number of slides.")] = 12,
    test_slides: Annotated[
        int | None,
        typer.Option(
            help="Number of these slides that get the split `test`. Default: a quarter, at most 3."
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            help="Folder with one folder of real tiles per class; generated H&E if missing.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
    core_length: Annotated[int, typer.Option(help="Length of a core in tiles of 172 um.")] = 14,
    seed: Seed = 0,
) -> None:
    """Make artificial slides with known regions.

    Their tissue is assembled from real tiles, or generated.
    """
    from app.cli import screen
    from pipelines.synthetic.synthesise import SynthConfig, synthesise

    with usage():
        config = SynthConfig(
            out=out,
            slides=slides,
            test_slides=test_slides,
            tiles=tiles,
            core_length=core_length,
            seed=seed,
        )
    with screen.progress("slides", total=slides) as show:
        try:
            manifest = synthesise(config, on_slide=lambda done: show(done, slides))
        except OSError as error:
            if error.errno is not None and error.filename is None:  # a full disk names no file
                error.filename = out
            raise
    screen.print_facts(
        "Cohort",
        {
            "tissue": "real tiles" if tiles else "generated H&E",
            "slides": slides,
            "manifest": manifest,
        },
    )


def manifest(
    slide_set: Annotated[
        str, typer.Argument(help="Published set of whole slides: panda_small or camelyon16_small.")
    ],
    folder: Annotated[
        str, typer.Argument(help="Folder with the unpacked archive.", callback=path_or_uri)
    ],
    out: Annotated[str, typer.Option(help="CSV file to write.", callback=path_or_uri)],
) -> None:
    """List a published set's slides, labels and official splits for `acinus prepare`."""
    from app.cli import screen
    from training.evaluation.slide_sets import slide_set as row_of
    from training.evaluation.slide_sets import write_manifest

    with usage():
        row = row_of(slide_set)
    report = write_manifest(row, folder, out)
    screen.print_facts(
        row.title,
        {
            "manifest": report.manifest,
            "slides": ", ".join(f"{count} {split}" for split, count in report.slides.items()),
            "labels": ", ".join(f"{label}: {count}" for label, count in report.labels.items()),
            "left out": "; ".join(report.left_out) or "none",
            "licence": row.licence,
            "next": row.next,
        },
    )


def prepare(
    manifest: Annotated[
        str,
        typer.Argument(
            help="CSV or Parquet file with a `slide` column; or a folder, an S3 prefix, "
            "or a quoted pattern such as 's/**/*.svs'.",
            callback=path_or_uri,
        ),
    ],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder that will embed the patches: gives --size, --patch-mpp, --icc and "
            "--stain.",
            callback=encoder_name_if_given,
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of a patch in pixels. Default: 224.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per pixel of slides whose file and manifest row give none.",
            callback=positive,
        ),
    ] = None,
    patch_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel of a patch. Default: 0.5.", callback=positive),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring patches share.")] = 0,
    min_tissue: Annotated[
        float, typer.Option(help="Minimum share of tissue in a patch, 0 to 1.")
    ] = 0.25,
    icc: Annotated[
        bool, typer.Option("--icc", help="Convert colours to sRGB by each slide's ICC profile.")
    ] = False,
    stain: Annotated[
        str, typer.Option(help="Normalise the stain, fitted once per slide: macenko or reinhard.")
    ] = "",
    mpp_from_objective: Annotated[
        bool,
        typer.Option(
            "--mpp-from-objective",
            help="If mpp is missing, use 10 um divided by the objective's magnification.",
        ),
    ] = False,
    organisation: Annotated[str, typer.Option(help="Owner of the derived objects.")] = "local",
    split: Annotated[
        str | None,
        typer.Option(
            help="Assign splits by case if the manifest has none: "
            "train=0.7,validation=0.15,test=0.15."
        ),
    ] = None,
    seed: Seed = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Redo only slides that are missing, failed, or whose file, mpp or spec changed.",
        ),
    ] = False,
    ray: Ray = None,
) -> None:
    """Index slides: tissue, patches, shards and a picture of each.

    Every slide is attempted. The exit code is 1 if any of them failed.
    """
    from app.cli import screen
    from pipelines.grid import STAINS
    from pipelines.prepare import PrepareConfig
    from pipelines.prepare import prepare as run
    from pipelines.splits import SplitShares

    if stain not in STAINS:
        allowed = ", ".join(filter(None, STAINS))
        raise typer.BadParameter(f"{stain!r} is none of {allowed}", param_hint="--stain")
    with usage("--split"):
        shares = SplitShares.parse(split, seed=seed) if split else None
    with usage():
        config = PrepareConfig(
            manifest=manifest,
            out=out,
            spec=replace(
                _patches(encoder, size=size, patch_mpp=patch_mpp, icc=icc, stain=stain),
                overlap=overlap,
                min_tissue=min_tissue,
            ),
            organisation=organisation,
            mpp=mpp,
            mpp_from_objective=mpp_from_objective,
            shares=shares,
            resume=resume,
        )
    done = failed = 0
    with screen.progress("slides") as show:

        def on_slide(outcome: SlideOutcome, total: int) -> None:
            nonlocal done, failed
            done, failed = done + 1, failed + bool(outcome.error)
            show(done, total, f"slides, {failed} failed" if failed else "slides")

        report = run(config, run_slides=_workers(ray), on_slide=on_slide)
    screen.print_cohort(report)
    if report.failed:
        screen.print_failed_slides(report)
        raise typer.Exit(1)


def _patches(
    encoder: str | None, *, size: int | None, patch_mpp: float | None, icc: bool, stain: str
) -> PatchSpec:
    """The patches of the options, or the encoder's.

    Raises:
        typer.BadParameter: an option says another thing than the encoder.
    """
    from pipelines.grid import PatchSpec

    given = {"size": size, "mpp": patch_mpp, "icc": icc or None, "stain": stain or None}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if encoder is None:
        return replace(PatchSpec(), **chosen)
    from training.encoder.encoder import encoder_spec

    spec = encoder_spec(encoder)
    for name, value in chosen.items():
        if value != (theirs := getattr(spec, name)):
            option = "--patch-mpp" if name == "mpp" else f"--{name}"
            raise typer.BadParameter(
                f"{value} is given, and the encoder takes {theirs or 'none'}; leave it out",
                param_hint=option,
            )
    return spec


def _workers(ray: bool | None) -> RunSlides:
    """Who prepares slides. Ray is imported only if used: that takes a second, its start ten."""
    from pipelines import local_workers

    if on_ray(ray):
        from pipelines import ray_workers

        return ray_workers.run_slides
    return local_workers.run_slides
