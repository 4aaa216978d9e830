"""`make demo`: the whole journey on this machine; see `app.demo.journey` for the stages.

Environment: `DEMO_EXIT=1` ends after the report, with exit code 0 only if the report is there and the heatmap agrees with the
known regions better than chance. `DEMO_OUT` is the output folder, `ACINUS_PORT` the port, `ACINUS_SHARED_DATA` holds real tiles.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import ray
from rich.console import Console

from app.demo import journey
from app.demo.page import Picture, Stage, write_page
from app.reports.schemas import NOTICE, SIMULATED, Report
from app.reports.terminal import risk_table

SIGNIFICANT = 0.01
"""Largest share of random relabellings that may agree as well as the heatmap does."""

console = Console()


def main() -> int:
    """Run the journey; returns the exit code."""
    out = Path(os.environ.get("DEMO_OUT", "demo-output")).resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "models").mkdir(parents=True)
    tiles = journey.find_tiles()
    port = os.environ.get("ACINUS_PORT")
    config = journey.DemoConfig(out=out, tiles=tiles, port=int(port) if port else None)
    console.print(
        f"Slides from {'real prostate tiles' if tiles else 'generated H&E: no real tiles at hand'}. {NOTICE}."
    )
    begun = time.monotonic()
    stages = [
        _stage(make, config)
        for make in (journey.make_cohort, journey.pretrain_encoder, journey.fit_models)
    ]
    ray.shutdown()  # the service brings its own
    with console.status("starting the service") as status, journey.service(config) as address:
        started = time.monotonic()
        status.update("analysing a held-out slide")
        finding = journey.analyse_held_out(
            config, address, lambda step: status.update(f"analysing a held-out slide: {step}")
        )
        stages.append(_served(config, finding, seconds=time.monotonic() - started))
        page = write_page(
            out, stages, notices=(f"{NOTICE}.", f"{SIMULATED}: the risks are about nobody.")
        )
        status.stop()
        _tell(config, finding, address, page, seconds=time.monotonic() - begun)
        if os.environ.get("DEMO_EXIT") == "1":
            agrees = finding.agreement > finding.chance and finding.p_value <= SIGNIFICANT
            return 0 if agrees and (out / "report.pdf").stat().st_size else 1
        console.print(f"The service stays up at {address} (API: {address}/docs). Ctrl-C ends it.")
        _wait_for_signal()
    return 0


def _stage(make: journey.StageMaker, config: journey.DemoConfig) -> Stage:
    with console.status((make.__doc__ or "").strip()):
        stage = make(config)
    console.print(
        f"[green]done[/green] {stage.title}, {stage.seconds:.0f} s: {stage.text}", highlight=False
    )
    return stage


def _served(config: journey.DemoConfig, finding: journey.Finding, *, seconds: float) -> Stage:
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
        f"Heatmap against known regions: balanced accuracy {finding.agreement:.2f} where chance is {finding.chance:.2f} "
        f"(permutation test p = {finding.p_value:.3f})."
    )


def _tell(
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
    """Until SIGINT or SIGTERM, whichever comes."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")


if __name__ == "__main__":
    sys.exit(main())
