"""`app.serve:build` is the import path of the application in a Serve config file."""

from app.serve.application import build, run

__all__ = ["build", "run"]
