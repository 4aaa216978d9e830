"""`acinus encoders`, `save-encoder` and `embed`: which encoders there are, a folder with one, and
embeddings to take elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from app.cli.boundary import usage
from app.cli.options import (
    DEFAULT_ENCODER,
    Encoder,
    Out,
    Ray,
    on_ray,
    path_or_uri,
    path_or_uri_if_given,
)


def encoders() -> None:
    """List the encoders that `--encoder` takes by name.

    Weights come from the Hugging Face hub (with HF_TOKEN where it asks for one), or from a folder
    or S3 prefix with a copy of the hub's files: --encoder NAME=FOLDER.
    """
    from app.cli import screen
    from training.encoder.catalogue import catalogue

    screen.print_encoders(catalogue())


def embed(
    data: Annotated[
        str,
        typer.Argument(
            help="Prepared cohort: the --out of `acinus prepare`.", callback=path_or_uri
        ),
    ],
    encoder: Encoder = DEFAULT_ENCODER,
    split: Annotated[
        str | None, typer.Option(help="Use only the slides of this split. Default: all slides.")
    ] = None,
    form: Annotated[
        Literal["acinus", "trident", "stamp"],
        typer.Option(
            "--format",
            help="acinus: embeddings stay next to the shards. trident, stamp: in addition, one "
            "HDF5 file a slide in --out, as that tool writes it.",
        ),
    ] = "acinus",
    out: Annotated[
        str | None,
        typer.Option(help="Folder or URI of the HDF5 files.", callback=path_or_uri_if_given),
    ] = None,
    names: Annotated[
        bool,
        typer.Option(
            "--names",
            help="Name the HDF5 files as the slides' files, which can hold patient data, "
            "instead of by slide id.",
        ),
    ] = False,
    ray: Ray = None,
) -> None:
    """Embed all slides of a cohort.

    Run it again to continue: what is embedded is kept. The exit code is 1 if a slide failed.
    """
    from app.cli import screen
    from training.encoder.cohort_embeddings import EmbedConfig, embed_cohort
    from training.encoder.encoder import encoder_terms

    with usage():
        config = EmbedConfig(
            data=data,
            encoder=encoder,
            split=split,
            on_ray=on_ray(ray),
            format=None if form == "acinus" else form,
            out=out,
            names=names,
        )
    screen.print_terms(encoder_terms(encoder))
    with screen.progress("shards embedded") as show:
        report = embed_cohort(config, on_shard=show)
    screen.print_facts(
        "Embeddings",
        {
            "encoder": report.encoder,
            "precision": report.precision,
            "slides": report.slides,
            "patches": report.patches,
            "shards embedded now": report.shards,
            "read": report.read,
            "files": f"{len(report.files)} in {out}" if out else "none",
        },
    )
    screen.print_notes([], report.failed)
    if report.failed:
        raise typer.Exit(1)


def save_encoder(out: Out, encoder: Encoder = DEFAULT_ENCODER) -> None:
    """Write an encoder as a folder of its own, as a model set needs it.

    What was fitted with it by name belongs to the folder too: both have the same hash.
    """
    from app.cli import screen
    from training.encoder.encoder import encoder_terms, load_encoder
    from training.encoder.encoder import save_encoder as save

    screen.print_terms(encoder_terms(encoder))
    loaded = load_encoder(encoder, precision="f32")
    screen.print_facts("Encoder", {"name": loaded.name, "folder": out, "hash": save(out, loaded)})
