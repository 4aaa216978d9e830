"""`acinus encoders` and `embed`: which encoders there are, and embeddings to take elsewhere."""

from __future__ import annotations


def encoders() -> None:
    """List the encoders that `--encoder` takes by name.

    Weights come from the Hugging Face hub (with HF_TOKEN where it asks for one), or from a folder
    or S3 prefix with a copy of the hub's files: --encoder NAME=FOLDER.
    """
    from app.cli import screen
    from training.encoder.catalogue import catalogue

    screen.print_encoders(catalogue())
