"""Slides in processes of this machine: the same bytes as Ray's; no slide ends another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from pipelines import local_workers, ray_workers
from pipelines.local_workers import WorkerFailure
from pipelines.manifest import read_manifest
from pipelines.prepare import OutputError, PrepareConfig, prepare
from tests.support.process_tree import alive, descendants
from tests.support.small_cohort import small_cohort

ROOT = Path(__file__).parents[2]


def _files(out: Path) -> dict[str, bytes]:
    """All that a run writes but its report, which has the times of reading."""
    paths = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name != "report.json"}


def test_ray_and_local_processes_write_the_same_bytes(ray_session: None, tmp_path: Path) -> None:
    manifest = str(small_cohort(tmp_path / "slides", 5, bad=2))
    for name, run_slides in (("local", local_workers), ("ray", ray_workers)):
        config = PrepareConfig(manifest=manifest, out=str(tmp_path / name))
        report = prepare(config, run_slides=run_slides.run_slides)
        assert (len(report.prepared), len(report.failed)) == (3, 2)
    assert _files(tmp_path / "local") == _files(tmp_path / "ray")


def test_a_slide_that_ends_its_process_is_a_failure_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "WORKER", "tests.support.dying_worker")
    manifest = small_cohort(tmp_path / "slides", 5, bad=0)
    report = prepare(PrepareConfig(manifest=str(manifest), out=str(tmp_path / "out")))
    assert [outcome.line for outcome in report.prepared] == [2, 4, 6]
    assert [outcome.kind for outcome in report.failed] == ["BrokenSlide", "BrokenSlide"]
    assert (
        "slide-0001.svs ended the process that read it 4 times (SIGSEGV)" in report.failed[0].error
    )
    assert "(SIGKILL)" in report.failed[1].error
    assert report.failed[0].trace == "reading slide-0001.svs"


def test_a_ray_worker_that_dies_is_a_failure_of_its_slide(
    ray_session: None, tmp_path: Path
) -> None:
    [row] = read_manifest(str(small_cohort(tmp_path, 1, bad=0)))
    end = ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    outcome = ray_workers.outcome_of(end.remote(), row, attempts=1)
    assert outcome.kind == "BrokenSlide"
    assert (
        "slide-0000.svs ended the process that read it once (WorkerCrashedError)" in outcome.error
    )


def test_a_task_that_ray_does_not_run_is_not_blamed_on_its_slide(
    ray_session: None, tmp_path: Path
) -> None:
    [row] = read_manifest(str(small_cohort(tmp_path, 1, bad=0)))
    task = ray.remote(lambda: time.sleep(600)).remote()
    ray.cancel(task, force=True)
    outcome = ray_workers.outcome_of(task, row)
    assert outcome.kind == "SlideError"
    assert "slide-0000.svs was not prepared: the cluster failed" in outcome.error
    assert "ended the process" not in outcome.error


def test_a_worker_that_cannot_start_is_not_blamed_on_a_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "WORKER", "pipelines.absent")
    config = PrepareConfig(
        manifest=str(small_cohort(tmp_path / "slides", 1, bad=0)), out=str(tmp_path / "out")
    )
    with pytest.raises(
        WorkerFailure,
        match=r"can't be started: .*No module named pipelines.absent; install acinus again",
    ):
        prepare(config)


def test_an_output_that_cannot_be_written_ends_the_run_and_its_processes(tmp_path: Path) -> None:
    manifest = small_cohort(tmp_path / "slides", 6, bad=0)
    (tmp_path / "file").write_bytes(b"in the way")
    before = set(descendants(os.getpid()))
    with pytest.raises(OutputError, match=r"file/out can't be written"):
        prepare(PrepareConfig(manifest=str(manifest), out=str(tmp_path / "file" / "out")))
    assert not set(descendants(os.getpid())) - before


def test_slides_under_way_are_finished_before_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may still find room; no other slide is started."""
    monkeypatch.setattr(local_workers, "WORKER", "tests.support.refusing_worker")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    rows = list(read_manifest(str(small_cohort(tmp_path / "slides", 4, bad=0))))
    config = PrepareConfig(manifest="unused", out=str(tmp_path / "out"))
    finished = []
    with pytest.raises(OutputError, match="make room there"):
        finished.extend((k, bool(one.row)) for k, one in local_workers.run_slides(rows, config))
    assert finished == [(1, True)]


def test_no_more_processes_than_cpus_and_none_for_no_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    launch = local_workers._Worker._launch
    monkeypatch.setattr(
        local_workers._Worker, "_launch", lambda self: started.append(1) or launch(self)
    )
    config = PrepareConfig(
        manifest=str(small_cohort(tmp_path / "slides", 7, bad=0)), out=str(tmp_path / "out")
    )
    prepare(config)
    assert 1 <= len(started) <= len(os.sched_getaffinity(0))
    assert list(local_workers.run_slides([], config)) == []


@pytest.mark.parametrize(
    ("cpu_max", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_no_more_processes_than_a_container_has_time_for(
    cpu_max: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{cpu_max}\n")
    monkeypatch.setattr(local_workers, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert local_workers._usable_cpus() == (expected or 4)


def test_what_hands_out_slides_loads_neither_ray_nor_readers() -> None:
    """A first command answers soon: these need seconds to import."""
    heavy = {"ray", "scipy", "skimage", "tifffile", "pydicom", "wsidicom", "openslide", "torch"}
    code = f"import sys, pipelines.prepare; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_ctrl_c_ends_a_run_and_its_processes(tmp_path: Path) -> None:
    manifest = small_cohort(tmp_path / "slides", 60, bad=0)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "app.cli", "prepare", str(manifest), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/prepared/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    below = descendants(process.pid)
    assert any("pipelines.slide_worker" in title for title in below.values())
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Interrupted" in printed
    assert b"Traceback" not in printed
    assert not alive(below)
    assert not (out / "cohort.parquet").exists()
