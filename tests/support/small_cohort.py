"""Many small slides, some of them bad in the ways in which slides are bad."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipelines.synthetic.svs import SvsMetadata, write_svs
from pipelines.synthetic.tissue import generate_tile

BAD = ("empty", "cut", "text", "absent", "no-mpp")


def small_cohort(folder: Path, slides: int, *, bad: int) -> Path:
    """Write slides of two patches, each of its own tissue, and a manifest; returns the manifest.

    Args:
        folder: where to; made if need be.
        slides: number of slides.
        bad: how many of them are bad, spread evenly; the kinds of `BAD` in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tile = generate_tile("gleason_4", np.random.default_rng(0), side=480)
    pixels = np.full((280, 520, 3), 243, np.uint8)
    lines = ["slide,case,split,label"]
    faults = {int((k + 0.5) * slides / bad): BAD[k % len(BAD)] for k in range(bad)}
    for k in range(slides):
        name, fault = f"slide-{k:04d}.svs", faults.get(k)
        if fault != "absent":
            pixels[20:260, 20:500] = np.roll(tile, (k // 480, k % 480), axis=(0, 1))[:240]
            write_svs(
                folder / name, pixels, SvsMetadata(mpp=None if fault == "no-mpp" else 0.5, tile=128)
            )
            damage(folder / name, fault)
            time = 1_700_000_000 + k  # a slide's identity holds it
            os.utime(folder / name, (time, time))
        split = "test" if k // 2 % 5 == 0 else "train"
        lines.append(f"{name},case-{k // 2:04d},{split},{'3+4' if k % 3 else 'benign'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def damage(path: Path, fault: str | None) -> None:
    """Make a slide bad in one of the ways in which files are."""
    good = path.read_bytes()
    content = {"empty": b"", "cut": good[: len(good) // 2], "text": b"no slide\n" * 50}
    path.write_bytes(content.get(fault or "", good))
