# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

import truth
from cases import GemmCase, GemmInputs
from harness import call
from matmul_suite import IntegerSuite


def constant(k: int, a: int, b: int, a_zero: int | None, b_zero: int | None, device: str):
    """A product whose every a is the same, and every b, with scales of one."""
    values = {"dtype": torch.int8, "device": device}
    a_values, b_values = torch.full((3, k), a, **values), torch.full((9, k), b, **values)
    vectors = {"a_scale": torch.ones(3, device=device), "b_scale": torch.ones(9, device=device)}
    if a_zero is not None:
        vectors["a_zero"] = torch.full((3,), a_zero, dtype=torch.int32, device=device)
    if b_zero is not None:
        vectors["b_zero"] = torch.full((9,), b_zero, dtype=torch.int32, device=device)
    return GemmInputs(GemmCase("int8", 3, 9, k), a_values, b_values, a_values, b_values, vectors)


class TestInt8(IntegerSuite):
    op = "int8"

    @pytest.mark.parametrize(
        ("k", "a", "b", "a_zero", "b_zero", "total"),
        [
            # The largest K of each form, at the ends of the range. 2**31 itself is a float32.
            (131072, -128, -128, None, None, 2**31),
            (131072, -128, 127, None, None, -(128 * 127 * 131072)),
            (131072, 127, 127, None, None, 127 * 127 * 131072),
            (33024, 127, 127, -128, -128, 255 * 255 * 33024),
            (33024, -128, 127, 127, -128, -255 * 255 * 33024),
            (33024, -128, -128, 127, 127, 255 * 255 * 33024),
            (65536, 127, -128, -128, None, -255 * 128 * 65536),
            (65536, -128, 127, None, -128, -128 * 255 * 65536),
        ],
    )
    def test_the_largest_sums(self, device, k, a, b, a_zero, b_zero, total) -> None:
        out = call(constant(k, a, b, a_zero, b_zero, device))
        want = torch.full((3, 9), float(total), dtype=torch.float32).to(torch.bfloat16)
        truth.assert_same_bits(out, want.to(device))
