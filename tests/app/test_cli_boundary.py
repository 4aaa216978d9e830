"""The boundary of the command line, in real processes and with errors that nobody foresaw."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from app.cli import boundary, remedies
from app.cli.application import build
from app.cli.boundary import explain, guarded, run
from pipelines.local_workers import WorkerFailure
from pipelines.slides.errors import ImplausibleResolution, MissingResolution
from tests.app.test_cli_help import loaded_by

ACINUS = [sys.executable, "-m", "app.cli"]


def command_line(command: object) -> typer.Typer:
    """A command line with this one command, inside the boundary."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.command()(guarded(command))  # type: ignore[arg-type]
    return app


def run_process(
    command: list[str], *, stdout: Any = subprocess.PIPE, env: Any = None
) -> subprocess.CompletedProcess[str]:
    """A real process, whose standard error is text."""
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )


def fail_unforeseen() -> None:
    """A command with a fault."""
    raise KeyError("no such\nkey")


def test_an_unforeseen_error_is_one_sentence_with_the_path_of_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(command_line(fail_unforeseen), []) == boundary.FAULT
    [line] = capsys.readouterr().err.splitlines()
    assert "fault of Acinus" in line
    assert "KeyError: 'no such\\nkey'" in line
    [written] = tmp_path.iterdir()
    assert str(written) in line
    assert "in fail_unforeseen" in written.read_text()


def test_an_unforeseen_error_says_how_to_see_its_traceback_if_none_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run(command_line(fail_unforeseen), []) == boundary.FAULT
    assert "ACINUS_TRACEBACK=1" in capsys.readouterr().err


def test_a_worker_that_cannot_start_is_a_sentence_with_its_remedy() -> None:
    text = "a process that prepares slides can't be started: no module; install acinus again"
    assert explain(WorkerFailure(text), "prepare") == text


def test_a_traceback_is_printed_on_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACINUS_TRACEBACK", "1")
    assert run(build(), ["analyse", "x.svs", "--models", str(tmp_path), "--out", "y"]) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert str(tmp_path) in text.splitlines()[-1]


def test_an_interrupted_command_says_so_and_exits_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(command_line(interrupt), []) == boundary.INTERRUPTED
    assert capsys.readouterr().err == "Interrupted.\n"


def test_ctrl_c_ends_a_real_command_without_a_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*ACINUS, "synth", "--slides", "500", "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == boundary.INTERRUPTED
    assert text.strip() == "Interrupted."


def test_a_reader_that_closes_the_pipe_ends_the_command_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_process([*ACINUS, "--help"], stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_full_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = run_process([*ACINUS, "--help"], stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Standard output can't be written: No space left on device"]


def test_a_closed_standard_output_does_not_stop_the_work(
    generated_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = shlex.join([*ACINUS, "prepare", str(generated_slide), "--out", str(out)])
    done = run_process(["sh", "-c", f"{line} >&-"])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (out / "cohort.parquet").exists()


@pytest.mark.parametrize("home", ["/", "/proc"])
def test_a_home_that_cannot_be_written_does_not_stop_the_work(
    home: str, generated_slide: Path, tmp_path: Path
) -> None:
    line = [*ACINUS, "prepare", str(generated_slide), "--out", str(tmp_path / "out")]
    done = run_process(line, env=os.environ | {"HOME": home})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("line", [["prepare", "--out", "x"], [], ["analyse", "--out", "x"]])
def test_an_argument_that_is_not_utf8_is_printed_with_escapes(line: list[str]) -> None:
    done = run_process([*ACINUS, *line, os.fsdecode(b"J\xf6rg"), "--no-such-option"])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_prepare_of_one_slide_loads_neither_torch_nor_ray(
    generated_slide: Path, tmp_path: Path
) -> None:
    code, modules, _ = loaded_by("prepare", str(generated_slide), "--out", str(tmp_path / "out"))
    assert code == 0
    assert not modules.intersection({"ray", "torch", "fastapi", "sqlalchemy", "matplotlib"})


OPTION = re.compile(r"--[a-z][a-z-]*")


def options_of(*names: str) -> set[str]:
    """The options that a command has, from typer; its group's name comes first if it has one."""
    command: object = get_command(build())
    for name in names:
        commands: dict[str, object] = getattr(command, "commands")  # noqa: B009
        command = commands[name]
    parameters: Sequence[object] = getattr(command, "params")  # noqa: B009
    return {option for parameter in parameters for option in getattr(parameter, "opts", ())}


@pytest.mark.parametrize("code", remedies.REMEDIES)
def test_a_remedy_names_only_options_that_its_command_has(code: str) -> None:
    for command, text in remedies.REMEDIES[code].items():
        named = set(OPTION.findall(text))
        assert named, f"{code} of {command} says no more than the error itself"
        assert named <= options_of(command)


def test_a_missing_mpp_is_explained_in_the_options_of_the_command() -> None:
    error = MissingResolution.of("a.svs")
    prepared = explain(error, "prepare")
    analysed = explain(error, "analyse")
    assert prepared is not None
    assert analysed is not None
    assert "--mpp-from-objective" in prepared
    assert "--mpp-from-objective" not in analysed
    assert "--mpp" in analysed
    assert explain(error, "fit-slide") == str(error)


def test_every_code_with_a_remedy_exists() -> None:
    codes = {MissingResolution.default_code, ImplausibleResolution.default_code}
    assert set(remedies.REMEDIES) <= codes
