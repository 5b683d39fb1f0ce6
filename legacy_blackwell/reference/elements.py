# SPDX-License-Identifier: Apache-2.0
"""The three small float formats, bit by bit: E2M1 elements, E4M3 elements and scales, E8M0 scales.

Nothing here goes through torch's own float8 or float4 casts, so those stay an independent witness
for the tests.

         sign exponent mantissa  bias  largest  smallest > 0  NaN           Inf
    E2M1   1      2        1       1      6         0.5       none          none
    E4M3   1      4        3       7     448       2**-9      S.1111.111    none
    E8M0   0      8        0     127    2**127    2**-127     11111111      none
"""

from typing import Literal

import torch
from torch import Tensor

E2M1_MAX = 6.0
E4M3_MAX = 448.0

_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1_SIGN_BIT = 8
_E4M3_SIGN_BIT = 0x80
_E4M3_NAN = 0x7F
_E4M3_LARGEST = 0x7E
_E8M0_NAN = 0xFF
_E8M0_LARGEST = 0xFE


def _require_float(x: Tensor, function: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{function}: x must be a floating point tensor, got {x.dtype}")


def _require_codes(codes: Tensor, function: str) -> None:
    if codes.dtype != torch.uint8:
        raise TypeError(f"{function}: codes must be uint8, got {codes.dtype}")


def _look_up(table: list[float], codes: Tensor) -> Tensor:
    return torch.tensor(table, dtype=torch.float32, device=codes.device)[codes.int()]


def encode_e2m1(x: Tensor) -> Tensor:
    """Round to E2M1, nearest even, saturating at +-6.

    Args:
        x: any shape, floating point, without NaN (the format has none).
    Returns:
        uint8 codes 0..15 of the same shape.
    Raises:
        TypeError: x is not floating point. ValueError: x holds a NaN.
    Example:
        >>> encode_e2m1(torch.tensor([0.25, 0.75, 5.0, -9.0])).tolist()
        [0, 2, 6, 15]
    """
    _require_float(x, "encode_e2m1")
    if bool(x.isnan().any()):
        raise ValueError("encode_e2m1: x holds NaN, which E2M1 cannot express")
    # The magnitudes are 0 0.5 1 1.5 | 2 3 | 4 6: three stretches of equal steps. In each, the code
    # is the number of steps plus an even offset, so rounding the steps half to even is rounding the
    # code half to even.
    magnitude = x.abs().clamp(max=E2M1_MAX)
    wide, widest = magnitude >= 2, magnitude >= 4
    steps = torch.round(magnitude * torch.where(widest, 0.5, torch.where(wide, 1.0, 2.0)))
    code = steps.to(torch.uint8) + (wide.to(torch.uint8) + widest.to(torch.uint8)) * 2
    return code + x.signbit().to(torch.uint8) * _E2M1_SIGN_BIT


def decode_e2m1(codes: Tensor) -> Tensor:
    """Give the float32 value of E2M1 codes.

    Args:
        codes: uint8, any shape, each in 0..15.
    Returns:
        float32 of the same shape; code 8 is -0.0.
    Raises:
        TypeError: codes is not uint8. ValueError: a code is above 15.
    Example:
        >>> decode_e2m1(torch.tensor([1, 7, 10], dtype=torch.uint8)).tolist()
        [0.5, 6.0, -1.0]
    """
    _require_codes(codes, "decode_e2m1")
    if bool((codes > 15).any()):
        raise ValueError(f"decode_e2m1: codes must lie in 0..15, got {int(codes.max())}")
    return _look_up([*_E2M1_MAGNITUDES, *(-value for value in _E2M1_MAGNITUDES)], codes)


def pack_e2m1(codes: Tensor) -> Tensor:
    """Put two E2M1 codes into a byte, the even index in the low nibble.

    Args:
        codes: uint8 [..., K], each in 0..15, K even.
    Returns:
        uint8 [..., K / 2].
    Raises:
        TypeError: codes is not uint8. ValueError: K is odd.
    Example:
        >>> pack_e2m1(torch.tensor([1, 7], dtype=torch.uint8)).tolist()
        [113]
    """
    _require_codes(codes, "pack_e2m1")
    if codes.dim() == 0 or codes.shape[-1] % 2:
        raise ValueError(f"pack_e2m1: the last dim must be even, got shape {tuple(codes.shape)}")
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Undo `pack_e2m1`.

    Args:
        packed: uint8 or float4_e2m1fn_x2 [..., K / 2].
    Returns:
        uint8 codes [..., K].
    Raises:
        TypeError: packed is of another dtype.
    Example:
        >>> unpack_e2m1(torch.tensor([113], dtype=torch.uint8)).tolist()
        [1, 7]
    """
    if packed.dtype == torch.float4_e2m1fn_x2:
        packed = packed.view(torch.uint8)
    if packed.dtype != torch.uint8:
        raise TypeError(
            f"unpack_e2m1: packed must be uint8 or float4_e2m1fn_x2, got {packed.dtype}"
        )
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def encode_e4m3(x: Tensor) -> Tensor:
    """Round to E4M3 (the finite-only `fn` variant), nearest even, saturating at +-448.

    Args:
        x: any shape, floating point; NaN stays NaN, infinities saturate.
    Returns:
        uint8 codes of the same shape.
    Raises:
        TypeError: x is not floating point.
    Example:
        >>> encode_e4m3(torch.tensor([1.0, 464.0, -0.001])).tolist()
        [56, 126, 129]
    """
    _require_float(x, "encode_e4m3")
    # 512 is past saturation and keeps infinity away from the exponent arithmetic.
    magnitude = x if x.dtype == torch.float64 else x.float()
    magnitude = magnitude.abs().clamp(max=512.0).nan_to_num(nan=0.0)
    # frexp gives zero the exponent 0; it belongs with the subnormals.
    exponent = torch.where(magnitude == 0, -6, torch.frexp(magnitude).exponent - 1).clamp(min=-6)
    # A step of the mantissa is 2**(exponent - 3). Its inverse is built from bits, because pow() is
    # not exact everywhere; multiplying by it is, so this round() is the only rounding. A quotient
    # of 16 carries into the next binade by itself, and below 2**-6 it is the subnormal's mantissa.
    inverse_step = ((130 - exponent).int() << 23).view(torch.float32)
    quotient = torch.round(magnitude * inverse_step).int()
    code = ((exponent + 6) * 8 + quotient).clamp(max=_E4M3_LARGEST)
    code = torch.where(x.isnan(), _E4M3_NAN, code)
    return (code + _E4M3_SIGN_BIT * x.signbit()).to(torch.uint8)


def decode_e4m3(codes: Tensor) -> Tensor:
    """Give the float32 value of E4M3 codes.

    Args:
        codes: uint8, any shape.
    Returns:
        float32 of the same shape; 0x7f and 0xff are NaN.
    Raises:
        TypeError: codes is not uint8.
    Example:
        >>> decode_e4m3(torch.tensor([56, 126, 129], dtype=torch.uint8)).tolist()
        [1.0, 448.0, -0.001953125]
    """
    _require_codes(codes, "decode_e4m3")
    magnitudes = []
    for code in range(_E4M3_SIGN_BIT):
        exponent, mantissa = divmod(code, 8)
        if exponent == 0:
            magnitudes.append(mantissa / 8 * 2.0**-6)
        else:
            magnitudes.append((1 + mantissa / 8) * 2.0 ** (exponent - 7))
    magnitudes[_E4M3_NAN] = float("nan")
    return _look_up([*magnitudes, *(-value for value in magnitudes)], codes)


def encode_e8m0(x: Tensor, *, rounding: Literal["floor", "nearest"] = "floor") -> Tensor:
    """Round non-negative values to a power of two, saturating at 2**-127 and 2**127.

    Args:
        x: any shape, floating point, >= 0; NaN stays NaN, infinity and zero saturate.
        rounding: "floor" keeps the float32 exponent and drops the mantissa, as every quantizer of
            the legacy library does; "nearest" goes to the nearer power, upward when halfway.
    Returns:
        uint8 codes (the exponent plus 127) of the same shape.
    Raises:
        TypeError: x is not floating point. ValueError: x is negative, or another rounding.
    Example:
        >>> encode_e8m0(torch.tensor([1.0, 3.9, 0.0])).tolist()
        [127, 128, 0]
    """
    _require_float(x, "encode_e8m0")
    if rounding not in ("floor", "nearest"):
        raise ValueError(f"encode_e8m0: rounding must be 'floor' or 'nearest', got {rounding!r}")
    if bool((x < 0).any()):
        raise ValueError(f"encode_e8m0: x must be >= 0, got {float(x.min())}")
    mantissa, exponent = torch.frexp(x.double().nan_to_num(nan=1.0, posinf=2.0**200))
    # frexp's mantissa lies in [0.5, 1): the power below is exponent - 1, and 0.75 is halfway.
    exponent = exponent - 1
    if rounding == "nearest":
        exponent = exponent + (mantissa >= 0.75)
    code = torch.where(x == 0, 0, (exponent + 127).clamp(0, _E8M0_LARGEST))
    return torch.where(x.isnan(), _E8M0_NAN, code).to(torch.uint8)


def decode_e8m0(codes: Tensor) -> Tensor:
    """Give the float32 value of E8M0 codes.

    Args:
        codes: uint8, any shape.
    Returns:
        float32 of the same shape: 2**(code - 127), and NaN for 255.
    Raises:
        TypeError: codes is not uint8.
    Example:
        >>> decode_e8m0(torch.tensor([126, 127, 130], dtype=torch.uint8)).tolist()
        [0.5, 1.0, 8.0]
    """
    _require_codes(codes, "decode_e8m0")
    return _look_up([2.0 ** (code - 127) for code in range(_E8M0_NAN)] + [float("nan")], codes)
