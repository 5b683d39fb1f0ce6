# SPDX-License-Identifier: Apache-2.0
"""The online transform: every run of R elements along K is multiplied by one R x R matrix."""

import torch
from torch import Tensor


def hadamard_matrix(
    size: int, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str | None = None
) -> Tensor:
    """Build the orthonormal Hadamard matrix in Sylvester's order.

    Args:
        size: a power of two.
        dtype: of the result; entries are +-size**-0.5 rounded to it.
        device: of the result.
    Returns:
        [size, size], symmetric, its own inverse up to the rounding of dtype.
    Raises:
        ValueError: size is not a power of two.
    Example:
        >>> hadamard_matrix(4, dtype=torch.float32).tolist()[1]
        [0.5, -0.5, 0.5, -0.5]
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard_matrix: size must be a power of two, got {size}")
    index = torch.arange(size, device=device)
    shared_bits = index[:, None] & index[None, :]
    parity = torch.zeros_like(shared_bits)
    while bool(shared_bits.any()):
        parity ^= shared_bits & 1
        shared_bits >>= 1
    return ((1 - 2 * parity).double() * size**-0.5).to(dtype)


def rotate(x: Tensor, h: Tensor) -> Tensor:
    """Multiply each run of R elements of the last dim by h, as a row vector times a matrix.

    The kernels multiply bfloat16 by bfloat16 and add in float32. Here the sum is taken in float64
    and rounded once, which is what that sum would be without its own rounding errors.

    Args:
        x: floating point [..., K], K a multiple of R.
        h: floating point [R, R].
    Returns:
        float32 [..., K].
    Raises:
        ValueError: h is not a square matrix, or R does not divide K.
    Example:
        >>> rotate(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    if h.dim() != 2 or h.shape[0] != h.shape[1]:
        raise ValueError(f"rotate: h must be a square matrix, got shape {tuple(h.shape)}")
    if x.shape[-1] % h.shape[0]:
        raise ValueError(f"rotate: R = {h.shape[0]} must divide the last dim of x, {x.shape[-1]}")
    runs = x.double().unflatten(-1, (-1, h.shape[0]))
    return (runs @ h.double()).flatten(-2).float()
