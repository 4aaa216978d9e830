"""Multi-crop: a few large and some small views of each patch, as batched tensor operations on the
training device.

Cropping, resizing with antialiasing, flipping and blurring are all linear along each axis, so one
view of a whole batch is two matrix products: `rows @ patch @ columns`. Every random number comes
from the generator that is handed in, drawn on the CPU: the same generator state gives the same
views on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.stain_augment import StainJitter, jitter_stains


@dataclass(frozen=True, kw_only=True)
class View:
    """One kind of crop.

    Attributes:
        size: side of the crop in px after resizing; a multiple of the network's token size.
        scale: minimum and maximum share of the patch's area that a crop covers.
        count: crops of this kind per patch.
        aspect: maximum ratio between a crop's sides before resizing (its inverse is the smallest).
        blur: probability of a Gaussian blur, for each crop of the kind in turn; the last value
            holds for the rest.
        blur_sigma: minimum and maximum standard deviation of the blur in px of the crop.
    """

    size: int
    scale: tuple[float, float]
    count: int
    aspect: float = 4 / 3
    blur: tuple[float, ...] = (0.5,)
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"crop scale {self.scale}: expected 0 < smallest <= largest <= 1")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """All views of a patch; defaults are DINOv2's, with 96 px instead of 98 px local crops for
    tokens of 16 px.

    Attributes:
        global_views: large views, which teacher and student see; at least 2.
        local_views: small views, which only the student sees.
        stain: colour jitter, drawn anew for each crop.
        mean: of the red, green and blue channel in 0..1; views leave normalised.
        std: likewise.
    """

    global_views: View = field(
        default_factory=lambda: View(size=224, scale=(0.32, 1.0), count=2, blur=(1.0, 0.1))
    )
    local_views: View = field(default_factory=lambda: View(size=96, scale=(0.05, 0.32), count=8))
    stain: StainJitter = field(default_factory=StainJitter)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Crops:
    """Views of N patches, by kind: [count, N, size, size, 3], float, normalised."""

    global_views: Tensor
    local_views: Tensor


def multi_crop(patches: Tensor, config: CropConfig, generator: torch.Generator) -> Crops:
    """Cut all views of `patches` (uint8 or float in 0..255, [N, H, W, 3]) on the device where they
    are.
    """
    return Crops(
        global_views=_views(patches, config.global_views, config, generator),
        local_views=_views(patches, config.local_views, config, generator),
    )


def cut_view(patches: Tensor, view: View, generator: torch.Generator, number: int = 0) -> Tensor:
    """The `number`-th view of each patch, colours as they are: [N, 3, size, size] in 0..1."""
    return _resample(patches, _draw(patches.shape, view, number, generator))


def _views(patches: Tensor, view: View, config: CropConfig, generator: torch.Generator) -> Tensor:
    mean = torch.tensor(config.mean, device=patches.device)[:, None, None]
    std = torch.tensor(config.std, device=patches.device)[:, None, None]
    made = []
    for k in range(view.count):
        crop = jitter_stains(cut_view(patches, view, generator, k), config.stain, generator)
        made.append(crop.sub_(mean).div_(std).permute(0, 2, 3, 1))
    if not made:
        return torch.empty(0, len(patches), view.size, view.size, 3, device=patches.device)
    return torch.stack(made)


@dataclass(frozen=True)
class _Draw:
    """How to cut one view of n patches: source rows [n, h], matrices rows [n, size, h] and columns
    [n, size, W], turned [n].
    """

    window: Tensor
    rows: Tensor
    columns: Tensor
    turned: Tensor


def _draw(shape: torch.Size, view: View, k: int, generator: torch.Generator) -> _Draw:
    n, height, width, _ = shape
    uniform = torch.rand(9, n, generator=generator)
    area = (view.scale[0] + (view.scale[1] - view.scale[0]) * uniform[0]) * height * width
    aspect = torch.exp((2.0 * uniform[1] - 1.0) * math.log(view.aspect))
    crop_height = (area / aspect).sqrt().clamp(max=float(height))
    crop_width = (area * aspect).sqrt().clamp(max=float(width))
    top, left = uniform[2] * (height - crop_height), uniform[3] * (width - crop_width)
    # Only the rows that a crop needs take part: as many for each patch, so that the batch stays one
    # product.
    reach = math.ceil(height / view.size)  # of the filter beyond the crop
    tallest = math.ceil(math.sqrt(view.scale[1] * height * width * view.aspect))
    needed = min(height, tallest + 2 * reach + 2)
    first = (top.long() - reach).clamp(0, height - needed)
    rows = resampling(top - first, crop_height, uniform[4] < 0.5, size=view.size, source=needed)
    columns = resampling(left, crop_width, uniform[5] < 0.5, size=view.size, source=width)
    blurred = uniform[6] < view.blur[min(k, len(view.blur) - 1)]
    sigma = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * uniform[7]
    kernel = blurring(torch.where(blurred, sigma, 0.0), view.size)
    window = first[:, None] + torch.arange(needed)
    return _Draw(
        window=window, rows=kernel @ rows, columns=kernel @ columns, turned=uniform[8] < 0.5
    )


def _resample(patches: Tensor, draw: _Draw) -> Tensor:
    """Views [N, 3, size, size] in 0..1."""
    device = patches.device
    n, size, height = draw.rows.shape
    width = patches.shape[2]
    source = patches[torch.arange(n, device=device)[:, None], draw.window.to(device)].view(
        n, height, width * 3
    )
    tall = (
        torch.bmm(draw.rows.to(device), source.to(torch.float32))
        .view(n, size, width, 3)
        .permute(0, 3, 1, 2)
    )
    crop = torch.bmm(
        tall.reshape(n, 3 * size, width), draw.columns.to(device).transpose(1, 2)
    ).view(n, 3, size, size)
    turned = draw.turned.to(device)[:, None, None, None]
    crop = torch.where(turned, crop.transpose(-1, -2), crop)  # with the flips: all 8 symmetries
    return crop.div_(255.0).clamp_(0.0, 1.0)


def resampling(start: Tensor, length: Tensor, flipped: Tensor, *, size: int, source: int) -> Tensor:
    """Matrices [n, size, source] that resize `source[start : start + length]` to `size` px with an
    antialiasing triangle filter.

    Args:
        start: first position of each crop on the source axis, may be fractional.
        length: of each crop on the source axis.
        flipped: whether to mirror each crop.
        size: px after resizing.
        source: px before.
    """
    step = (length / size)[:, None, None]
    position = (torch.arange(size) + 0.5)[None, :, None]
    centre = (
        start[:, None, None] + torch.where(flipped[:, None, None], size - position, position) * step
    )
    pixel = (torch.arange(source) + 0.5)[None, None, :]
    weight = (pixel - centre).abs_().div_(-step.clamp(min=1.0)).add_(1.0).clamp_(min=0.0)
    return weight.div_(weight.sum(dim=-1, keepdim=True))


def blurring(sigma: Tensor, size: int) -> Tensor:
    """Matrices [n, size, size] that blur an axis with a Gaussian; the identity where sigma is 0."""
    distance = (torch.arange(size)[:, None] - torch.arange(size)[None, :]).float().pow_(2)[None]
    weight = (distance / (-2.0 * sigma.clamp(min=1e-3).square())[:, None, None]).exp_()
    return weight.div_(weight.sum(dim=-1, keepdim=True))
