"""`acinus prepare` killed at random moments and resumed: nothing finished is lost, and the end is
the same to the byte."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import local_workers, ray_workers
from pipelines.preparation import ATTEMPTS, RunSlides
from pipelines.prepare import OutputError, PrepareConfig, PrepareReport, prepare
from tests.support.process_tree import alive, descendants, kill, killing
from tests.support.small_cohort import small_cohort

ROOT = Path(__file__).parents[2]
SLIDES, BAD = 24, 5
PATIENCE_S = 120.0
LOCAL_WORKER = f"{sys.executable} -m pipelines.slide_worker"

Snapshot = dict[str, bytes]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort(tmp_path_factory.mktemp("slides"), SLIDES, bad=BAD)


@pytest.fixture(scope="module")
def undisturbed(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    out = tmp_path_factory.mktemp("undisturbed")
    report = prepare(PrepareConfig(manifest=str(manifest), out=str(out)))
    assert (len(report.prepared), len(report.failed)) == (SLIDES - BAD, BAD)
    return snapshot(out)


def snapshot(out: Path) -> Snapshot:
    """All that a run writes except its report, which describes the run; without parts of files
    that a killed writer left."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if name != "report.json" and not re.search(r"#\d+$", name)
    }


def records(out: Path) -> int:
    """Slides that are recorded as finished."""
    return len(list(out.glob("*/prepared/*.json")))


@dataclass
class Driver:
    """`acinus prepare --resume` in a process of its own."""

    process: subprocess.Popen[bytes]
    said: Path

    def kill(self) -> dict[int, str]:
        """SIGKILL, and wait until the workers have ended, which they do by themselves; returns what
        then still runs."""
        below = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + PATIENCE_S
        while left := alive(below):
            assert time.monotonic() < deadline, f"a killed driver leaves processes behind: {left}"
            time.sleep(0.1)
        return alive(below)

    def peak_mb(self) -> float:
        """Largest resident size so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@contextmanager
def driver(manifest: Path, out: Path, said: Path) -> Iterator[Driver]:
    """Start a driver; nothing of it is left when the block ends."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "COLUMNS": "150"
    }
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "prepare",
        str(manifest),
        "--out",
        str(out),
        "--resume",
    ]
    with said.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    started = Driver(process=process, said=said)
    try:
        yield started
    finally:
        for left in started.kill():
            kill(left)


def resume_to_the_end(
    manifest: Path, out: Path, said: Path, *, patience: float = 250.0
) -> dict[str, int]:
    """Run until it ends by itself; returns the counts of its report."""
    with driver(manifest, out, said) as last:
        assert last.process.wait(timeout=patience) == 1, said.read_text()  # for the bad slides
    counts: dict[str, int] = json.loads((out / "report.json").read_text())["slides"]
    return counts


def test_a_killed_driver_loses_nothing(
    manifest: Path, undisturbed: Snapshot, tmp_path: Path
) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    with driver(manifest, out, said) as first:
        while records(out) < 5:
            assert first.process.poll() is None, said.read_text()
            time.sleep(0.01)
        first.kill()
    finished = records(out)
    assert 5 <= finished < SLIDES - BAD, "the run ended before it was killed"
    assert not (out / "cohort.parquet").exists()
    counts = resume_to_the_end(manifest, out, said)
    assert counts == {
        "total": SLIDES,
        "prepared": SLIDES - BAD,
        "failed": BAD,
        "kept": finished,
        "staged": 0,
    }
    assert snapshot(out) == undisturbed
    printed = said.read_text()
    assert f"{finished} of them kept" in printed
    for line in ("BrokenSlide", "UnsupportedSlide", "SlideNotFound", "MissingResolution"):
        assert line in printed
    print(
        f"driver killed once at {finished} of {SLIDES - BAD} slides: same {len(undisturbed)} files"
    )


@pytest.mark.parametrize(
    ("run_slides", "title"),
    [(local_workers.run_slides, LOCAL_WORKER), (ray_workers.run_slides, "ray::prepare_slide")],
    ids=["local", "ray"],
)
def test_killed_workers_lose_no_slide(
    request: pytest.FixtureRequest,
    manifest: Path,
    undisturbed: Snapshot,
    tmp_path: Path,
    run_slides: RunSlides,
    title: str,
) -> None:
    """Kills are fewer than the attempts of a slide: on a slow machine all may meet the same one."""
    if run_slides is ray_workers.run_slides:
        request.getfixturevalue("ray_session")
    config = PrepareConfig(manifest=str(manifest), out=str(tmp_path))
    with killing(
        title, below=os.getpid(), seed=3, pause=(0.05, 0.3), max_kills=ATTEMPTS - 1
    ) as killed:
        report = prepare(config, run_slides=run_slides)
    assert killed
    assert (len(report.prepared), len(report.failed)) == (SLIDES - BAD, BAD)
    assert snapshot(tmp_path) == undisturbed
    print(
        f"{len(killed)} workers killed, {SLIDES} slides, no resume: same {len(undisturbed)} files"
    )


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of this size (MB) at a new folder; skips the test if it can't be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_reported_and_resumed(
    manifest: Path, undisturbed: Snapshot, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    total = sum(map(len, undisturbed.values()))
    with small_disk(disk, megabytes=max(1, total // 2**21)):
        config = PrepareConfig(manifest=str(manifest), out=str(disk / "out"), resume=True)
        with pytest.raises(OutputError, match="No space left on device") as raised:
            prepare(config)
        assert "make room" in str(raised.value)
        assert "--resume" in str(raised.value)
        written = snapshot(disk / "out")
        assert written.items() <= undisturbed.items(), "a file is cut off"
        finished = records(disk / "out")
        assert finished
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        report: PrepareReport = prepare(config)
        assert (len(report.prepared), len(report.failed), report.kept) == (
            SLIDES - BAD,
            BAD,
            finished,
        )
        assert snapshot(disk / "out") == undisturbed
    print(f"disk full at {finished} of {SLIDES - BAD} slides: same {len(undisturbed)} files")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_slides_killed_many_times(tmp_path: Path) -> None:
    """Drivers and workers, both at random moments."""
    slides, bad, chance = 1000, 30, random.Random(11)
    manifest, said, out = (
        small_cohort(tmp_path / "slides", slides, bad=bad),
        tmp_path / "said",
        tmp_path / "out",
    )
    start, peak = time.monotonic(), 0.0
    with driver(manifest, tmp_path / "undisturbed", said) as whole:
        while whole.process.poll() is None:
            peak = max(peak, whole.peak_mb()) if alive({whole.process.pid: ""}) else peak
            time.sleep(0.2)
        assert whole.process.returncode == 1
    seconds = time.monotonic() - start
    each = seconds / slides * 1000
    print(f"undisturbed: {seconds:.0f} s, {each:.0f} ms a slide, driver at most {peak:.0f} MB")
    expected = snapshot(tmp_path / "undisturbed")

    drivers = workers = 0
    while drivers < 12:
        before, starting = records(out), chance.random() < 0.25
        with driver(manifest, out, said) as victim:
            with killing(
                LOCAL_WORKER,
                below=victim.process.pid,
                seed=drivers,
                pause=(0.2, 4.0),
                max_kills=50,
            ) as killed:
                while not starting and records(out) == before and victim.process.poll() is None:
                    time.sleep(0.05)
                moment = time.monotonic() + chance.uniform(
                    0.0, 8.0
                )  # into its work, or else into its start
                while victim.process.poll() is None and time.monotonic() < moment:
                    time.sleep(0.05)
            workers += len(killed)
            if victim.process.poll() is not None:
                break
        drivers += 1
        assert snapshot(out).items() <= expected.items(), "a file is cut off"
    finished = records(out)
    counts = resume_to_the_end(manifest, out, said, patience=3000.0)
    assert counts["kept"] == finished
    assert (counts["prepared"], counts["failed"]) == (slides - bad, bad)
    assert snapshot(out) == expected
    print(
        f"{drivers} drivers, {workers} workers killed, {slides} slides: same {len(expected)} files"
    )
    print(said.read_text())
