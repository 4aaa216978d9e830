"""Options that several commands share, each explained once."""

from __future__ import annotations

from typing import Annotated

import typer

Out = Annotated[str, typer.Option(help="Folder or URI (file://, s3://) to write to.")]
Data = Annotated[str, typer.Option(help="Prepared cohort: the --out of `acinus prepare`.")]
Encoder = Annotated[
    str, typer.Option(help="Encoder: the `encoder` folder that `acinus pretrain` wrote.")
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
Split = Annotated[str, typer.Option(help="Use only the slides of this split.")]
Folds = Annotated[int, typer.Option(help="Number of folds of the cross-validation, 2 or more.")]
