"""`acinus models ...`: the registry of model versions."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Annotated, Final

import typer

from app.cli.options import encoder_name_if_given, path_or_uri, path_or_uri_if_given, positive

RegistryUri = Annotated[
    str,
    typer.Option(
        "--registry", help="Folder or URI of the registry.", callback=path_or_uri, show_default=True
    ),
]
By = Annotated[
    str | None, typer.Option(help="Who does it; the name of this machine's user if missing.")
]
Name = Annotated[
    str, typer.Argument(help="Version: the first digits of its hash, or `production`.")
]


def add(
    models: Annotated[
        str,
        typer.Argument(
            help="Model set: folder with encoder, slide_model and risk_model.", callback=path_or_uri
        ),
    ],
    registry: RegistryUri,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder of a set without one: a name, NAME=FOLDER, or a folder.",
            callback=encoder_name_if_given,
        ),
    ] = None,
    by: By = None,
) -> None:
    """Copy a model set into the registry, under the hash of its content: a candidate."""
    from app.cli import screen
    from training.registry.registry import Registry

    version = Registry(registry).add(models, by=_who(by), encoder=encoder)
    screen.print_facts(
        "Version", {"version": version, "stage": Registry(registry).entry(version).stage}
    )


def list_versions(registry: RegistryUri) -> None:
    """List all versions with their stages."""
    from app.cli import screen
    from training.registry.registry import Registry

    screen.print_versions(Registry(registry).entries())


def show(
    name: Name,
    registry: RegistryUri,
    page: Annotated[
        str | None,
        typer.Option(
            "--html",
            help="HTML file to write, with all facts, metrics and pictures.",
            callback=path_or_uri_if_given,
        ),
    ] = None,
) -> None:
    """Show a version: its models, what they were made of, and what was done with it."""
    from app.cli import screen
    from pipelines import storage
    from training.registry.page import write_page
    from training.registry.registry import Registry

    known = Registry(registry)
    version = known.find(name)
    entry, folder = known.entry(version), known.folder(version)
    if page is not None:
        storage.write_bytes(storage.as_uri(page), write_page(entry, folder).encode())
    screen.print_version(entry, folder)


def reproduce(
    name: Name,
    slides: Annotated[
        list[str],
        typer.Argument(
            help="Three or more slides that differ.",
            callback=lambda values: [path_or_uri(value) for value in values],
        ),
    ],
    registry: RegistryUri,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per pixel of slides whose files give none.", callback=positive
        ),
    ] = None,
    by: By = None,
) -> None:
    """Measure whether a version says the same of the same tissue, and keep the record.

    Each slide is analysed again in another order and precision, half a patch further, and under
    5 % more and less stain and scale. Without an intraclass correlation of 0.95 a version can't go
    into production.
    """
    from app.cli import screen
    from training.model_set import ENCODER
    from training.registry.registry import Registry
    from training.registry.reproducibility import measure, other_precision

    known = Registry(registry)
    version = known.find(name)
    models = known.load(version)
    others = other_precision(f"{known.folder(version)}/{ENCODER}", models.encoder)
    with screen.progress("slides") as shown:
        found = measure(models, slides, others=others, mpp=mpp, on_slide=shown)
    known.reproduce(version, found.to_dict(), by=_who(by))
    screen.print_reproducibility(found)


def promote(name: Name, registry: RegistryUri, by: By = None) -> None:
    """Put a version into production."""
    from training.registry.registry import Registry

    known = Registry(registry)
    _print_change("in production", known.promote(known.find(name), by=_who(by)).version)


def rollback(registry: RegistryUri, by: By = None) -> None:
    """Put the version before the current one into production again."""
    from training.registry.registry import Registry

    _print_change("in production", Registry(registry).rollback(by=_who(by)).version)


def retire(name: Name, registry: RegistryUri, by: By = None) -> None:
    """Keep a version out of production from now on."""
    from training.registry.registry import Registry

    known = Registry(registry)
    _print_change("retired", known.retire(known.find(name), by=_who(by)).version)


def _print_change(what: str, version: str) -> None:
    from app.cli import screen

    screen.print_facts("Registry", {what: version})


def _who(by: str | None) -> str:
    return by or getpass.getuser()


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "add": add,
    "list": list_versions,
    "show": show,
    "reproduce": reproduce,
    "promote": promote,
    "rollback": rollback,
    "retire": retire,
}
"""By the names that follow `acinus models`."""
