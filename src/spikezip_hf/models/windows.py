# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Windows of a feature map, shifted or not (Liu et al. 2021, "Swin Transformer", arXiv:2103.14030, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import nn


def pad_grid(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(rows, height, width, features) with zeros at the bottom and to the right, up to `size`."""
    if tuple(x.shape[1:3]) == size:
        return x
    return nn.functional.pad(x, (0, 0, 0, size[1] - x.shape[2], 0, size[0] - x.shape[1]))


@dataclass(frozen=True)
class Windows:
    """How a feature map is cut into square windows: padded to a multiple of their size, shifted around, and cut.

    Windows are a dimension behind the rows, and not more rows: rows are steps and samples of a simulation.

    Args:
        grid: (height, width) of the feature map.
        size: of a window, in positions.
        shift: by how many positions, up and to the left, before it is cut.
    """

    grid: tuple[int, int]
    size: int
    shift: int = 0

    @classmethod
    def of(cls, grid: tuple[int, int], size: int, shifted: bool) -> "Windows":
        """Those of transformers' Swin: a window is no larger than the map, and none is shifted where one spans it."""
        if min(grid) <= size:
            return cls(grid, min(grid))
        return cls(grid, size, size // 2 if shifted else 0)

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows there are, (down, across)."""
        return -(-self.grid[0] // self.size), -(-self.grid[1] // self.size)

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of what is cut."""
        return self.counts[0] * self.size, self.counts[1] * self.size

    def partition(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, height * width, features) to (rows, windows, size * size, features)."""
        x = pad_grid(x.unflatten(1, self.grid), self.padded)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        return self.cut(x)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, padded height, padded width, features) to (rows, windows, size * size, features)."""
        (down, across), size = self.counts, self.size
        x = x.unflatten(2, (across, size)).unflatten(1, (down, size))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """What `partition` has cut, together again: (rows, height * width, features)."""
        (height, width), (down, across), size = self.grid, self.counts, self.size
        x = x.unflatten(2, (size, size)).unflatten(1, (down, across)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width].flatten(1, 2)

    def mask(self, like: torch.Tensor) -> torch.Tensor:
        """(windows, size * size, size * size), -100 for two positions that only the shift has brought together."""
        rows, columns = (self.regions(side, like.device) for side in self.padded)
        regions = self.cut((rows[:, None] * 3 + columns)[None, :, :, None]).squeeze((0, -1))
        apart = regions[:, None, :] != regions[:, :, None]
        return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, -100.0)

    def regions(self, side: int, device: torch.device) -> torch.Tensor:
        """(side,) which of three parts, of those that the shift has put beside one another, a position is in."""
        place = torch.arange(side, device=device)
        return (place >= side - self.size).long() + (place >= side - self.shift).long()

    def offsets(self, device: torch.device) -> torch.Tensor:
        """(size * size, size * size, 2), how far two positions of a window are apart, down and across."""
        side = torch.arange(self.size, device=device)
        places = torch.cartesian_prod(side, side)
        return places[:, None] - places
