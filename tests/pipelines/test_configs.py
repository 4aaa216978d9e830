"""Mistakes in what to prepare and what a patch is: each is refused with the field, the value and
what is allowed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines.grid import PatchSpec
from pipelines.preparation import PrepareConfig
from pipelines.synthetic.synthesise import SynthConfig

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 8}, "size is 8; it must be 16 to 8192 pixels"),
        ({"size": 0}, "size is 0; it must be 16"),
        ({"size": -224}, "size is -224; it must be 16"),
        ({"size": 10**6}, "size is 1000000; it must be 16 to 8192"),
        ({"mpp": 0.0}, "mpp of a patch is 0.0; it must be 0.05 to 100 um per pixel"),
        ({"mpp": -0.5}, "mpp of a patch is -0.5; it must be"),
        ({"mpp": NAN}, "mpp of a patch is nan; it must be"),
        ({"mpp": INFINITE}, "mpp of a patch is inf; it must be"),
        ({"mpp": 500.0}, "mpp of a patch is 500.0; it must be"),
        ({"overlap": 300}, "overlap is 300; it must be 0 to 223 pixels: less than the size of 224"),
        ({"overlap": 224}, "overlap is 224; it must be 0 to 223"),
        ({"overlap": -1}, "overlap is -1; it must be 0"),
        ({"min_tissue": 25}, "min_tissue is 25; it must be a share of 0 to 1: 0.25 is 25 %"),
        ({"min_tissue": -0.1}, "min_tissue is -0.1; it must be"),
        ({"min_tissue": NAN}, "min_tissue is nan; it must be"),
        (
            {"stain": "vahadane"},
            "stain is 'vahadane'; it must be one of macenko, reinhard, or empty",
        ),
    ],
    ids=str,
)
def test_a_patch_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        PatchSpec(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"organisation": "a/b"}, "organisation is 'a/b'; it must be 1 to 100 printable"),
        ({"organisation": ""}, "organisation is ''; it must be"),
        ({"organisation": ".."}, "organisation is '..'; it must be"),
        ({"organisation": "a\nb"}, r"organisation is 'a\nb'; it must be"),
        ({"organisation": " "}, "organisation is ' '; it must be"),
        ({"organisation": "x" * 101}, "it must be 1 to 100 printable characters"),
        ({"mpp": 0.0}, "mpp is 0.0; it must be 0.05 to 100 um per pixel"),
        ({"mpp": NAN}, "mpp is nan; it must be"),
        ({"mpp": 250.0}, "mpp is 250.0; it must be"),
        ({"shard_side": 0}, "shard_side is 0; it must be at least 1"),
        ({"manifest": ""}, "manifest is ''; it must be a path or URI"),
        ({"out": " "}, "out is ' '; it must be a folder or URI"),
    ],
    ids=str,
)
def test_a_preparation_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        PrepareConfig(**{"manifest": "m.csv", "out": "out", **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slides": 0}, "slides is 0; it must be 1 to 10000"),
        ({"slides": -3}, "slides is -3; it must be"),
        ({"test_slides": 13}, "test_slides is 13; it must be 0 to 12: the number of slides"),
        ({"test_slides": -1}, "test_slides is -1; it must be"),
        ({"cores": 0}, "cores is 0; it must be 1 to 8"),
        ({"core_length": 0}, "core_length is 0; it must be 1 to 100 tiles"),
        ({"core_length": 1000}, "core_length is 1000; it must be"),
        ({"tile_mpp": NAN}, "tile_mpp is nan; it must be 0.05 to 100 um per pixel"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"out": ""}, "out is ''; it must be a local folder"),
        ({"out": "s3://bucket/slides"}, "out is 's3://bucket/slides'; it must be a local folder"),
    ],
    ids=str,
)
def test_a_synthetic_cohort_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        SynthConfig(**{"out": "slides", **change})


@pytest.mark.parametrize(
    ("slides", "held_out"), [(1, 0), (2, 0), (3, 0), (4, 1), (8, 2), (12, 3), (100, 3)]
)
def test_a_quarter_of_few_synthetic_slides_is_held_out(slides: int, held_out: int) -> None:
    """Nobody gave a number of test slides, so none may be wrong."""
    assert SynthConfig(out="slides", slides=slides).held_out == held_out
    assert SynthConfig(out="slides", slides=slides, test_slides=1).held_out == 1
