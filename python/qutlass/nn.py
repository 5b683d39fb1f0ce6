# SPDX-License-Identifier: Apache-2.0
"""Quantized drop-in layers for torch models.

>>> import torch, qutlass.nn
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
>>> model, report = qutlass.nn.quantize_model(model, "w8a8")
>>> report.count, model(torch.randn(5, 64)).shape
(2, torch.Size([5, 8]))

Inference only: the operators have no gradient.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops

__all__ = ["PRESETS", "QuantLinear", "QuantizationReport", "Scheme", "is_linear", "quantize_model"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_GROUP_SIZES = (32, 64, 128)
_PAIRS = (("int8", "int8"), ("int4", "bf16"), ("int4", "int8"), ("int4", "int4"))
# Shrink factors that the clip search tries. An INT4 row of a few thousand near-Gaussian weights is
# best clipped at about 0.7 of its maximum; rows with outliers lower.
_CLIP_RATIOS = tuple(r / 100 for r in range(100, 38, -2))
_NAME = re.compile(
    r"w(?P<w>[48])a(?P<a>4|8|16)(?:_g(?P<g>\d+))?(?P<mul>_mul)?(?P<zp>_zp)?(?P<azp>_azp)?"
    r"(?P<clip>_clip)?"
)


@dataclass(frozen=True)
class Scheme:
    """How a linear layer's weights and activations are stored and multiplied.

    A scheme has a name, `w{4|8}a{4|8|16}` followed by any of, in this order: `_g{32|64|128}` group
    size, `_mul` integer group multipliers, `_zp` weights with zero points, `_azp` activations with
    zero points, `_clip` clip search: "w4a16_g32_zp" is INT4 weights in groups of 32 with zero
    points against bfloat16 activations.

    Args:
        weights: "int8" or "int4".
        activations: "bf16" (weight-only), "int8" or "int4"; quantized per token at run time.
            Taken together: int8 with int8; int4 with bf16, int8 or int4.
        group_size: Input features that share a weight scale: 32, 64 or 128. None: one scale for
            each output feature. Only for int4 weights with bf16 or int8 activations.
        symmetric_weights: False gives each weight scale a zero point.
        symmetric_activations: False gives each token a zero point.
        multipliers: Split group scales into a float scale per output feature and an integer
            multiplier per group (QServe, arXiv 2405.04532), so that a grouped W4A8 product stays
            one exact integer sum.
        clip_search: Choose each weight scale by its mean squared error over a grid of clips,
            instead of by the largest weight.
        scale_dtype: How weight scales are stored. None: float32 for one scale per output feature,
            bfloat16 for groups, where the scales weigh more. The weights are quantized against the
            rounded scale, so that its rounding costs next to nothing.

    Raises:
        ValueError: A combination that no operator multiplies.

    Example:
        >>> Scheme("int4", "int8", group_size=128).name
        'w4a8_g128'
    """

    weights: Literal["int8", "int4"]
    activations: Literal["bf16", "int8", "int4"]
    group_size: int | None = None
    symmetric_weights: bool = True
    symmetric_activations: bool = True
    multipliers: bool = False
    clip_search: bool = False
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if (self.weights, self.activations) not in _PAIRS:
            taken = ", ".join(f"{w} with {a}" for w, a in _PAIRS)
            raise ValueError(
                f"Scheme: weights with activations must be one of ({taken}), "
                f"got {self.weights} with {self.activations}"
            )
        grouped = self.weights == "int4" and self.activations in ("bf16", "int8")
        if self.group_size is not None:
            if not grouped:
                raise ValueError(
                    "Scheme: group_size is taken for int4 weights with bf16 or int8 activations, "
                    f"got {self.group_size} for {self.weights} with {self.activations}"
                )
            if self.group_size not in _GROUP_SIZES:
                raise ValueError(
                    f"Scheme: group_size must be one of {_GROUP_SIZES} or None, "
                    f"got {self.group_size}"
                )
        if self.multipliers and (self.group_size is None or self.activations != "int8"):
            raise ValueError(
                "Scheme: multipliers are taken for int4 weights with int8 activations and a "
                f"group_size, got {self.weights} with {self.activations}, group_size "
                f"{self.group_size}"
            )
        if not self.symmetric_activations and self.activations == "bf16":
            raise ValueError("Scheme: symmetric_activations must be True for bf16 activations")
        if self.scale_dtype is not None and self.scale_dtype not in _FLOATS:
            raise ValueError(
                "Scheme: scale_dtype must be float32, bfloat16, float16 or None, "
                f"got {self.scale_dtype}"
            )

    @property
    def name(self) -> str:
        """The name that `parse` reads; `scale_dtype` is not part of it."""
        bits = {"int4": "4", "int8": "8", "bf16": "16"}
        parts = [f"w{bits[self.weights]}a{bits[self.activations]}"]
        if self.group_size is not None:
            parts.append(f"g{self.group_size}")
        if self.multipliers:
            parts.append("mul")
        if not self.symmetric_weights:
            parts.append("zp")
        if not self.symmetric_activations:
            parts.append("azp")
        if self.clip_search:
            parts.append("clip")
        return "_".join(parts)

    @classmethod
    def parse(cls, name: str | Scheme) -> Scheme:
        """Make a scheme from its name; a scheme is returned as it is.

        Args:
            name: As the class describes, in upper or lower case.

        Raises:
            ValueError: No such name, or a combination that no operator multiplies.

        Example:
            >>> Scheme.parse("w4a16_g32_zp").group_size
            32
        """
        if isinstance(name, Scheme):
            return name
        match = _NAME.fullmatch(name.lower())
        if match is None:
            raise ValueError(
                "Scheme: the name must be w{4|8}a{4|8|16}[_g{32|64|128}][_mul][_zp][_azp][_clip], "
                f"such as {', '.join(PRESETS)}; got {name!r}"
            )
        return cls(
            weights="int" + match["w"],
            activations="bf16" if match["a"] == "16" else "int" + match["a"],
            group_size=int(match["g"]) if match["g"] else None,
            multipliers=bool(match["mul"]),
            symmetric_weights=not match["zp"],
            symmetric_activations=not match["azp"],
            clip_search=bool(match["clip"]),
        )

    @property
    def block(self) -> int:
        """The multiple that the operators want K to be."""
        return 16 if self.weights == "int8" else 32


# The schemes by the names people know; any other combination is spelled the same way.
PRESETS: dict[str, Scheme] = {
    name: Scheme.parse(name)
    for name in (
        "w8a8",
        "w4a16",
        "w4a16_g32",
        "w4a16_g32_zp",
        "w4a16_g64_zp",
        "w4a16_g128",
        "w4a16_g128_zp",
        "w4a8",
        "w4a8_g128",
        "w4a8_g128_mul",
        "w4a4",
    )
}


class QuantLinear(nn.Module):
    """A linear layer with quantized weights, in place of `torch.nn.Linear`.

    Takes float32, bfloat16 or float16 with any leading dims and returns the same dtype; the product
    itself is bfloat16. Input features are zero-padded to what the operator needs, the weight once
    and the activations in each call. Weights are quantized by `from_linear`; the constructor makes
    a zero weight, to be filled by `load_state_dict`.

    Buffers: `qweight` (int8 [N, K] or packed uint8 [N, K/2]), `scale` ([N], [N, G] for groups),
    `zero` (int8, like scale; [N, G] beside a multiplier; fractional zero points are floating),
    `multiplier` (uint8 [N, G]), `weight_sum` (int32, where activations have zero points), `bias`.
    What the scheme does not need is None. The buffers keep their dtypes when the module is cast.

    Args:
        in_features: K, before padding.
        out_features: N.
        bias: Whether there is a bias.
        scheme: A `Scheme` or its name.
        device: Of the buffers.
        dtype: Of the bias, and what `weight` reports; None: torch's default dtype.
        zero_dtype: Of `zero`: int8, or bfloat16 or float32 for fractional zero points (only for
            bf16 activations).

    Raises:
        ValueError: A scheme that does not exist, or sizes below 1.

    Example:
        >>> layer = QuantLinear.from_linear(nn.Linear(100, 20), "w4a16_g32_zp")
        >>> layer(torch.randn(2, 3, 100)).shape
        torch.Size([2, 3, 20])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: str | Scheme,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        zero_dtype: torch.dtype = torch.int8,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                "QuantLinear: in_features and out_features must be at least 1, "
                f"got {in_features} and {out_features}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = scheme = Scheme.parse(scheme)
        self.padded_features, self.group_size = _padded(in_features, scheme)
        self._weight_dtype = dtype or torch.get_default_dtype()
        fractional = zero_dtype.is_floating_point
        if zero_dtype not in (torch.int8, torch.bfloat16, torch.float32) or (
            fractional and scheme.activations != "bf16"
        ):
            raise ValueError(
                "QuantLinear: zero_dtype must be int8, or for bf16 activations also bfloat16 or "
                f"float32, got {zero_dtype} for scheme {scheme.name}"
            )

        n, k = out_features, self.padded_features
        groups = (n, k // self.group_size) if self.group_size else (n,)
        if scheme.activations == "bf16" and not self.group_size:
            groups = (n, 1)
        split = scheme.multipliers and self.group_size is not None

        def buffer(name: str, needed: bool, shape: tuple, kind: torch.dtype, value: int) -> None:
            data = torch.full(shape, value, dtype=kind, device=device) if needed else None
            self.register_buffer(name, data)

        if scheme.weights == "int8":
            buffer("qweight", True, (n, k), torch.int8, 0)
        else:
            buffer("qweight", True, (n, k // 2), torch.uint8, 0)
        buffer("scale", True, (n,) if split else groups, _scale_dtype(scheme, self.group_size), 1)
        buffer("zero", not scheme.symmetric_weights, groups, zero_dtype, 0)
        buffer("multiplier", split, groups, torch.uint8, 1)
        buffer("weight_sum", not scheme.symmetric_activations, groups, torch.int32, 0)
        bias_dtype = self._weight_dtype if self._weight_dtype in _FLOATS else torch.float32
        buffer("bias", bias, (n,), bias_dtype, 0)

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls,
        linear: nn.Module,
        scheme: str | Scheme,
        *,
        group_size: int | None = None,
        symmetric: bool | None = None,
        clip_search: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> QuantLinear:
        """Quantize a linear layer's weights, on the device where they are.

        Args:
            linear: A `torch.nn.Linear`, or transformers' `Conv1D`.
            scheme: A `Scheme` or its name.
            group_size: In place of the scheme's.
            symmetric: In place of the scheme's `symmetric_weights`.
            clip_search: In place of the scheme's.
            dtype: In place of the scheme's `scale_dtype`.

        Returns:
            The quantized layer; `linear` is not changed.

        Raises:
            TypeError: `linear` is neither of the two, or has weights that are not floating point.
            ValueError: A scheme that does not exist, weights without data (meta device), or
                weights that hold a NaN or an Inf.
        """
        given = {
            "group_size": group_size,
            "symmetric_weights": symmetric,
            "clip_search": clip_search,
            "scale_dtype": dtype,
        }
        scheme = dataclasses.replace(
            Scheme.parse(scheme), **{k: v for k, v in given.items() if v is not None}
        )
        transposed = _is_conv1d(linear)
        if not is_linear(linear):
            raise TypeError(
                "QuantLinear.from_linear: linear must be a torch.nn.Linear or a transformers "
                f"Conv1D, got {type(linear).__name__}"
            )
        weight = linear.weight.detach().T if transposed else linear.weight.detach()
        _check_weight("QuantLinear.from_linear", weight)

        n, k = weight.shape
        layer = cls(
            k,
            n,
            linear.bias is not None,
            scheme=scheme,
            device="meta",
            dtype=weight.dtype,
        )
        weight = weight if weight.dtype in _FLOATS else weight.float()
        weight = F.pad(weight, (0, layer.padded_features - k)).contiguous()
        qweight, scale, zero, multiplier = _quantize_weight(weight, scheme, layer.group_size)
        if not bool(scale.isfinite().all()):
            raise ValueError("QuantLinear.from_linear: the weight holds a NaN or an Inf")
        layer._fill(qweight, scale, zero, multiplier, linear.bias)
        return layer.train(linear.training)

    @classmethod
    @torch.no_grad()
    def from_quantized(
        cls,
        q: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        scheme: str | Scheme,
        dtype: torch.dtype = torch.bfloat16,
    ) -> QuantLinear:
        """Take over weights that were quantized elsewhere: real = (q - zero) * scale.

        Unsigned checkpoints (AWQ, GPTQ: 0..15) become signed by subtracting 8 from both `q` and
        `zero`. HQQ's fractional zero points are taken as they are, for bf16 activations.

        Args:
            q: int8 [N, K], unpacked; in [-8, 7] for INT4 weights.
            scale: float32, bfloat16 or float16; [N], or [N, G] where the scheme has groups
                (groups along K; the last one may be short, as K / group size rounds up).
            zero: Integers in the range of q, or floats for bf16 activations; like scale.
            bias: [N].
            scheme: A `Scheme` or its name; without multipliers or clip search, which would change
                the weights; its scale_dtype is that of `scale`, and whether its weights are
                symmetric follows from `zero`.
            dtype: What `weight` reports.

        Returns:
            The layer.

        Raises:
            TypeError: A dtype that is not taken.
            ValueError: A shape, value or scheme that does not fit.

        Example:
            >>> q = torch.randint(-8, 8, (16, 64), dtype=torch.int8)
            >>> layer = QuantLinear.from_quantized(q, torch.rand(16, 2) + 1, scheme="w4a16_g32")
            >>> layer(torch.randn(3, 64)).shape
            torch.Size([3, 16])
        """
        op = "QuantLinear.from_quantized"
        scheme = Scheme.parse(scheme)
        if scheme.multipliers or scheme.clip_search:
            raise ValueError(f"{op}: scheme must be without mul and clip, got {scheme.name}")
        if q.dtype != torch.int8 or q.dim() != 2:
            raise TypeError(f"{op}: q must be int8 [N, K], got {q.dtype} {tuple(q.shape)}")
        if scale.dtype not in _FLOATS:
            raise TypeError(f"{op}: scale must be float32, bfloat16 or float16, got {scale.dtype}")
        low, high = (-8, 7) if scheme.weights == "int4" else (-128, 127)
        if not bool(((q >= low) & (q <= high)).all()):
            raise ValueError(f"{op}: q must be in [{low}, {high}]")
        if not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"{op}: scale must be finite and above 0")
        if zero is not None and not zero.dtype.is_floating_point:
            if not bool(((zero >= low) & (zero <= high)).all()):
                raise ValueError(f"{op}: zero must be in [{low}, {high}]")
            zero = zero.to(torch.int8)

        n, k = q.shape
        layer = cls(
            k,
            n,
            bias is not None,
            scheme=dataclasses.replace(
                scheme, symmetric_weights=zero is None, scale_dtype=scale.dtype
            ),
            device="meta",
            dtype=dtype,
            zero_dtype=torch.int8 if zero is None else zero.dtype,
        )
        shape = tuple(layer.scale.shape)
        for name, value in (("scale", scale), ("zero", zero)):
            if value is not None and (
                value.shape[:1] != (n,) or value.numel() != layer.scale.numel()
            ):
                raise ValueError(
                    f"{op}: {name} must be {shape} for scheme {scheme.name} and K = {k}, "
                    f"got {tuple(value.shape)}"
                )
        # Padded inputs are 0, whatever weight meets them.
        q = F.pad(q, (0, layer.padded_features - k)).contiguous()
        if scheme.weights == "int4":
            q = ops.pack_int4(q)
        zero = None if zero is None else zero.reshape(shape)
        layer._fill(q, scale.reshape(shape), zero, None, bias)
        return layer

    def _fill(
        self,
        qweight: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        multiplier: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        """Put real tensors in the place of the meta ones, which say what must come."""
        sums = None
        if not self.scheme.symmetric_activations:
            sums = ops.weight_sums(qweight, group_size=self.group_size)
        if bias is not None:
            bias = bias.detach().to(device=qweight.device, dtype=self.bias.dtype, copy=True)
        values = {
            "qweight": qweight,
            "scale": scale,
            "zero": zero,
            "multiplier": multiplier,
            "weight_sum": sums,
            "bias": bias,
        }
        for name, value in values.items():
            expected = self._buffers[name]
            got = None if value is None else (tuple(value.shape), value.dtype)
            want = None if expected is None else (tuple(expected.shape), expected.dtype)
            if got != want:
                raise ValueError(f"QuantLinear: {name} must be {want}, got {got}")
            self._buffers[name] = None if value is None else value.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the quantized weight.

        Args:
            x: float32, bfloat16 or float16 [..., in_features]. Quantized per token from this very
                dtype, or rounded to bfloat16 where the scheme's activations are bf16.

        Returns:
            [..., out_features] in the dtype of x.
        """
        if x.dtype not in _FLOATS:
            raise TypeError(
                f"QuantLinear: the input must be float32, bfloat16 or float16, got {x.dtype}"
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"QuantLinear: the input's last dim must be {self.in_features}, "
                f"got shape {tuple(x.shape)}"
            )
        rows = x.reshape(-1, self.in_features)
        if self.padded_features != self.in_features:
            rows = F.pad(rows, (0, self.padded_features - self.in_features))
        if self.scheme.activations == "bf16":
            rows = rows.to(torch.bfloat16)
            # A GPU reads rows in place only where they lie at multiples of 16 bytes. An offset
            # cannot be traced; the operator refuses what a compiled graph hands it so.
            traced = torch.compiler.is_compiling()
            if rows.stride(0) % 8 or (not traced and rows.storage_offset() % 8):
                rows = rows.clone(memory_format=torch.contiguous_format)
            out = ops.matmul_int4_bf16_tn(rows, self.qweight, self.scale, self.zero, self.bias)
        else:
            out = self._integer_product(rows)
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _integer_product(self, rows: Tensor) -> Tensor:
        symmetric = self.scheme.symmetric_activations
        if self.scheme.activations == "int4":
            a, a_scale, a_zero = ops.quantize_int4(rows, symmetric=symmetric)
        else:
            a, a_scale, a_zero = ops.quantize_int8(rows, symmetric=symmetric)
        common = (
            a,
            self.qweight,
            a_scale,
            self.scale,
            a_zero,
            self.zero,
            self.weight_sum,
            self.bias,
        )
        if self.scheme.weights == "int8":
            return ops.matmul_int8_bf16_tn(*common)
        if self.scheme.activations == "int4":
            return ops.matmul_w4a4_bf16_tn(*common)
        return ops.matmul_w4a8_bf16_tn(*common, self.multiplier)

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and device of the weight that was replaced, but one NaN for all its values.

        Models ask their layers for `weight.dtype` (T5 casts to it); one that multiplies by the
        weight itself, past this layer, sees NaN instead of a product in another precision.
        `dequantize` has values.
        """
        nan = torch.full((), torch.nan, dtype=self._weight_dtype, device=self.qweight.device)
        return nan.expand(self.out_features, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [N, K] that the layer multiplies by, as floats."""
        if self.scheme.weights == "int8":
            full = ops.dequantize_int8(self.qweight, self.scale, self.zero, dtype=dtype)
        else:
            scale = self.scale
            if self.multiplier is not None:
                scale = scale.float()[:, None] * self.multiplier
            full = ops.dequantize_int4(self.qweight, scale, self.zero, dtype=dtype)
        return full[:, : self.in_features]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme.name}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        # Casting a model rounds its scales and biases to the new dtype, against which nothing was
        # quantized. Only the device follows, and what `weight` reports.
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        self._weight_dtype = fn(torch.empty(0, dtype=self._weight_dtype)).dtype
        return super()._apply(move, recurse)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        # copy_ would convert another scheme's numbers in silence: same shapes, another meaning.
        for name, buffer in self._buffers.items():
            value = state_dict.get(prefix + name)
            if buffer is None or value is None or value.dtype == buffer.dtype:
                continue
            errors.append(
                f"dtype mismatch for {prefix}{name}: the checkpoint holds {value.dtype}, "
                f"{self.scheme.name} has {buffer.dtype}"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )


@dataclass
class QuantizationReport:
    """What `quantize_model` did.

    Attributes:
        scheme: The scheme's name.
        replaced: Names of the layers now quantized.
        left: Names of linear layers that were left as they are, and why.
        bytes_before: Bytes of the replaced layers' weights and biases.
        bytes_after: Bytes of everything that replaced them: weights, scales, zero points, biases.
    """

    scheme: str
    replaced: list[str]
    left: dict[str, str]
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def count(self) -> int:
        """How many layers were replaced."""
        return len(self.replaced)

    def __str__(self) -> str:
        text = f"{self.scheme}: {self.count} linear layers"
        if self.bytes_after:
            ratio = self.bytes_before / self.bytes_after
            text += f", {self.bytes_before:,} bytes to {self.bytes_after:,} ({ratio:.2f}x smaller)"
        if self.left:
            text += f", {len(self.left)} left: {', '.join(self.left)}"
        return text


def quantize_model(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    skip: Iterable[str] | Callable[[str, nn.Module], bool] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[nn.Module, QuantizationReport]:
    """Replace every linear layer of a model by a `QuantLinear`, in place.

    Replaces `torch.nn.Linear` and transformers' `Conv1D` (GPT-2). Left as they are, and named in
    the report: what `skip` says, subclasses (their owner may read the weight itself, as
    `torch.nn.MultiheadAttention` does), and layers with hooks or a patched forward. A layer that
    is used in two places becomes one quantized layer used in the same two places. A weight shared
    with something else, such as an output head tied to the embedding, is quantized apart from it.

    Args:
        model: Any module, also a single linear layer; on any device.
        scheme: A `Scheme` or its name.
        skip: Layers to leave, as shell patterns over qualified names (`"lm_head"`, `"*.mlp.*"`) or
            as a function of name and module.
        progress: Called as progress(done, total, name) after each layer.

    Returns:
        The model, the same object unless it is itself a linear layer, and a `QuantizationReport`.

    Raises:
        ValueError: A scheme that does not exist, or weights that cannot be quantized, naming the
            layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> model, report = quantize_model(model, "w4a8", skip=["2"])
        >>> report.replaced, report.left
        (['0'], {'2': 'skipped'})
    """
    scheme = Scheme.parse(scheme)
    skipped = _skip_function(skip)
    report = QuantizationReport(scheme.name, [], {})

    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_linear(module):
            reason = "skipped" if skipped(name, module) else _why_left(module)
            if reason:
                report.left[name] = reason
            else:
                places.setdefault(module, []).append(name)

    seen: set[int] = set()
    for done, (linear, names) in enumerate(places.items(), start=1):
        try:
            layer = QuantLinear.from_linear(linear, scheme)
        except ValueError as error:
            raise ValueError(f"quantize_model: {names[0] or 'the model'}: {error}") from error
        for parameter in linear.parameters():
            if parameter.data_ptr() not in seen:
                report.bytes_before += parameter.nbytes
                seen.add(parameter.data_ptr())
        report.bytes_after += layer.nbytes
        report.replaced.append(names[0])
        for name in names:
            parent, _, child = name.rpartition(".")
            if child:
                setattr(model.get_submodule(parent), child, layer)
            else:
                model = layer
        if progress is not None:
            progress(done, len(places), names[0])
    _disable_fused_paths(model)
    return model, report


def _padded(in_features: int, scheme: Scheme) -> tuple[int, int | None]:
    """K as the operator takes it, and the group size; one group is no group."""
    padded = -(-in_features // scheme.block) * scheme.block
    if scheme.group_size is None or padded <= scheme.group_size:
        return padded, None
    return -(-in_features // scheme.group_size) * scheme.group_size, scheme.group_size


def _scale_dtype(scheme: Scheme, group_size: int | None) -> torch.dtype:
    if scheme.scale_dtype is not None:
        return scheme.scale_dtype
    many = group_size is not None and not scheme.multipliers
    return torch.bfloat16 if many else torch.float32


def _quantize_weight(
    weight: Tensor, scheme: Scheme, group_size: int | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """qweight, scale, zero and multiplier of a padded weight [N, K]."""

    def quantize(**given: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        symmetric = scheme.symmetric_weights
        if scheme.weights == "int8":
            return ops.quantize_int8(weight, symmetric=symmetric, **given)
        return ops.quantize_int4(weight, symmetric=symmetric, group_size=group_size, **given)

    qweight, scale, zero = quantize()
    made_by = scale
    if scheme.clip_search:
        scale = _search_clip(weight, scheme, scale, zero, quantize)
    multiplier = None
    dtype = _scale_dtype(scheme, group_size)
    if scheme.multipliers and group_size is not None:
        # An all-zero group fits any scale; the row's smallest keeps the others' split unharmed.
        empty = (weight.unflatten(-1, (-1, group_size)) == 0).all(-1)
        least = torch.where(empty, torch.inf, scale).amin(1, keepdim=True)
        scale = torch.where(empty & least.isfinite(), least, scale)
        zeros = None if zero is None else zero.to(torch.int8)
        stored, multiplier = ops.split_group_scales(scale, zeros=zeros)[:2]
        stored = _round_scale(stored, dtype)
        scale = stored.float()[:, None] * multiplier
    else:
        stored = _round_scale(scale, dtype)
        scale = stored.float()
    if not torch.equal(scale, made_by):
        qweight, _, _ = quantize(scale=scale, zero=zero)
    zero = None if zero is None else zero.to(torch.int8)
    if scheme.activations == "bf16" and group_size is None:
        stored = stored.unsqueeze(-1)
        zero = None if zero is None else zero.unsqueeze(-1)
    return qweight, stored, zero, multiplier


def _search_clip(
    weight: Tensor,
    scheme: Scheme,
    scale: Tensor,
    zero: Tensor | None,
    quantize: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
) -> Tensor:
    """The scale of each row or group with the least squared error over the grid of clips.

    Shrinking both ends of a range by one factor leaves its zero point where it is, so the same
    zero serves every clip.
    """
    dequantize = ops.dequantize_int8 if scheme.weights == "int8" else ops.dequantize_int4
    groups = 1 if scale.dim() == 1 else scale.shape[1]
    best = scale
    least = torch.full_like(scale, torch.inf, dtype=torch.float64)
    for ratio in _CLIP_RATIOS:
        clipped = scale * ratio
        q, _, _ = quantize(scale=clipped, zero=zero)
        error = (dequantize(q, clipped, zero) - weight).square_().unflatten(-1, (groups, -1))
        # float64, so that every device finds the same clip whatever its order of summation.
        error = error.sum(-1, dtype=torch.float64).reshape(scale.shape)
        better = error < least
        best = torch.where(better, clipped, best)
        least = torch.where(better, error, least)
    return best


def _round_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale in its storage dtype, still above 0; NaN stays NaN."""
    info = torch.finfo(dtype)
    return scale.clamp(info.tiny, info.max).to(dtype)


def _check_weight(op: str, weight: Tensor) -> None:
    if not weight.dtype.is_floating_point:
        raise TypeError(f"{op}: the weight must be floating point, got {weight.dtype}")
    if weight.is_meta:
        raise ValueError(f"{op}: the weight is on the meta device, load its values first")


def is_linear(module: nn.Module) -> bool:
    """Whether it is a `torch.nn.Linear`, a subclass of it, or transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D (weight [K, N]), without importing transformers."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _why_left(linear: nn.Module) -> str | None:
    if not _is_conv1d(linear) and type(linear) is not nn.Linear:
        return f"a subclass, {type(linear).__name__}"
    if linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear):
        return "has hooks or a patched forward"
    return None


def _skip_function(
    skip: Iterable[str] | Callable[[str, nn.Module], bool],
) -> Callable[[str, nn.Module], bool]:
    if callable(skip):
        return skip
    patterns = [skip] if isinstance(skip, str) else list(skip)
    return lambda name, _: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _disable_fused_paths(model: nn.Module) -> None:
    # torch.nn.TransformerEncoderLayer has a fast path that hands its linear layers' weights to one
    # fused kernel; these two flags are torch's own conditions for it.
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(child, QuantLinear) for child in module.children()
        ):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            # It feeds nested tensors, which only that fast path takes.
            module.use_nested_tensor = False
