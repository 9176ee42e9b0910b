"""Pictures to patches and back. Two layouts: (channel, row, column) goes in, (row, column, channel) comes out."""

from torch import Tensor


def to_patches(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, H / size, W / size, C * size * size), each patch as (channel, row, column)."""
    x = x.unflatten(-2, (-1, size)).unflatten(-1, (-1, size))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(-3)


def from_output_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The head's patches (B, rows * columns, size * size * 3), each (row, column, channel) -> (B, 3, H, W)."""
    size = round((patches.shape[-1] // 3) ** 0.5)
    x = patches.unflatten(-1, (size, size, 3)).unflatten(1, (rows, columns))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(2, 3).flatten(-2)
