"""Where things are on a slide: points in pixels of level 0, sizes in pixels of their own level.

The two are different types on purpose: adding a size of level 2 to a point of level 0 is the
classic silent error.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Point:
    """A position in pixels of level 0; x to the right, y down, from the top-left corner."""

    x: int
    y: int


@dataclass(frozen=True)
class Size:
    """A width and a height in pixels of one level; both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"size {self.width} x {self.height} px: both sides must be at least 1")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width): the order of array axes."""
        return self.height, self.width

    def shrunk(self, scale: int) -> Size:
        """Whole pixels that remain when `scale` x `scale` are made one; at least 1."""
        return Size(max(1, self.width // scale), max(1, self.height // scale))


@dataclass(frozen=True)
class Rectangle:
    """An area of level 0: its top-left corner and its size, both in pixels of level 0."""

    origin: Point
    size: Size


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of a slide's pyramid.

    Attributes:
        index: 0 is the finest.
        size: pixels of this level.
        downsample: level-0 pixels per pixel of this level, from the widths and heights (>= 1).
        tile: the stored tile's size, None if the format does not name one.
    """

    index: int
    size: Size
    downsample: float
    tile: Size | None = None

    def shrunk(self, scale: int) -> Level:
        """The level with `scale` x `scale` pixels made one; a remainder at the edges is cut off."""
        if scale == 1:
            return self
        tile = None if self.tile is None else self.tile.shrunk(scale)
        return Level(
            index=self.index,
            size=self.size.shrunk(scale),
            downsample=self.downsample * scale,
            tile=tile,
        )
