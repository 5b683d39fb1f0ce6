# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from legacy_blackwell.reference import (
    decode_e2m1,
    decode_e4m3,
    decode_e8m0,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    pack_e2m1,
    unpack_e2m1,
)

from .witness import E2M1_TABLE, every_bfloat16, every_float16, nearest_e2m1, refusal_id

pytestmark = pytest.mark.legacy

ALL_BYTES = torch.arange(256, dtype=torch.uint8)


def test_e2m1_decodes_to_the_specification_table():
    values = decode_e2m1(torch.arange(16, dtype=torch.uint8))
    assert values.tolist() == list(E2M1_TABLE)
    assert math.copysign(1, values[8]) == -1


def test_e2m1_codes_survive_a_round_trip():
    codes = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(encode_e2m1(decode_e2m1(codes)), codes)


@pytest.mark.parametrize("values", [every_bfloat16(), every_float16()], ids=["bf16", "f16"])
def test_e2m1_encodes_every_16_bit_float_to_the_nearest_even(values):
    values = values[~values.isnan()]
    expected = torch.tensor([nearest_e2m1(value) for value in values.tolist()], dtype=torch.uint8)
    assert torch.equal(encode_e2m1(values), expected)


def test_e2m1_ties_round_to_the_even_code():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert decode_e2m1(encode_e2m1(ties)).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    # A float32 one step to either side of a tie is no tie any more.
    up = torch.nextafter(ties, torch.full_like(ties, 9.0))
    assert decode_e2m1(encode_e2m1(up)).tolist() == [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    down = torch.nextafter(ties, torch.zeros_like(ties))
    assert decode_e2m1(encode_e2m1(down)).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]


def test_e2m1_saturates():
    assert decode_e2m1(encode_e2m1(torch.tensor([1e30, math.inf, -math.inf]))).tolist() == [
        6,
        6,
        -6,
    ]


def test_packing_is_exhaustively_invertible():
    codes = torch.stack((ALL_BYTES % 16, ALL_BYTES // 16), dim=-1)
    packed = pack_e2m1(codes).flatten()
    assert torch.equal(packed, ALL_BYTES)
    assert torch.equal(unpack_e2m1(packed[:, None]), codes)


def test_unpack_reads_torchs_packed_float4():
    packed = ALL_BYTES.view(torch.float4_e2m1fn_x2)
    assert torch.equal(unpack_e2m1(packed), unpack_e2m1(ALL_BYTES))


def test_e4m3_decodes_every_code_as_torch_does():
    expected = ALL_BYTES.view(torch.float8_e4m3fn).float()
    assert torch.equal(decode_e4m3(ALL_BYTES).nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))


def test_e4m3_holds_the_specification_limits():
    # OFP8 specification v1.0, E4M3: S.1111.110, S.0001.000, S.0000.111, S.0000.001, S.1111.111.
    values = decode_e4m3(torch.tensor([0x7E, 0x08, 0x07, 0x01, 0x7F], dtype=torch.uint8))
    assert values[:4].tolist() == [448.0, 2.0**-6, 0.875 * 2.0**-6, 2.0**-9]
    assert values[4].isnan()


@pytest.mark.parametrize("values", [every_bfloat16(), every_float16()], ids=["bf16", "f16"])
def test_e4m3_encodes_every_16_bit_float_in_range_as_torch_does(values):
    # Beyond 448 torch's own cast saturated in some releases and gave NaN in others.
    values = values[values.abs() <= 448]
    assert torch.equal(encode_e4m3(values), values.to(torch.float8_e4m3fn).view(torch.uint8))


def test_e4m3_encodes_float32_around_every_tie_as_torch_does():
    finite = decode_e4m3(torch.arange(0x7F, dtype=torch.uint8))
    ties = (finite[:-1] + finite[1:]) / 2
    around = torch.cat(
        [ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, torch.zeros_like(ties))]
    )
    around = torch.cat([around, -around])
    assert torch.equal(encode_e4m3(around), around.to(torch.float8_e4m3fn).view(torch.uint8))


def test_e4m3_saturates_and_keeps_nan():
    codes = encode_e4m3(torch.tensor([449.0, 464.0, 465.0, 1e30, math.inf, -math.inf, math.nan]))
    assert codes.tolist() == [0x7E] * 5 + [0xFE, 0x7F]


def test_e8m0_decodes_every_code_as_torch_does():
    expected = ALL_BYTES.view(torch.float8_e8m0fnu).float()
    assert torch.equal(decode_e8m0(ALL_BYTES).nan_to_num(nan=0), expected.nan_to_num(nan=0))


def test_e8m0_codes_survive_a_round_trip():
    for rounding in ("floor", "nearest"):
        assert torch.equal(encode_e8m0(decode_e8m0(ALL_BYTES), rounding=rounding), ALL_BYTES)


def test_e8m0_floor_is_the_largest_power_not_above():
    values = every_bfloat16()
    values = values[(values >= 2.0**-127) & values.isfinite()]
    powers = decode_e8m0(encode_e8m0(values))
    assert bool((powers <= values.float()).all())
    # Doubling the last power overflows float32, so the comparison is made in float64.
    assert bool((2 * powers.double() > values.double()).all())


def test_e8m0_nearest_agrees_with_torch_on_normal_numbers():
    values = every_bfloat16()
    values = values[(values >= 2.0**-126) & (values < 1.5 * 2.0**127)].float()
    expected = values.to(torch.float8_e8m0fnu).view(torch.uint8)
    assert torch.equal(encode_e8m0(values, rounding="nearest"), expected)


def test_e8m0_saturates_and_keeps_nan():
    values = torch.tensor([0.0, 1e-45, 3e38, math.inf, math.nan])
    assert encode_e8m0(values).tolist() == [0, 0, 254, 254, 255]
    assert encode_e8m0(values, rounding="nearest").tolist() == [0, 0, 254, 254, 255]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encode_e2m1(torch.tensor([math.nan])), ValueError, "NaN"),
        (lambda: encode_e2m1(torch.tensor([1])), TypeError, "encode_e2m1: x must be a floating"),
        (lambda: encode_e4m3(torch.tensor([1])), TypeError, "torch.int64"),
        (lambda: encode_e8m0(torch.tensor([-1.0])), ValueError, "must be >= 0, got -1"),
        (lambda: encode_e8m0(torch.ones(1), rounding="up"), ValueError, "'floor' or 'nearest'"),
        (lambda: decode_e2m1(torch.tensor([16], dtype=torch.uint8)), ValueError, "got 16"),
        (lambda: decode_e4m3(torch.tensor([1])), TypeError, "decode_e4m3: codes must be uint8"),
        (lambda: pack_e2m1(torch.zeros(3, dtype=torch.uint8)), ValueError, "must be even"),
        (lambda: unpack_e2m1(torch.zeros(3)), TypeError, "torch.float32"),
    ],
    ids=refusal_id,
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
