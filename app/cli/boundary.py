"""The one place where an error becomes a sentence and an exit code.

    0      done
    1      one sentence: what is wrong, with which slide, file or model, and what to do
    2      a mistake in the command line: no such option, or a value that it cannot have
    70     a fault of Acinus itself: one sentence with the path of the traceback
    130    interrupted by Ctrl-C

`ACINUS_TRACEBACK=1` prints the traceback of every error as well.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

FAILED, FAULT, INTERRUPTED = 1, 70, 130
MAX_FAULT_TEXT = 200
"""Characters of an unexpected error's own text that its sentence shows; the traceback has all."""


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; no exception leaves this function."""
    _accept_any_text()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our errors say what is damaged
    try:
        app(arguments, prog_name=app.info.name or "acinus")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # of typer's own output, such as the text of --help
        code = _report_output(error)
    else:
        code = 0
    return _flush() or code


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose errors become one sentence on standard error and an exit code."""

    @functools.wraps(command)
    def run_guarded(*arguments: object, **options: object) -> None:
        try:
            command(*arguments, **options)
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise  # typer's own: a usage mistake, or the command's exit code
        except KeyboardInterrupt:
            _print_error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - this is the boundary
            raise typer.Exit(_report(error, command.__name__.replace("_", "-"))) from None

    return run_guarded


@contextmanager
def usage(name: Callable[[str], str] | str | None = None) -> Iterator[None]:
    """Turn a config's ValueError into a usage mistake (exit code 2).

    Args:
        name: the option that is parsed; or the function that gives the command line's name of a
            pydantic field, by default `--field`.

    Raises:
        typer.BadParameter: the block raised a ValueError.
    """
    from pydantic import ValidationError

    named = name if callable(name) else _option_of
    try:
        yield
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors():
            reason = mistake["msg"].removeprefix("Value error, ")
            where = (
                f"{named(str(mistake['loc'][0]))} {mistake['input']!r}: " if mistake["loc"] else ""
            )
            mistakes.append(where + reason)
        raise typer.BadParameter("; ".join(mistakes)) from error
    except ValueError as error:
        hint = None if callable(name) else name
        raise typer.BadParameter(str(error), param_hint=hint) from error


def _option_of(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _report(error: Exception, command: str) -> int:
    """Print what is wrong; returns the exit code."""
    if os.environ.get("ACINUS_TRACEBACK"):
        traceback.print_exception(error)
    if (sentence := explain(error, command)) is not None:
        _print_error(sentence)
        return FAILED
    _print_error(_describe_fault(error))
    return FAULT


def explain(error: Exception, command: str) -> str | None:
    """One sentence about a mistake or a broken input; None for an error that nobody foresaw.

    Args:
        error: what the command raised.
        command: its name, such as `fit-slide`; remedies name only options that it has.
    """
    from app.cli.remedies import remedy
    from app.errors import ServiceError
    from pipelines.cohort import CohortError
    from pipelines.preparation import PreparationError
    from pipelines.slides.errors import SlideError
    from pipelines.storage import StorageError
    from training.errors import TrainingError

    if isinstance(error, SlideError):
        what_to_do = remedy(error.code, command) or error.remedy
        return f"{type(error).__name__}: slide {error.slide} {error.cause}; {what_to_do}"
    known = (CohortError, PreparationError, StorageError, TrainingError, ServiceError)
    if isinstance(error, known):
        return str(error)
    if isinstance(error, OSError):
        if error.errno is None:  # raised by us, with a sentence of its own
            return str(error)
        return f"{error.filename or 'A file or standard output'}: {error.strerror}"
    return None


def _describe_fault(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_FAULT_TEXT]
    try:
        descriptor, path = tempfile.mkstemp(prefix="acinus-traceback-", suffix=".txt")
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace") as file:
            os.close(descriptor)
            traceback.print_exception(error, file=file)
        where = f"The traceback is in {path}"
    except OSError:
        where = "ACINUS_TRACEBACK=1 prints the traceback"
    return f"This is a fault of Acinus, not of your input ({text}). {where}; please report it."


def _print_error(sentence: str) -> None:
    with suppress(OSError):  # nobody reads standard error
        typer.secho(sentence, fg=typer.colors.RED, err=True)


def _accept_any_text() -> None:
    """Print names that are not UTF-8 with escapes, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> int:
    """Write out what was printed; the exit code of a standard output that takes no more.

    Python would flush it at exit, and print a traceback of its own.
    """
    try:
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except OSError as error:
        return _report_output(error)
    return 0


def _report_output(error: OSError) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # a reader may stop early, as `head` does
        _print_error(f"Standard output can't be written: {error.strerror}")
    return FAILED
