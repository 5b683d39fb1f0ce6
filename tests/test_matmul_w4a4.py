# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

import cases
import truth
from harness import call
from matmul_suite import IntegerSuite


class TestW4A4(IntegerSuite):
    op = "w4a4"

    def test_every_pair_of_values(self, device: str) -> None:
        """Each of the 16 · 16 products alone: one value of a row is not 0, at a changing k."""
        values = list(range(-8, 8))
        a = torch.zeros((256, 64), dtype=torch.int8)
        for row, (value, _) in enumerate(itertools.product(values, values)):
            a[row, row % 64] = value
        for shift in values:
            x = cases.make(cases.GemmCase("w4a4", 256, 16, 64), device)
            x.a_values = a.to(device)
            x.a = cases.pack_by_hand(x.a_values)
            b = torch.tensor(values, dtype=torch.int8).roll(shift)[:, None].expand(16, 64)
            x.b_values = b.contiguous().to(device)
            x.b = cases.pack_by_hand(x.b_values)
            x.vectors = {"a_scale": torch.ones(1), "b_scale": torch.ones(1)}
            x.vectors = {name: v.to(device) for name, v in x.vectors.items()}
            want = x.a_values.sum(1, keepdim=True) * x.b_values[:, 0].int()
            truth.assert_same_bits(call(x), want.to(torch.bfloat16))

    @pytest.mark.parametrize(
        ("a", "b", "a_zero", "b_zero"),
        [(-8, -8, None, None), (-8, 7, None, None), (7, 7, -8, -8), (-8, 7, 7, -8), (7, -8, -8, 7)],
    )
    def test_long_sums_at_the_ends_of_the_range(self, device, a, b, a_zero, b_zero) -> None:
        k = 262144
        x = cases.make(cases.GemmCase("w4a4", 2, 9, k), device)
        x.a_values, x.b_values = torch.full_like(x.a_values, a), torch.full_like(x.b_values, b)
        x.a, x.b = cases.pack_by_hand(x.a_values), cases.pack_by_hand(x.b_values)
        x.vectors = {
            "a_scale": torch.ones(2, device=device),
            "b_scale": torch.ones(9, device=device),
        }
        if a_zero is not None:
            x.vectors["a_zero"] = torch.full((2,), a_zero, dtype=torch.int8, device=device)
            x.vectors["b_zero"] = torch.full((9,), b_zero, dtype=torch.int8, device=device)
        total = k * (a - (a_zero or 0)) * (b - (b_zero or 0))
        want = torch.full((2, 9), float(total), device=device).to(torch.bfloat16)
        truth.assert_same_bits(call(x), want)
