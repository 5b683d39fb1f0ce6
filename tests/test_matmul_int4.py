# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cases
import truth
from cases import GemmCase
from harness import call
from matmul_suite import MatmulSuite


class TestInt4(MatmulSuite):
    op = "int4"

    @pytest.mark.parametrize("group", [32, 64, 128, "K"])
    @pytest.mark.parametrize("zero", ["", "row.i8", "row.f32"], ids=["none", "int", "fraction"])
    def test_the_error_stays_bounded_at_any_k(self, device: str, group, zero: str) -> None:
        case = cases.case_for("int4", 9, 40, 49152, {"group": group, "b_zero": zero})
        x = cases.make(case, device)
        truth.assert_right(call(x), x)

    @pytest.mark.parametrize("mean", [1.0, 16.0])
    def test_activations_with_a_mean(self, device: str, mean: float) -> None:
        """Zero points taken out after the product would have to cancel two large sums; the bound
        holds whichever way the operator takes."""
        for zero in ("row.i8", "row.bf16", "row.f32"):
            x = cases.make(GemmCase("int4", 18, 72, 2048, 64, b_zero=zero), device)
            shifted = (x.a_values.float() * 0.25 + mean).to(torch.bfloat16)
            x = replace(x, a=shifted, a_values=shifted)
            truth.assert_right(call(x), x)

    def test_each_weight_meets_its_own_activation(self, device: str) -> None:
        """With the identity for activations the output is the dequantized weight, transposed."""
        k, n = 256, 48
        for group in (32, 64, 128, 256):
            x = cases.make(GemmCase("int4", k, n, k, group, b_zero="row.i32"), device)
            eye = torch.eye(k, dtype=torch.bfloat16, device=device)
            x = replace(x, a=eye, a_values=eye)
            out, want = call(x).float(), truth.float_product(x).float()
            # A weight dequantized in bfloat16 and then multiplied by 1 is rounded only once.
            assert ((out - want).abs() <= want.abs() * 2.0**-8).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_not_finite_stays_in_its_row(self, device: str, bad: float) -> None:
        x = cases.make(GemmCase("int4", 33, 70, 512, 128, b_zero="row.i8"), device)
        clean = call(x)
        spoilt = x.a_values.clone()
        spoilt[17, 301] = bad
        out = call(replace(x, a=spoilt, a_values=spoilt))
        assert not out[17].isfinite().any()
        others = [row for row in range(33) if row != 17]
        truth.assert_same_bits(out[others], clean[others])
