"""`make demo`: the whole journey on this machine; see `app.demo.journey` for the stages.

Environment:
    DEMO_EXIT=1          end after the report, with exit code 0 only if the report is there and the
                         heatmap agrees with the known regions better than chance
    DEMO_OUT             output folder; emptied first if a demo made it, refused if not
    ACINUS_PORT          port of the service
    ACINUS_SHARED_DATA   folder of real tiles
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import ray
import typer
from rich.console import Console

from app.cli import boundary
from app.demo import journey
from app.demo.page import Picture, Stage, write_page
from app.reports.schemas import NOTICE, SIMULATED, Report
from app.reports.terminal import risk_table

SIGNIFICANT = 0.01
"""Largest share of random relabellings that may agree as well as the heatmap does."""
MAX_PORT = 65535
MARK = ".made-by-acinus-demo"
"""File in the output folder of a demo: such a folder may be emptied."""

console = Console()


def main() -> None:
    """Run the journey.

    Raises:
        DemoError: a stage failed.
        typer.BadParameter: `ACINUS_PORT` is not a port.
        typer.Exit: with DEMO_EXIT=1, whether the report is there and the heatmap agrees.
    """
    config = _read_environment()
    _empty(config.out)
    config.models.mkdir(parents=True)
    tissue = "real prostate tiles" if config.tiles else "generated H&E: real tiles are missing"
    console.print(f"Slides from {tissue}. {NOTICE}.")
    start = time.monotonic()
    stages = [
        _run_stage(make, config)
        for make in (
            journey.make_cohort,
            journey.pretrain_encoder,
            journey.choose_encoder,
            journey.fit_models,
        )
    ]
    ray.shutdown()  # the service starts its own
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # it ends with us
    with console.status("starting the service") as status, journey.service(config) as address:
        started = time.monotonic()
        status.update("analysing a held-out slide")
        finding = journey.analyse_held_out(
            config, address, lambda step: status.update(f"analysing a held-out slide: {step}")
        )
        stages.append(_describe_analysis(config, finding, seconds=time.monotonic() - started))
        notices = (f"{NOTICE}.", f"{SIMULATED}: the risks are about no real patient.")
        page = write_page(config.out, stages, notices=notices)
        status.stop()
        _print_finding(config, finding, address, page, seconds=time.monotonic() - start)
        if os.environ.get("DEMO_EXIT") == "1":
            raise typer.Exit(0 if _is_right(config, finding) else 1)
        console.print(f"The service stays up at {address} (API: {address}/docs). Ctrl-C ends it.")
        _wait_for_signal()


def _empty(out: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise typer.BadParameter(
            f"{out} holds files that no demo made; name an empty folder", param_hint="DEMO_OUT"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _read_environment() -> journey.DemoConfig:
    text = os.environ.get("ACINUS_PORT") or "0"
    if not (text.isdecimal() and int(text) <= MAX_PORT):
        raise typer.BadParameter(f"ACINUS_PORT is {text!r}; it must be 1 to {MAX_PORT}")
    out = Path(os.environ.get("DEMO_OUT") or "demo-output").resolve()
    return journey.DemoConfig(out=out, tiles=journey.find_tiles(), port=int(text) or None)


def _is_right(config: journey.DemoConfig, finding: journey.Finding) -> bool:
    agrees = finding.agreement > finding.chance and finding.p_value <= SIGNIFICANT
    return agrees and bool((config.out / "report.pdf").stat().st_size)


def _run_stage(make: journey.StageMaker, config: journey.DemoConfig) -> Stage:
    with console.status((make.__doc__ or "").strip()):
        stage = make(config)
    console.print(
        f"[green]done[/green] {stage.title}, {stage.seconds:.0f} s: {stage.text}", highlight=False
    )
    return stage


def _describe_analysis(
    config: journey.DemoConfig, finding: journey.Finding, *, seconds: float
) -> Stage:
    names = journey.draw_report(config.out)
    pictures = [Picture(file="heatmap.png", caption="heatmap over the slide")]
    return Stage(
        title="A held-out slide through the service",
        text=f"Uploaded over HTTP, report after {finding.seconds:.0f} s. {_agreement(finding)}",
        pictures=[*pictures, *(Picture(file=name, caption="report") for name in names)],
        links=("report.pdf", "report.json"),
        seconds=seconds,
    )


def _agreement(finding: journey.Finding) -> str:
    return (
        f"Heatmap compared with the known regions: balanced accuracy {finding.agreement:.2f}, "
        f"where chance is {finding.chance:.2f} (permutation test p = {finding.p_value:.3f})."
    )


def _print_finding(
    config: journey.DemoConfig,
    finding: journey.Finding,
    address: str,
    page: Path,
    *,
    seconds: float,
) -> None:
    console.print(risk_table(Report.model_validate(finding.report)))
    console.print(_agreement(finding), highlight=False)
    for name, path in (
        ("PDF", config.out / "report.pdf"),
        ("heatmap", config.out / "heatmap.png"),
        ("all stages", page),
    ):
        console.print(f"{name:>10}: {path}", highlight=False, soft_wrap=True)
    console.print(
        f"The journey took {seconds:.0f} s; the service was at {address}.", highlight=False
    )


def _wait_for_signal() -> None:
    """Return or exit at SIGINT or SIGTERM, whichever comes first."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")


if __name__ == "__main__":
    demo = typer.Typer(
        name="python -m app.demo",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    demo.command()(boundary.guarded(main))
    sys.exit(boundary.run(demo, sys.argv[1:]))
