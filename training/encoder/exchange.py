"""Embeddings of a slide as other tools read them: HDF5 files of TRIDENT and of STAMP.

TRIDENT (mahmoodlab, `WSI.extract_patch_features`): `features` float32 [N, D]; `coords` int64
[N, 2], left and top in level-0 pixels, with the patch's size and magnifications as attributes.
STAMP 2 (KatherLab, `preprocessing/__init__.py`): `feats` float16 [N, D]; `coords` float32 [N, 2],
left and top in um; attributes name the extractor and the tile's size.
"""

from __future__ import annotations

import io
from typing import Any, Final, Literal

import h5py
import numpy as np

from pipelines import storage
from training.encoder.embed import Bag
from training.encoder.encoder import Encoder
from training.errors import RunError

Format = Literal["trident", "stamp"]
MAGNIFICATIONS: Final = (80, 60, 40, 20, 10, 5)
"""That TRIDENT knows; an objective's pixels are 10 um divided by its magnification."""
STAMP_VERSION: Final = "2.1.0"
"""The first that reads these attributes; STAMP refuses files of a version newer than itself."""


def file_names(rows: list[dict[str, Any]], *, by_name: bool) -> dict[str, str]:
    """Names of the files by slide id: slide ids, or the names of the slides' own files.

    Raises:
        RunError: two slides have the same name.
    """
    if not by_name:
        return {row["slide_id"]: row["slide_id"] for row in rows}
    names = {row["slide_id"]: storage.object_name(row["uri"]).rpartition(".")[0] for row in rows}
    if len(set(names.values())) < len(names):
        [twice, *_] = sorted(
            name for name in names.values() if list(names.values()).count(name) > 1
        )
        raise RunError(f"two slides are called {twice!r}; name the files by slide id")
    return names


def write_features(uri: str, bag: Bag, row: dict[str, Any], encoder: Encoder, form: Format) -> None:
    """Write the embeddings of one slide.

    Args:
        uri: of the file, `.h5`; its name is the slide's in the file.
        bag: embeddings.
        row: of the cohort table.
        encoder: that embedded.
        form: whose format.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        if form == "trident":
            _trident(file, storage.object_name(uri).removesuffix(".h5"), bag, row, encoder)
        else:
            _stamp(file, bag, row, encoder)
    storage.write_bytes(uri, content.getvalue())


def _trident(file: h5py.File, name: str, bag: Bag, row: dict[str, Any], encoder: Encoder) -> None:
    side = encoder.spec.side_um
    target = _magnification(encoder.spec.mpp)
    features = file.create_dataset("features", data=bag.embeddings)
    features.attrs.update({"name": name, "savetodir": "", "encoder": encoder.name})
    coords = file.create_dataset("coords", data=np.stack([bag.x, bag.y], axis=1).astype(np.int64))
    coords.attrs.update(
        {
            "patch_size": round(side * target / 10),
            "patch_size_level0": round(bag.patch_side),
            "level0_magnification": _magnification(row["mpp"]),
            "target_magnification": target,
            "overlap": round(encoder.spec.overlap * encoder.spec.mpp * target / 10),
            "name": name,
            "savetodir": "",
            "level0_width": row["width"],
            "level0_height": row["height"],
        }
    )


def _stamp(file: h5py.File, bag: Bag, row: dict[str, Any], encoder: Encoder) -> None:
    corners = np.stack([bag.x, bag.y], axis=1) * row["mpp"]
    file.create_dataset("coords", data=corners.astype(np.float32))
    file.create_dataset("feats", data=bag.embeddings.astype(np.float16))
    file.attrs.update(
        {
            "stamp_version": STAMP_VERSION,
            "extractor": encoder.name,
            "unit": "um",
            "tile_size_um": float(encoder.spec.side_um),
            "tile_size_px": encoder.spec.size,
            "code_hash": encoder.hash[:8],
            "feat_type": "tile",
        }
    )


def _magnification(mpp: float) -> int:
    return min(MAGNIFICATIONS, key=lambda each: abs(np.log(each * mpp / 10)))
