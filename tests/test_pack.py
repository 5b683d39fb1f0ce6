# SPDX-License-Identifier: Apache-2.0
"""pack_int4, unpack_int4 and weight_sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cases
import qutlass
import truth
from harness import PROPERTY, poisoned_memory

SHAPES = [(32,), (1, 32), (5, 64), (0, 32), (3, 0, 96), (2, 3, 5, 160), (77, 4128), (1024, 1024)]
GPU_SHAPES = [(4096, 14336), (14336, 4096), (3, 28672)]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]


def values(shape: tuple[int, ...], name: str) -> torch.Tensor:
    return torch.randint(-8, 8, shape, generator=cases.generator(name), dtype=torch.int8)


def shapes_of(device: str) -> list[tuple[int, ...]]:
    return SHAPES + (GPU_SHAPES if device == "cuda" else [])


def test_the_order_of_the_nibbles(device: str) -> None:
    """The bytes of two blocks, written out."""
    first = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]  # low nibbles 0..f
    second = [7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8]  # high nibbles
    third, fourth = [-1] * 16, [1] * 16
    w = torch.tensor([first + second + third + fourth], dtype=torch.int8, device=device)
    packed = qutlass.pack_int4(w)
    want = bytes.fromhex("7061524334251607f8e9dacbbcad9e8f") + bytes([0x1F] * 16)
    assert packed.dtype == torch.uint8 and packed.shape == (1, 32)
    assert bytes(packed.cpu().numpy()) == want
    assert torch.equal(qutlass.unpack_int4(packed), w)


@pytest.mark.compact
def test_pack(device: str) -> None:
    for shape in shapes_of(device):
        w = values(shape, f"pack {shape}").to(device)
        with poisoned_memory(device, w.numel() // 2, w.numel()):
            packed = qutlass.pack_int4(w)
            back = qutlass.unpack_int4(packed)
        want = cases.pack_by_hand(w)
        truth.assert_same_bits(packed, want, f"pack {shape}")
        truth.assert_same_bits(back, w, f"unpack {shape}")
        truth.assert_same_bits(truth.unpack(packed), w, f"the test's own unpack {shape}")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_pack_takes_every_integer_dtype(device: str, dtype: torch.dtype) -> None:
    low = 0 if dtype == torch.uint8 else -8
    w = torch.randint(low, 8, (37, 96), generator=cases.generator(str(dtype))).to(dtype)
    want = cases.pack_by_hand(w.to(torch.int8))
    truth.assert_same_bits(qutlass.pack_int4(w.to(device)).cpu(), want)


def test_unpack_every_byte(device: str) -> None:
    """All 256 bytes at each of the 16 places of a block."""
    byte = torch.arange(256).view(256, 1).expand(256, 16).to(torch.uint8)
    packed = torch.stack([byte, byte.roll(1, 0)], 1).reshape(256, 32).to(device)
    w = qutlass.unpack_int4(packed)
    assert w.dtype == torch.int8 and w.shape == (256, 64)
    truth.assert_same_bits(w, truth.unpack(packed))
    truth.assert_same_bits(qutlass.pack_int4(w), packed)


def test_pack_rows_apart(device: str) -> None:
    """Row-strided weights; what lies between the rows is out of range and must not be seen."""
    wide = torch.full((9, 128), 99, dtype=torch.int8, device=device)
    wide[:, :96] = values((9, 96), "rows apart").to(device)
    truth.assert_same_bits(qutlass.pack_int4(wide[:, :96]), cases.pack_by_hand(wide[:, :96]))


def test_data_may_start_anywhere(device: str) -> None:
    """Operands that begin at any byte, rows an odd number of elements apart."""
    g = cases.generator("anywhere")
    for offset in (1, 2, 3, 5, 8, 16, 17):
        for dtype in INTEGERS:
            low = 0 if dtype == torch.uint8 else -8
            memory = torch.randint(low, 8, (offset + 9 * 131,), generator=g).to(dtype).to(device)
            w = memory.as_strided((9, 128), (131, 1), offset)
            want = cases.pack_by_hand(w.to(torch.int8))
            truth.assert_same_bits(qutlass.pack_int4(w), want, f"{dtype} from {offset}")
        memory = torch.randint(0, 256, (offset + 9 * 80,), generator=g, dtype=torch.uint8)
        packed = memory.to(device)[offset:].view(9, 80)
        w = truth.unpack(packed)
        truth.assert_same_bits(qutlass.unpack_int4(packed), w, f"from {offset}")
        sums = qutlass.weight_sums(packed, group_size=32)
        truth.assert_same_bits(sums.cpu(), truth.group_sums(w, 32), f"from {offset}")
        w8 = packed.view(torch.int8)
        sums = qutlass.weight_sums(w8)
        truth.assert_same_bits(sums.cpu(), truth.group_sums(w8, 80), f"from {offset}")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("bad", [8, -9, 127, -128, 255, 40000, -(2**40) - 3])
def test_pack_names_the_first_value_out_of_range(device: str, dtype: torch.dtype, bad: int) -> None:
    limits = torch.iinfo(dtype)
    if not limits.min <= bad <= limits.max:
        pytest.skip(f"{dtype} cannot hold {bad}")
    w = torch.zeros((6, 64), dtype=dtype)
    w[3, 41] = bad
    w[5, 2] = 8
    with pytest.raises(ValueError, match=rf"pack_int4.*\[-8, 7\].*{bad}\b") as raised:
        qutlass.pack_int4(w.to(device))
    assert "3" in str(raised.value) and "41" in str(raised.value), "where it is"


@pytest.mark.parametrize("k", [1, 16, 31, 33, 48])
def test_pack_refuses_other_k(device: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"pack_int4.*multiple of 32.*{k}"):
        qutlass.pack_int4(torch.zeros((2, k), dtype=torch.int8, device=device))


@settings(PROPERTY, max_examples=100)
@given(
    hnp.arrays(
        st.sampled_from([np.int8, np.int16, np.int32, np.int64]),
        st.tuples(st.integers(0, 5), st.integers(0, 6).map(lambda blocks: 32 * blocks)),
        elements=st.integers(-8, 7),
    )
)
def test_unpack_is_the_inverse_of_pack(w: np.ndarray) -> None:
    packed = qutlass.pack_int4(torch.from_numpy(w))
    assert packed.shape == (w.shape[0], w.shape[1] // 2)
    np.testing.assert_array_equal(qutlass.unpack_int4(packed).numpy(), w)


# --------------------------------------------------------------------------------------------------


@pytest.mark.compact
@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
def test_weight_sums(device: str, packed: bool) -> None:
    shapes = [(1, 32), (3, 64), (77, 384), (5, 4096), (1025, 160)]
    shapes += [(4096, 14336)] if device == "cuda" else []
    for n, k in shapes:
        low, high = (-8, 7) if packed else (-128, 127)
        g = cases.generator(f"sums {n} {k} {packed}")
        w = torch.randint(low, high + 1, (n, k), generator=g, dtype=torch.int8)
        stored = (cases.pack_by_hand(w) if packed else w).to(device)
        for group in [None, *(g for g in (32, 64, 128, 384, k) if k % g == 0)]:
            keywords = {} if group is None else {"group_size": group}
            with poisoned_memory(device, 4 * n * (k // (group or k))):
                sums = qutlass.weight_sums(stored, **keywords)
            want = truth.group_sums(w, group or k)
            if group == k:
                want = want.reshape(n, 1)
            truth.assert_same_bits(sums.cpu(), want, f"{n}x{k} in groups of {group}")


def test_weight_sums_at_the_ends_of_the_range(device: str) -> None:
    k = 131072
    for value in (-128, 127):
        w = torch.full((2, k), value, dtype=torch.int8, device=device)
        assert qutlass.weight_sums(w).tolist() == [value * k] * 2
    packed = torch.full((2, k // 2), 0x88, dtype=torch.uint8, device=device)
    assert qutlass.weight_sums(packed).tolist() == [-8 * k] * 2
