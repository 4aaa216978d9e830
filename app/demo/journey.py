"""The main job on one machine, stage by stage.

    synth -> prepare -> pretrain -> probe -> fit-slide, fit-risk -> serve -> one held-out slide
    -> report

Each stage returns what the page shows. This module adds nothing to the product: it calls the same
functions as the command line, and then the HTTP API as a clinician's client does.
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
from PIL import Image

from app.demo.page import Picture, Stage
from app.errors import ServiceError
from app.reports.pdf import report_pages
from app.reports.schemas import Report
from pipelines import storage
from pipelines.annotations import PATTERNS, UNLABELLED, patch_labels, read_annotations
from pipelines.cohort_shards import load_shards
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.prepare import PrepareConfig, prepare
from pipelines.shards import shards_of
from pipelines.synthetic.synthesise import SynthConfig, synthesise, tile_pool
from pipelines.synthetic.tissue import MPP
from training.encoder.encoder import load_encoder, save_encoder
from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.evaluation.probe import ProbeConfig, probe
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL
from training.pretrain.pretrain import PretrainConfig, pretrain
from training.risk.fit_risk import (
    FitRiskConfig,
    FitRiskReport,
    ImageSource,
    SimulatedOutcomes,
    fit_risk,
)
from training.risk.prediction import CAUSE_WORDS
from training.slide.fit_slide import FitSlideConfig, FitSlideReport, fit_slide

OnStep = Callable[[str], None]
"""Called with the step that the analysis is in, whenever it changes."""
StageMaker = Callable[["DemoConfig"], Stage]
CLINICAL: Final = {"age": "67", "psa": "9.4", "t_stage": "T2b"}
"""The demo's patient, who is invented."""
SERVICE_PATIENCE, ANALYSIS_PATIENCE = 120.0, 300.0
"""Seconds until the service must answer, and until the analysis must be done."""


class DemoError(ServiceError):
    """The demo cannot go on; names the stage and where to look."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does.

    Attributes:
        out: folder for everything it makes; emptied first.
        tiles: class folders of real prostate tiles; None for generated H&E.
        slides: number of slides of the cohort; the last `test_slides` are held out.
        test_slides: number of slides that no model sees.
        steps: of self-supervised training.
        patients: simulated patients that the risk model is fitted on.
        seed: source of all randomness.
        port: of the service; a free one if None.
    """

    out: Path
    tiles: Path | None
    slides: int = 12
    test_slides: int = 3
    steps: int = 80
    patients: int = 600
    seed: int = 0
    port: int | None = None

    @property
    def cohort(self) -> str:
        """Folder of the prepared cohort."""
        return str(self.out / "cohort")

    @property
    def pretrained(self) -> str:
        """Folder of the encoder that the demo trains itself."""
        return str(self.out / "pretrain" / "encoder")

    @property
    def models(self) -> Path:
        """Folder of the model set."""
        return self.out / "models"


def find_tiles() -> Path | None:
    """The folder of real prostate tiles; None if this machine does not have it."""
    data = Path(os.environ.get("ACINUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    tiles = data / "tiles" / "gleason_arvaniti"
    return tiles if tiles.is_dir() else None


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """A function that returns the seconds since the block started."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start


def make_cohort(config: DemoConfig) -> Stage:
    """Slides with known regions, and their index."""
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
            raise DemoError(f"A slide of the demo was not prepared: {report.failed[0].error}")
        pictures = sorted((config.out / "cohort").rglob("overview.png"))
        shown = [
            _keep(config, picture, f"overview-{k}.png") for k, picture in enumerate(pictures[:3])
        ]
        tissue = "real prostate tiles" if config.tiles else "generated H&E (real tiles are missing)"
        return Stage(
            title="Slides, tissue, patches",
            text=f"{len(report.prepared)} slides assembled from {tissue}; "
            f"{report.n_patches} patches of 224 px at 0.5 um/px.",
            pictures=[
                Picture(file=name, caption="thumbnail, tissue outline (green), patches (blue)")
                for name in shown
            ],
            seconds=seconds(),
        )


def pretrain_encoder(config: DemoConfig) -> Stage:
    """A small encoder, without labels, on two Ray Train workers."""
    with timed() as seconds:
        report = pretrain(
            PretrainConfig(
                data=config.cohort,
                out=str(config.out / "pretrain"),
                recipe="demo",
                steps=config.steps,
                seed=config.seed,
            )
        )
        curve = storage.local_path(report.loss_curve)
        assert curve is not None
        first, last = report.history[0]["loss"], report.history[-1]["loss"]
        return Stage(
            title="Encoder, self-supervised",
            text=f"{report.steps} steps, loss {first:.2f} -> {last:.2f}, "
            f"{report.patches_per_second:.0f} patches/s, 2 workers.",
            pictures=[Picture(file=_keep(config, curve, "loss.png"), caption="loss")],
            seconds=seconds(),
        )


def choose_encoder(config: DemoConfig) -> Stage:
    """The encoder that knows most of labelled tiles, by a probe."""
    with timed() as seconds:
        tiles = _write_tiles(config)
        out = config.out / "probe"
        report = probe(
            ProbeConfig(
                tiles=str(tiles),
                encoders=(EFFICIENTNET_LITE0, config.pretrained),
                out=str(out),
                tile_mpp=MPP,
                seed=config.seed,
            )
        )
        best = load_encoder(report.best, precision="f32")
        save_encoder(str(config.models / ENCODER), best)
        scores = "; ".join(f"{row.name} {row.linear}" for row in report.rows)
        return Stage(
            title="Encoders side by side",
            text=f"Linear probe on the training slides' {sum(report.tiles)} tiles, balanced "
            f"accuracy: {scores}. Served: {best.name}.",
            pictures=[Picture(file=_keep(config, out / "probe.png", "probe.png"), caption="probe")],
            seconds=seconds(),
        )


def _write_tiles(config: DemoConfig) -> Path:
    """The tiles that training slides show, a folder for each pattern."""
    folder = config.out / "tiles"
    tiles = str(config.tiles) if config.tiles else None
    pool = tile_pool(SynthConfig(out=str(folder), tiles=tiles, seed=config.seed), "train")
    for pattern, images in pool.items():
        (folder / pattern).mkdir(parents=True)
        for k, image in enumerate(images):
            Image.fromarray(image).save(folder / pattern / f"{k:03d}.png", compress_level=1)
    return folder


def fit_models(config: DemoConfig) -> Stage:
    """Pattern head, slide model and risk model on the training slides."""
    encoder, slide_model = str(config.models / ENCODER), str(config.models / SLIDE_MODEL)
    with timed() as seconds:
        fitted = fit_slide(
            FitSlideConfig(
                data=config.cohort,
                encoder=encoder,
                out=slide_model,
                stain_views=1,  # slides of one laboratory gain nothing from more
                seed=config.seed,
            )
        )
        risk = fit_risk(
            FitRiskConfig(
                outcomes=SimulatedOutcomes(patients=config.patients),
                image=ImageSource(
                    data=config.cohort, encoder=encoder, slide_model=slide_model, split="train"
                ),
                out=str(config.models / RISK_MODEL),
                seed=config.seed,
            )
        )
        names = [
            path
            for path in map(storage.local_path, [*fitted.figures, *risk.figures])
            if path is not None
        ]
        return Stage(
            title="Pattern head, slide model, risk model",
            text=_describe_fits(fitted, risk),
            pictures=[
                Picture(file=_keep(config, path, path.name), caption=path.stem.replace("_", " "))
                for path in names
            ],
            seconds=seconds(),
        )


def _describe_fits(fitted: FitSlideReport, risk: FitRiskReport) -> str:
    text = f"{fitted.slides} slides, {fitted.patches} patches"
    if fitted.patch_score:
        score = fitted.patch_score
        text += (
            f"; patches held out by case: balanced accuracy {score.balanced_accuracy:.2f} "
            f"(chance {score.chance:.2f}), optimistic, since training slides share tiles"
        )
    events = ", ".join(f"{count} {CAUSE_WORDS[name]}" for name, count in risk.events.items())
    text += f". Risk on {risk.patients} SIMULATED patients ({events})"
    if isinstance(risk.score.concordance, float):
        text += f"; concordance on held-out ones {risk.score.concordance:.2f}"
    return f"{text}."


@contextmanager
def service(config: DemoConfig) -> Iterator[str]:
    """`acinus serve` as a process of its own, stopped after the block.

    Yields:
        its address, once it answers.

    Raises:
        DemoError: it ended, or did not answer in time.
    """
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
        start_new_session=True,  # Ctrl-C reaches us alone: a second one would cut its stop short
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
    """A port of the loopback interface that no process uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answering(address: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + SERVICE_PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"The service ended before it answered; {log} says why.")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return address
        time.sleep(0.5)
    raise DemoError(f"The service did not answer in {SERVICE_PATIENCE:.0f} s; see {log}.")


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


def analyse_held_out(config: DemoConfig, address: str, on_step: OnStep) -> Finding:
    """Send a slide of the test split to the service and compare its report with the known regions.

    Raises:
        DemoError: the analysis failed, or took too long.
    """
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
        state = _wait(client, links["analysis"], on_step)
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


def _wait(client: httpx.Client, link: str, on_step: OnStep) -> dict[str, Any]:
    shown = ""
    deadline = time.monotonic() + ANALYSIS_PATIENCE
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get(link).raise_for_status().json()
        if state["status"] == "done":
            return state
        if state["status"] == "failed":
            raise DemoError(f"The analysis failed: {state['error']}")
        step = f"{state['status']} {state.get('step') or ''}".strip()
        if step != shown:
            on_step(step)
            shown = step
        time.sleep(0.25)
    raise DemoError(f"The analysis took more than {ANALYSIS_PATIENCE:.0f} s.")


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
    """How well the patches behind the heatmap agree with the known regions.

    Returns:
        balanced accuracy, what guessing reaches, and the p value of a permutation test.
    """
    [found] = (config.out / "service" / "store").rglob(
        f"analyses/{report['analysis_id']}/patches.safetensors"
    )
    patches = safetensors.numpy.load(found.read_bytes())
    [shard] = shards_of(load_shards(config.cohort, split="test").slice(0, 1))
    truth = patch_labels(
        read_annotations(row.annotation).regions, patches["x"], patches["y"], shard.patch_side
    )
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
