"""The `acinus` command: every stage of the product from a shell.

    synth  prepare  pretrain  probe  fit-slide  fit-risk  analyse  serve

    application.py   OPEN FIRST: the eight commands, and `main`
    boundary.py      the one place where an error becomes a sentence and an exit code
    remedies.py      what to do about an error, in the options of the command that was run
    cohorts.py       synth, prepare
    models.py        pretrain, probe, fit-slide, fit-risk
    service.py       analyse, serve
    options.py       options that several commands share
    screen.py        what commands print

Each command builds one config and calls one function. Commands import what they need when they run,
so that `acinus --help` loads no library of the product. This is the only room that defers imports.
"""

from app.cli.application import main

__all__ = ["main"]
