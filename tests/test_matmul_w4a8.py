# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

import cases
import truth
from cases import GemmCase
from harness import call
from matmul_suite import IntegerSuite


class TestW4A8(IntegerSuite):
    op = "w4a8"

    @pytest.mark.parametrize(
        ("k", "a", "b", "a_zero", "b_zero"),
        [
            # The largest K, at the ends of the range.
            (131040, -128, -8, None, None),
            (131040, -128, 7, None, None),
            (131040, 127, 7, -128, -8),
            (131040, -128, 7, 127, -8),
        ],
    )
    def test_the_largest_sums(self, device, k, a, b, a_zero, b_zero) -> None:
        x = cases.make(GemmCase("w4a8", 1, 9, k), device)
        x.a = x.a_values = torch.full_like(x.a_values, a)
        x.b_values = torch.full_like(x.b_values, b)
        x.b = cases.pack_by_hand(x.b_values)
        x.vectors = {
            "a_scale": torch.ones(1, device=device),
            "b_scale": torch.ones(9, device=device),
        }
        if a_zero is not None:
            x.vectors["a_zero"] = torch.full((1,), a_zero, dtype=torch.int32, device=device)
            x.vectors["b_zero"] = torch.full((9,), b_zero, dtype=torch.int32, device=device)
        total = k * (a - (a_zero or 0)) * (b - (b_zero or 0))
        want = torch.full((1, 9), float(total), device=device).to(torch.bfloat16)
        truth.assert_same_bits(call(x), want)

    @pytest.mark.parametrize("group", [32, 64, 128])
    def test_every_multiplier_and_zero(self, device: str, group: int) -> None:
        """Each multiplier of 1..15 with each zero that keeps its weights inside int8."""
        pairs = [
            (m, z)
            for m in range(1, 16)
            for z in range(-120, 121)
            if m * (7 - z) <= 127 and m * (-8 - z) >= -128
        ]
        assert {m for m, _ in pairs} == set(range(1, 16))
        groups = 4
        n = -(-len(pairs) // groups)
        pairs += pairs[: n * groups - len(pairs)]
        x = cases.make(
            GemmCase("w4a8", 5, n, group * groups, group, True, b_zero="row.i8", b_sum=True), device
        )
        multiplier, zero = torch.tensor(pairs).reshape(n, groups, 2).unbind(-1)
        x.vectors["b_multiplier"] = multiplier.to(torch.uint8).to(device)
        x.vectors["b_zero"] = zero.to(torch.int8).to(device)
        truth.assert_right(call(x), x)

    def test_the_largest_sum_with_multipliers(self, device: str) -> None:
        k, group = 65536, 128
        x = cases.make(
            GemmCase("w4a8", 1, 9, k, group, True, a_zero="row.i32", b_zero="row.i8"), device
        )
        x.a = x.a_values = torch.full_like(x.a_values, 127)
        x.vectors["a_zero"].fill_(-128)
        x.b_values = torch.full_like(x.b_values, -8)
        x.b = cases.pack_by_hand(x.b_values)
        x.vectors["b_multiplier"].fill_(8)
        x.vectors["b_zero"].fill_(8)
        x.vectors["a_scale"].fill_(1)
        x.vectors["b_scale"].fill_(1)
        want = torch.full((1, 9), -255.0 * 128 * k, device=device).to(torch.bfloat16)
        truth.assert_same_bits(call(x), want)

    @pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "asymmetric"])
    def test_group_scales_beyond_the_integer_limit_of_k(self, device: str, zero: bool) -> None:
        """Only each group's sum has to fit int32 where float32 sums cross groups."""
        zeros = {"a_zero": "row.i32", "b_zero": "row.i8", "b_sum": True} if zero else {}
        x = cases.make(GemmCase("w4a8", 2, 9, 1048576, 128, **zeros), device)
        truth.assert_right(call(x), x)

    def test_one_group_is_a_scale_per_row(self, device: str) -> None:
        """b_scale [N, 1] reads the same either way, so its bits are those of [N]."""
        x = cases.make(GemmCase("w4a8", 33, 65, 128, b_scale="col.f32", bias="f32"), device)
        truth.assert_same_bits(call(x), truth.exact_product(x))

    def test_multipliers_of_one_change_nothing(self, device: str) -> None:
        plain = cases.make(GemmCase("w4a8", 19, 70, 512, a_zero="row.i32", bias="bf16"), device)
        grouped = cases.make(GemmCase("w4a8", 19, 70, 512, 64, True, a_zero="row.i32"), device)
        grouped.a, grouped.b = plain.a, plain.b
        multiplier = torch.ones_like(grouped.vectors["b_multiplier"])
        grouped.vectors = {**plain.vectors, "b_multiplier": multiplier}
        truth.assert_same_bits(call(grouped), call(plain))
