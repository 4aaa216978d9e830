"""From a scanner's own colours to sRGB, by the ICC profile that the slide carries. Off unless a
PatchSpec asks for it.

LittleCMS through Pillow; perceptual intent, as viewers do it.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> Any:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")


def check_profile(profile: bytes) -> None:
    """Refuse a profile that can't be used.

    Raises:
        ValueError: it is damaged or not of an RGB device.
    """
    try:
        _transform(profile)
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"has an ICC profile that can't be used ({error})") from error


def to_srgb(patch: NDArray[np.uint8], profile: bytes) -> None:
    """Bring patches, uint8 [N, H, W, 3], C-contiguous, to sRGB in place.

    Raises:
        ValueError: the profile is damaged or not of an RGB device.
    """
    check_profile(profile)
    picture = Image.fromarray(patch.reshape(-1, patch.shape[2], 3))
    ImageCms.applyTransform(picture, _transform(profile), inPlace=True)
    patch[...] = np.asarray(picture).reshape(patch.shape)
