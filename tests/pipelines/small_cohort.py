"""Many small slides, some of them bad in the ways in which slides are bad."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipelines.slides.pyramid import SvsMetadata, write_svs
from pipelines.slides.synthetic import generate_tile

BAD = ("empty", "cut", "text", "absent", "no-mpp")


def small_cohort(folder: Path, slides: int, *, bad: int) -> Path:
    """Write slides of two patches and a manifest; returns the manifest.

    Args:
        folder: where to; made if need be.
        slides: number of slides.
        bad: how many of them are bad, spread evenly; the kinds of `BAD` in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tile = generate_tile("gleason_4", np.random.default_rng(0), side=480)
    pixels = np.full((280, 520, 3), 243, np.uint8)
    pixels[20:260, 20:500] = tile[:240]
    write_svs(folder / "good", pixels, SvsMetadata(mpp=0.5, tile=128))
    write_svs(folder / "no-mpp", pixels, SvsMetadata(mpp=None, tile=128))
    good, without = ((folder / name).read_bytes() for name in ("good", "no-mpp"))
    content = {"empty": b"", "cut": good[: len(good) // 2], "text": b"no slide\n" * 50, "no-mpp": without}
    lines = ["slide,case,split,label"]
    faults = {int((k + 0.5) * slides / bad): BAD[k % len(BAD)] for k in range(bad)}
    for k in range(slides):
        name, fault = f"slide-{k:04d}.svs", faults.get(k)
        if fault != "absent":
            (folder / name).write_bytes(content[fault] if fault else good)
            os.utime(folder / name, (1_700_000_000 + k, 1_700_000_000 + k))  # a slide's identity holds its time
        lines.append(f"{name},case-{k // 2:04d},{'test' if k // 2 % 5 == 0 else 'train'},{'3+4' if k % 3 else 'benign'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"
