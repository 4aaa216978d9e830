"""The main job on one machine, stage by stage, through the same functions and the same HTTP API that users have.

    synth -> prepare -> pretrain -> fit-slide, fit-risk -> serve -> upload one held-out slide -> report

Each stage returns what the album shows. This module adds nothing to the product: it only calls it, as an engineer and then as a
clinician's client would.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from app.demo.page import Picture, Stage
from app.reports.pdf import report_pages
from app.reports.schemas import Report
from pipelines import storage
from pipelines.annotations import PATTERNS, UNLABELLED, patch_labels, read_annotations
from pipelines.manifest import ManifestRow, read_manifest

Told = Callable[[str], None]
StageMaker = Callable[["DemoConfig"], Stage]
CLINICAL: Final = {"age": "67", "psa": "9.4", "t_stage": "T2b"}
"""The demo's patient: invented."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does.

    Attributes:
        out: folder for everything it makes; emptied first.
        tiles: class folders of real prostate tiles; None for generated H&E.
        slides: slides of the cohort, the last `test_slides` of which no model sees.
        test_slides: see there.
        patients: simulated patients that the risk model is fitted on.
        seed: source of all randomness.
        port: of the service; a free one where None.
    """

    out: Path
    tiles: Path | None
    slides: int = 12
    test_slides: int = 3
    patients: int = 600
    seed: int = 0
    port: int | None = None

    @property
    def cohort(self) -> str:
        """Where the prepared cohort lies."""
        return str(self.out / "cohort")

    @property
    def models(self) -> Path:
        """Where the model set lies."""
        return self.out / "models"


def find_tiles() -> Path | None:
    """The folder of real prostate tiles, where it is at hand."""
    data = Path(os.environ.get("ACINUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    tiles = data / "tiles" / "gleason_arvaniti"
    return tiles if tiles.is_dir() else None


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds since the block began."""
    begun = time.monotonic()
    yield lambda: time.monotonic() - begun


def make_cohort(config: DemoConfig) -> Stage:
    """Slides with known regions, and their index."""
    from pipelines.prepare import PrepareConfig, prepare
    from pipelines.synthetic.synthesise import SynthConfig, synthesise

    with timed() as seconds:
        manifest = synthesise(
            SynthConfig(
                out=str(config.out / "slides"),
                slides=config.slides,
                test_slides=config.test_slides,
                tiles=str(config.tiles) if config.tiles else None,
                core_length=10,
                seed=config.seed,
            )
        )
        report = prepare(PrepareConfig(manifest=manifest, out=config.cohort))
        if report.failed:
            raise RuntimeError(
                f"slides of the demo could not be prepared: {report.failed[0].error}"
            )
        pictures = sorted((config.out / "cohort").rglob("overview.png"))
        shown = [
            _keep(config, picture, f"overview-{k}.png") for k, picture in enumerate(pictures[:3])
        ]
        tissue = "real prostate tiles" if config.tiles else "generated H&E (no real tiles at hand)"
        return Stage(
            title="Slides, tissue, patches",
            text=f"{len(report.prepared)} slides assembled from {tissue}; {report.n_patches} patches of 224 px at 0.5 um/px.",
            pictures=[
                Picture(file=name, caption="thumbnail, tissue outline (green), patches (blue)")
                for name in shown
            ],
            seconds=seconds(),
        )


def pretrain_encoder(config: DemoConfig) -> Stage:
    """A small encoder, without labels, on two Ray Train workers."""
    from training.pretrain.pretrain import PretrainConfig, pretrain

    with timed() as seconds:
        report = pretrain(
            PretrainConfig(
                data=config.cohort,
                out=str(config.out / "pretrain"),
                recipe="demo",
                seed=config.seed,
            )
        )
        source = storage.local_path(report.encoder)
        assert source is not None
        shutil.copytree(source, config.models / "encoder")
        curve = storage.local_path(report.loss_curve)
        assert curve is not None
        first, last = report.history[0]["loss"], report.history[-1]["loss"]
        return Stage(
            title="Encoder, self-supervised",
            text=f"{report.steps} steps, loss {first:.2f} -> {last:.2f}, {report.patches_per_second:.0f} patches/s, 2 workers.",
            pictures=[Picture(file=_keep(config, curve, "loss.png"), caption="loss")],
            seconds=seconds(),
        )


def fit_models(config: DemoConfig) -> Stage:
    """Pattern head, slide model and risk model on the training slides."""
    from training.risk.fit_risk import FitRiskConfig, fit_risk
    from training.slide.fit_slide import FitSlideConfig, fit_slide

    encoder, slide_model = str(config.models / "encoder"), str(config.models / "slide_model")
    with timed() as seconds:
        fitted = fit_slide(
            FitSlideConfig(data=config.cohort, encoder=encoder, out=slide_model, seed=config.seed)
        )
        risk = fit_risk(
            FitRiskConfig(
                data=config.cohort,
                encoder=encoder,
                slide_model=slide_model,
                out=str(config.models / "risk_model"),
                patients=config.patients,
                seed=config.seed,
            )
        )
        text = f"{fitted.slides} slides, {fitted.patches} patches"
        if fitted.patch_score:
            score = fitted.patch_score
            text += f"; patches held out by case: balanced accuracy {score.balanced_accuracy:.2f} (chance {score.chance:.2f}), "
            text += "optimistic, since training slides share tiles"
        text += f". Risk on {risk.patients} SIMULATED patients, {risk.events} events"
        if risk.score.concordance is not None:
            text += f"; concordance on held-out ones {risk.score.concordance:.2f}"
        names = [
            path
            for path in map(storage.local_path, [*fitted.figures, *risk.figures])
            if path is not None
        ]
        return Stage(
            title="Pattern head, slide model, risk model",
            text=text + ".",
            pictures=[
                Picture(file=_keep(config, path, path.name), caption=path.stem.replace("_", " "))
                for path in names
            ],
            seconds=seconds(),
        )


@contextmanager
def service(config: DemoConfig) -> Iterator[str]:
    """`acinus serve` as a process of its own; yields its address once it answers, and stops it afterwards."""
    port = config.port or free_port()
    environment = os.environ | {
        "ACINUS_DATA_ROOT": str(config.out / "service"),
        "ACINUS_MODELS": str(config.models),
        "ACINUS_PORT": str(port),
    }
    log = (config.out / "service.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us alone: a second signal would interrupt its clean stop
    )
    try:
        yield _answering(f"http://127.0.0.1:{port}", process, config.out / "service.log")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        if process.poll() is None:
            process.kill()
        log.close()


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answering(address: str, process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(240):
        if process.poll() is not None:
            raise RuntimeError(f"the service ended before it answered; see {log}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return address
        time.sleep(0.5)
    raise RuntimeError(f"the service did not answer in two minutes; see {log}")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came back for the held-out slide.

    Attributes:
        report: the report as JSON.
        agreement: balanced accuracy of the heatmap's patches against the known regions.
        chance: what guessing reaches.
        p_value: share of random relabellings that agree as well.
        seconds: from upload to report.
    """

    report: dict[str, Any]
    agreement: float
    chance: float
    p_value: float
    seconds: float


def analyse_held_out(config: DemoConfig, address: str, told: Told) -> Finding:
    """Upload a slide of the test split as a client would, wait, fetch what it made, and compare with the known regions."""
    row = next(
        row
        for row in read_manifest(str(config.out / "slides" / "manifest.csv"))
        if row.split == "test"
    )
    path = storage.local_path(row.uri)
    assert path is not None
    with timed() as seconds, httpx.Client(base_url=address, timeout=60) as client:
        with path.open("rb") as stream:
            answer = client.post(
                "/api/v1/analyses", files={"slide": (path.name, stream)}, data=CLINICAL
            )
        answer.raise_for_status()
        links = answer.json()["links"]
        state = _wait(client, links["analysis"], told)
        for name, link in (
            ("report.json", "report_json"),
            ("heatmap.png", "heatmap"),
            ("report.pdf", "report_pdf"),
        ):
            (config.out / name).write_bytes(client.get(links[link]).raise_for_status().content)
        took = seconds()
    agreement, chance, p_value = compare_with_regions(config, state["result"], row)
    return Finding(
        report=state["result"], agreement=agreement, chance=chance, p_value=p_value, seconds=took
    )


def _wait(client: httpx.Client, link: str, told: Told) -> dict[str, Any]:
    shown = ""
    for _ in range(1200):
        state: dict[str, Any] = client.get(link).raise_for_status().json()
        if state["status"] == "done":
            return state
        if state["status"] == "failed":
            raise RuntimeError(f"the analysis failed: {state['error']}")
        step = f"{state['status']} {state.get('step') or ''}".strip()
        if step != shown:
            told(step)
            shown = step
        time.sleep(0.25)
    raise RuntimeError("the analysis took more than five minutes")


def draw_report(out: Path) -> list[str]:
    """The pages of the report as PNG; their names."""
    report = Report.model_validate_json((out / "report.json").read_bytes())
    pages = report_pages(report, (out / "heatmap.png").read_bytes())
    names = [f"report-{k}.png" for k in range(1, len(pages) + 1)]
    for name, page in zip(names, pages, strict=True):
        (out / name).write_bytes(page)
    return names


def compare_with_regions(
    config: DemoConfig, report: dict[str, Any], row: ManifestRow
) -> tuple[float, float, float]:
    """Balanced accuracy of the patches behind the heatmap, what guessing reaches, and a permutation test's p value."""
    [found] = (config.out / "service" / "store").rglob(
        f"analyses/{report['analysis_id']}/patches.safetensors"
    )
    patches = safetensors.numpy.load(found.read_bytes())
    spec, specimen = report["provenance"]["patch_spec"], report["specimen"]
    side = spec["size"] * spec["mpp"] / specimen["mpp"]
    truth = patch_labels(read_annotations(row.annotation).regions, patches["x"], patches["y"], side)
    known = truth != UNLABELLED
    truth, predicted = truth[known].astype(int), patches["probabilities"].argmax(axis=1)[known]
    rng = np.random.default_rng(config.seed)
    agreement = balanced_accuracy(truth, predicted)
    draws = [balanced_accuracy(rng.permutation(truth), predicted) for _ in range(999)]
    return (
        agreement,
        1 / len(np.unique(truth)),
        (1 + sum(draw >= agreement for draw in draws)) / (1 + len(draws)),
    )


def balanced_accuracy(truth: NDArray[np.int_], predicted: NDArray[np.int_]) -> float:
    """Mean over the patterns present of the share of their patches that were named right."""
    present = [k for k in range(len(PATTERNS)) if (truth == k).any()]
    return float(np.mean([(predicted[truth == k] == k).mean() for k in present]))


def _keep(config: DemoConfig, picture: Path, name: str) -> str:
    """Copy a picture into the output folder and return its name there."""
    shutil.copyfile(picture, config.out / name)
    return name
