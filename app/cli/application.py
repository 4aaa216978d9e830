"""OPEN FIRST. The `acinus` command line: its commands, each inside the boundary of errors."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from app.cli import boundary, cohorts, encoders, models, registry, service


def build() -> typer.Typer:
    """The command line with its commands.

    Help is plain text. Drawing it with rich took 0.15 s of processor time, more than everything
    else of `--help` together, and rich breaks long values at the width of the screen.
    """
    app = typer.Typer(
        name="acinus",
        help="AI cancer diagnostics on prostate biopsies. Research use only; not a diagnosis.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for command in (
        cohorts.synth,
        cohorts.manifest,
        cohorts.prepare,
        encoders.encoders,
        encoders.embed,
        encoders.save_encoder,
        models.pretrain,
        models.probe,
        models.fit_slide,
        models.fit_risk,
        service.analyse,
        service.risk,
        service.serve,
    ):
        app.command()(boundary.guarded(command))
    versions = typer.Typer(
        name="models",
        help="Versions of model sets in a registry.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for name, change in registry.COMMANDS.items():
        versions.command(name)(boundary.guarded(change))
    app.add_typer(versions)
    return app


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(boundary.run(build(), sys.argv[1:]))
