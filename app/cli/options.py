"""Options that several commands share, each explained once."""

from __future__ import annotations

import math
import os
from typing import Annotated

import typer


def path_or_uri(value: str) -> str:
    """The value, which names a path or a URI.

    Raises:
        typer.BadParameter: it is empty, as an unset shell variable is; or a URI that lacks a slash
            or its bucket.
    """
    from pipelines import storage

    if not value.strip():
        raise typer.BadParameter("it is empty; give a path or a URI")
    try:
        storage.as_uri(value)
    except storage.InvalidUri as error:
        raise typer.BadParameter(str(error)) from error
    return value


def path_or_uri_if_given(value: str | None) -> str | None:
    """The value, which is None or names a path or a URI; raises as `path_or_uri` does."""
    return None if value is None else path_or_uri(value)


def encoder_name(value: str) -> str:
    """The value: a name, NAME=FOLDER, a path or a URI; raises as `path_or_uri` does."""
    name, given, folder = value.partition("=")
    path_or_uri(folder if given and name.isidentifier() else value)
    return value


def encoder_name_if_given(value: str | None) -> str | None:
    """The value, which is None or names an encoder; raises as `path_or_uri` does."""
    return None if value is None else encoder_name(value)


def on_ray(asked: bool | None) -> bool:
    """Whether to run on Ray: as `--ray/--no-ray` asks, else if RAY_ADDRESS names a cluster."""
    return bool(os.environ.get("RAY_ADDRESS")) if asked is None else asked


def positive(value: float | None) -> float | None:
    """The value, which is None or a positive number.

    Raises:
        typer.BadParameter: it is zero, negative, infinite or not a number.
    """
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not a positive number")
    return value


Out = Annotated[
    str, typer.Option(help="Folder or URI (file://, s3://) to write to.", callback=path_or_uri)
]
Data = Annotated[
    str,
    typer.Option(help="Prepared cohort: the --out of `acinus prepare`.", callback=path_or_uri),
]
Encoder = Annotated[
    str,
    typer.Option(
        help="Encoder: a name that `acinus encoders` lists, NAME=FOLDER with its weights, "
        "or the `encoder` folder that `acinus pretrain` wrote.",
        callback=encoder_name,
    ),
]
Encoders = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        help="Encoder, once for each: a name that `acinus encoders` lists, NAME=FOLDER with its "
        "weights, or the `encoder` folder that `acinus pretrain` wrote.",
        callback=lambda values: [encoder_name(value) for value in values],
    ),
]
DEFAULT_ENCODER = "efficientnet_lite0"
"""Needs no download and no GPU."""
Ray = Annotated[
    bool | None,
    typer.Option(
        "--ray/--no-ray",
        help="Run on Ray, or on this machine without it. "
        "Default: on Ray if RAY_ADDRESS names a cluster.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
Split = Annotated[str, typer.Option(help="Use only the slides of this split.")]
Folds = Annotated[int, typer.Option(help="Number of folds of the cross-validation, 2 or more.")]
Age = Annotated[str | None, typer.Option(metavar="NUMBER|unknown", help="Age at biopsy in years.")]
Psa = Annotated[
    str | None, typer.Option(metavar="NUMBER|unknown", help="PSA before biopsy in ng/mL.")
]
TStage = Annotated[
    str | None, typer.Option(metavar="STAGE|unknown", help="Clinical T stage, such as T2b.")
]
PositiveCores = Annotated[
    str | None,
    typer.Option(metavar="NUMBER|unknown", help="Biopsy cores with cancer, for the NCCN group."),
]
TotalCores = Annotated[
    str | None, typer.Option(metavar="NUMBER|unknown", help="Biopsy cores taken.")
]
