# SPDX-License-Identifier: Apache-2.0
"""The block-scale swizzle of Blackwell's tensor cores: 128 x 4 scales to 512 bytes.

A scale matrix [rows, cols] is cut into tiles of 128 rows by 4 columns, the last ones padded with
zero bytes. Tiles follow one another along a row of tiles. Inside a tile, scale (r, c) goes to byte

    (r % 32) * 16 + (r // 32) * 4 + c

so 16 neighbouring bytes hold rows r, r + 32, r + 64 and r + 96 of one tile, four columns each.
"""

import torch
from torch import Tensor

TILE_ROWS = 128
TILE_COLS = 4


def padded_shape(rows: int, cols: int) -> tuple[int, int]:
    """Round a scale matrix's shape up to whole tiles.

    Args:
        rows: of the scale matrix. cols: of the scale matrix.
    Returns:
        (rows up to a multiple of 128, cols up to a multiple of 4).
    Example:
        >>> padded_shape(130, 12)
        (256, 12)
    """
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-cols // TILE_COLS) * TILE_COLS


def to_blocked(scales: Tensor) -> Tensor:
    """Rearrange a row-major scale matrix into the swizzle.

    Args:
        scales: [rows, cols] of any one-byte dtype, any size.
    Returns:
        1-D, the same dtype, 512 bytes a tile; padding holds zero bytes.
    Raises:
        TypeError: the dtype is wider than a byte. ValueError: scales is not a matrix.
    Example:
        >>> to_blocked(torch.arange(8, dtype=torch.uint8).view(2, 4))[:20].tolist()
        [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7]
    """
    if scales.element_size() != 1:
        raise TypeError(f"to_blocked: scales must be of a one-byte dtype, got {scales.dtype}")
    if scales.dim() != 2:
        raise ValueError(f"to_blocked: scales must be a matrix, got shape {tuple(scales.shape)}")
    rows, cols = scales.shape
    padded = torch.zeros(padded_shape(rows, cols), dtype=torch.uint8, device=scales.device)
    padded[:rows, :cols] = scales.contiguous().view(torch.uint8)
    tiles = padded.view(-1, 4, 32, padded.shape[1] // TILE_COLS, TILE_COLS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1).view(scales.dtype)


def from_blocked(blocked: Tensor, rows: int, cols: int) -> Tensor:
    """Undo `to_blocked`, dropping the padding.

    Args:
        blocked: of any one-byte dtype, any shape, with the bytes of whole tiles.
        rows: of the scale matrix. cols: of the scale matrix.
    Returns:
        [rows, cols], the same dtype.
    Raises:
        TypeError: the dtype is wider than a byte. ValueError: the size does not fit rows and cols.
    Example:
        >>> scales = torch.arange(6, dtype=torch.uint8).view(2, 3)
        >>> from_blocked(to_blocked(scales), 2, 3).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if blocked.element_size() != 1:
        raise TypeError(f"from_blocked: blocked must be of a one-byte dtype, got {blocked.dtype}")
    padded_rows, padded_cols = padded_shape(rows, cols)
    if blocked.numel() != padded_rows * padded_cols:
        raise ValueError(
            f"from_blocked: {rows} x {cols} scales take {padded_rows * padded_cols} bytes, "
            f"got {blocked.numel()}"
        )
    tiles = blocked.contiguous().view(torch.uint8).view(-1, padded_cols // TILE_COLS, 32, 4, 4)
    matrix = tiles.permute(0, 3, 2, 1, 4).reshape(padded_rows, padded_cols)
    return matrix[:rows, :cols].contiguous().view(blocked.dtype)
