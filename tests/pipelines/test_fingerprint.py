"""The fingerprint tells slides of different colours apart, holds no name, and survives JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.fingerprint import Fingerprint, colour_distance, fingerprint
from pipelines.slides.opening import open_slide
from pipelines.slides.slide import Slide
from pipelines.synthetic.tissue import generate_tile

GLASS = (243.0, 243.0, 243.0)


def patches(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            generate_tile(name, rng, side=224)
            for name in ("benign", "gleason_3", "gleason_4", "gleason_5")
        ]
    )


@pytest.fixture
def slide(generated_slide: Path) -> Slide:
    return open_slide(str(generated_slide))


def test_a_fingerprint_survives_json_and_holds_no_name(slide: Slide) -> None:
    found = fingerprint(slide, patches(0), glass=GLASS)
    text = json.dumps(found.to_dict())
    assert Fingerprint.from_dict(json.loads(text)) == found
    assert found.vendor == "aperio"
    assert found.mpp == pytest.approx(0.23)
    assert "JANE" not in text
    assert slide.name not in text
    assert np.linalg.norm(found.haematoxylin) == pytest.approx(1, abs=1e-3)
    assert found.haematoxylin[0] > found.eosin[0]


def test_distance_grows_with_the_change_of_colour(slide: Slide) -> None:
    """The same slide sampled elsewhere is near; another stain is farther the more it differs."""
    same = fingerprint(slide, patches(0), glass=GLASS)
    elsewhere = fingerprint(slide, patches(1), glass=GLASS)
    assert colour_distance(same, same) == 0
    assert colour_distance(same, elsewhere) < 2.5
    distances = []
    for redder in (0.95, 0.85, 0.7):
        changed = np.rint(patches(1) * (1, redder, 1)).astype(np.uint8)
        distances.append(colour_distance(same, fingerprint(slide, changed, glass=GLASS)))
    assert distances == sorted(distances)
    assert distances[-1] > 10
    assert colour_distance(same, elsewhere) == colour_distance(elsewhere, same)


def test_lab_is_that_of_the_tissue_alone(slide: Slide) -> None:
    """Glass in the patches changes nothing; middle grey has its known CIELAB values."""
    tissue = np.full((4, 64, 64, 3), 128, np.uint8)
    tissue[:, :32] = 243
    found = fingerprint(slide, tissue, glass=GLASS)
    np.testing.assert_allclose(found.mean, (53.585, 0, 0), atol=0.01)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-3)
    assert (found.haematoxylin, found.eosin, found.maxima) == ((), (), ())  # one stain


def test_no_tissue_no_colours(slide: Slide) -> None:
    empty = fingerprint(slide, np.full((2, 64, 64, 3), 243, np.uint8), glass=None)
    assert (empty.mean, empty.glass) == ((), ())
    with pytest.raises(ValueError, match="without tissue colours"):
        colour_distance(empty, empty)
