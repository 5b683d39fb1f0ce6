# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from legacy_blackwell.reference import from_blocked, padded_shape, to_blocked

from .witness import refusal_id

pytestmark = pytest.mark.legacy

RAGGED = [
    (1, 1),
    (1, 4),
    (3, 5),
    (31, 3),
    (32, 4),
    (33, 7),
    (127, 4),
    (128, 4),
    (129, 8),
    (257, 13),
]


def offset(row: int, col: int, cols: int) -> int:
    """Where one scale goes, tile by tile, as the picture in the README shows it."""
    tiles_across = -(-cols // 4)
    tile = (row // 128) * tiles_across + col // 4
    within = row % 128
    return tile * 512 + (within % 32) * 16 + (within // 32) * 4 + col % 4


@pytest.mark.parametrize(("rows", "cols"), RAGGED)
def test_every_scale_goes_where_the_formula_says(rows, cols):
    scales = torch.randint(1, 256, (rows, cols), dtype=torch.uint8)
    expected = [0] * (padded_shape(rows, cols)[0] * padded_shape(rows, cols)[1])
    for row, line in enumerate(scales.tolist()):
        for col, value in enumerate(line):
            expected[offset(row, col, cols)] = value
    assert to_blocked(scales).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn])
@pytest.mark.parametrize(("rows", "cols"), RAGGED)
def test_round_trip(rows, cols, dtype):
    scales = torch.randint(0, 256, (rows, cols), dtype=torch.uint8).view(dtype)
    restored = from_blocked(to_blocked(scales), rows, cols)
    assert restored.dtype == dtype
    assert torch.equal(restored.view(torch.uint8), scales.view(torch.uint8))


def test_blocking_the_padded_matrix_gives_the_same_bytes():
    scales = torch.randint(0, 256, (130, 6), dtype=torch.uint8)
    padded = torch.zeros(256, 8, dtype=torch.uint8)
    padded[:130, :6] = scales
    assert torch.equal(to_blocked(padded), to_blocked(scales))


def test_a_strided_view_is_read_correctly():
    scales = torch.randint(0, 256, (8, 64), dtype=torch.uint8)
    assert torch.equal(to_blocked(scales.T), to_blocked(scales.T.contiguous()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: to_blocked(torch.zeros(4, 4)),
            TypeError,
            "to_blocked: scales must be of a one-byte",
        ),
        (lambda: to_blocked(torch.zeros(4, dtype=torch.uint8)), ValueError, r"got shape \(4,\)"),
        (
            lambda: from_blocked(torch.zeros(4, dtype=torch.uint8), 1, 1),
            ValueError,
            "take 512 bytes",
        ),
        (lambda: from_blocked(torch.zeros(512), 1, 1), TypeError, "torch.float32"),
    ],
    ids=refusal_id,
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
