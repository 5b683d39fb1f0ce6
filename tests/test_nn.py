# SPDX-License-Identifier: Apache-2.0
"""qutlass.nn: schemes, the quantized layer, and replacing the layers of a model."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools

import pytest
import torch
from torch import nn

from cases import generator
from qutlass import nn as qnn
from qutlass import reference
from qutlass.nn import PRESETS, QuantLinear, Scheme, quantize_model

# Every form of weight scale, zero point and activation that a layer can hand to an operator.
SCHEMES = (
    *PRESETS,
    "w8a8_zp",
    "w8a8_azp",
    "w8a8_zp_azp_clip",
    "w4a16_zp_clip",
    "w4a8_zp_azp",
    "w4a8_g32_zp_azp",
    "w4a8_g64_mul_azp",
    "w4a8_g32_mul_zp_azp_clip",
    "w4a4_azp",
    "w4a4_zp_azp_clip",
)


def make_linear(k: int, n: int, *, bias: bool = True) -> nn.Linear:
    """Gaussian weights; rows of very different size, so that a misplaced scale shows."""
    g = generator(f"linear-{k}-{n}-{bias}")
    linear = nn.Linear(k, n, bias=bias)
    with torch.no_grad():
        rows = torch.logspace(-2, 1, n)[:, None]
        linear.weight.copy_(torch.randn(n, k, generator=g) * rows)
        if bias:
            linear.bias.copy_(torch.randn(n, generator=g))
    return linear


def make_input(*shape: int) -> torch.Tensor:
    """Off centre, as activations after GELU are, so that zero points matter."""
    return torch.randn(*shape, generator=generator(f"input-{shape}")) + 0.4


def exact_product(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """The product of the quantized operands in float64, by the reference's quantization."""
    x = x.cpu().reshape(-1, layer.in_features)
    x = nn.functional.pad(x, (0, layer.padded_features - layer.in_features))
    symmetric = layer.scheme.symmetric_activations
    if layer.scheme.activations == "bf16":
        x = x.bfloat16()
    elif layer.scheme.activations == "int8":
        q, scale, zero = reference.quantize_int8(x, symmetric=symmetric)
        x = q.double() - (0 if zero is None else zero.double()[:, None])
        x = x * scale.double()[:, None]
    else:
        q, scale, zero = reference.quantize_int4(x, symmetric=symmetric)
        x = reference.unpack_int4(q).double() - (0 if zero is None else zero.double()[:, None])
        x = x * scale.double()[:, None]
    x = x.double()[:, : layer.in_features]
    out = x @ layer.dequantize().cpu().double().T
    return out if layer.bias is None else out + layer.bias.cpu().double()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Frobenius, each column scaled to the same size first, as rows of the weight are not."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    size = expected.norm(dim=0, keepdim=True)
    return float(((actual - expected) / size).norm() / len(size.T) ** 0.5)


class TestScheme:
    def test_every_combination_has_a_name_that_means_it(self):
        fields = itertools.product(
            ("int8", "int4"), ("bf16", "int8", "int4"), (None, 32, 64, 128), *[(True, False)] * 4
        )
        made = []
        for combination in fields:
            try:
                scheme = Scheme(*combination)
            except ValueError:
                continue
            made.append(scheme)
            assert Scheme.parse(scheme.name) == scheme
            assert Scheme.parse(scheme.name.upper()) == scheme
        # w8a8: 2 zero points and clip; w4a16: 4 group forms, zero point, clip; w4a8: a row or 3
        # group sizes with and without multipliers, 2 zero points, clip; w4a4: as w8a8.
        assert len(made) == 8 + 16 + 7 * 8 + 8
        assert len({scheme.name for scheme in made}) == len(made)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("int8", "int4"), "weights with activations must be one of .* got int8 with int4"),
            (("int8", "int8", 32), "group_size is taken for int4 weights .* got 32 for int8"),
            (("int4", "int4", 32), "group_size is taken for int4 weights .* got 32 for int4"),
            (("int4", "bf16", 48), r"group_size must be one of \(32, 64, 128\) or None, got 48"),
            (("int4", "bf16", None, True, False), "symmetric_activations must be True for bf16"),
            (("int4", "int8", None, True, True, True), "multipliers are taken for .* None"),
            (("int4", "bf16", 32, True, True, True), "multipliers are taken for .* bf16"),
            (
                ("int8", "int8", None, True, True, False, False, torch.float64),
                "scale_dtype must be float32, bfloat16, float16 or None, got torch.float64",
            ),
        ],
    )
    def test_refuses_what_no_operator_multiplies(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Scheme(*arguments)

    @pytest.mark.parametrize("name", ["", "int8", "w4a8_128", "w4a8_clip_zp", "w2a16", "w4a16_g"])
    def test_refuses_a_name_that_is_none(self, name):
        with pytest.raises(ValueError, match=f"the name must be .* got {name!r}"):
            Scheme.parse(name)


class TestProduct:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("k", [384, 200, 40])
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_is_the_product_of_the_quantized_operands(self, scheme, k, dtype, device):
        layer = QuantLinear.from_linear(make_linear(k, 72).to(device), scheme)
        x = make_input(3, 5, k).to(dtype)
        out = layer(x.to(device))
        assert out.shape == (3, 5, 72)
        assert out.dtype == dtype
        assert out.device.type == device
        assert relative_error(out.reshape(15, 72), exact_product(layer, x)) <= 3e-3

    # The error measured with these very weights and inputs, and a tenth more.
    @pytest.mark.parametrize(
        ("scheme", "bound"),
        [
            ("w8a8", 0.0127),
            ("w8a8_azp", 0.0119),
            ("w4a16", 0.162),
            ("w4a16_g32", 0.110),
            ("w4a16_g32_zp", 0.091),
            ("w4a16_g32_zp_clip", 0.090),
            ("w4a8", 0.162),
            ("w4a8_g128", 0.133),
            ("w4a8_g128_mul", 0.134),
            ("w4a4", 0.227),
            ("w4a4_zp_azp_clip", 0.178),
        ],
    )
    def test_is_close_to_float(self, scheme, bound, device):
        linear = make_linear(1024, 256, bias=False)
        x = make_input(64, 1024)
        layer = QuantLinear.from_linear(linear, scheme).to(device)
        error = relative_error(layer(x.to(device)), linear(x))
        assert error <= bound
        assert error > bound / 2, "the bound is too loose to find a fault"

    @pytest.mark.parametrize("scheme", ["w8a8_azp", "w4a16_g32_zp", "w4a8_g32_mul", "w4a4"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_takes_any_leading_dims(self, scheme, bias, device):
        layer = QuantLinear.from_linear(make_linear(96, 24, bias=bias), scheme).to(device)
        x = make_input(4, 3, 2, 96).to(device)
        out = layer(x)
        assert out.shape == (4, 3, 2, 24)
        assert layer(x[:0]).shape == (0, 3, 2, 24)
        # How the rows lie in memory does not matter, not even off the alignment of vector loads.
        assert torch.equal(layer(x.transpose(0, 2)), out.transpose(0, 2))
        for offset in (96, 1):
            wide = torch.zeros(4, 3, 2, 96 + offset, device=device)
            wide[..., offset:] = x
            assert torch.equal(layer(wide[..., offset:]), out)
            narrow = wide.bfloat16()[..., offset:]
            assert torch.equal(layer(narrow), layer(x.bfloat16()))
        # Nor, where sums are integers, what a row is batched with.
        alone = layer(x[1, 2, 1])
        if layer.scheme.activations == "bf16":
            torch.testing.assert_close(alone, out[1, 2, 1], rtol=1e-2, atol=1e-2)
        else:
            assert torch.equal(alone, out[1, 2, 1])

    @pytest.mark.parametrize("scheme", PRESETS)
    def test_activations_arrive_in_the_format_of_the_scheme(self, scheme, monkeypatch):
        seen = []

        def spy_on(name: str) -> None:
            operator = getattr(qnn.ops, name)

            def spy(a, b, *rest):
                seen.append((name, a.dtype, b.dtype))
                return operator(a, b, *rest)

            monkeypatch.setattr(qnn.ops, name, spy)

        for name in [name for name in dir(qnn.ops) if name.startswith("matmul_")]:
            spy_on(name)
        QuantLinear.from_linear(make_linear(128, 16), scheme)(make_input(2, 128))
        assert (
            seen
            == {
                "w8a8": [("matmul_int8_bf16_tn", torch.int8, torch.int8)],
                "w4a16": [("matmul_int4_bf16_tn", torch.bfloat16, torch.uint8)],
                "w4a8": [("matmul_w4a8_bf16_tn", torch.int8, torch.uint8)],
                "w4a4": [("matmul_w4a4_bf16_tn", torch.uint8, torch.uint8)],
            }[scheme.split("_")[0]]
        )

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_compiles_into_one_graph(self, scheme, device):
        torch._dynamo.reset()
        layer = QuantLinear.from_linear(make_linear(72, 40), scheme).to(device)
        # The operators are one node each whatever the backend; aot_eager also runs their fakes.
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((3, 72), (17, 72), (2, 5, 72)):
            x = make_input(*shape).to(device)
            assert torch.equal(compiled(x), layer(x))

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (torch.zeros(2, 33), ValueError, r"last dim must be 32, got shape \(2, 33\)"),
            (torch.zeros(()), ValueError, r"last dim must be 32, got shape \(\)"),
            (torch.zeros(2, 32, dtype=torch.float64), TypeError, "must be float32.*got .*float64"),
            (torch.zeros(2, 32, dtype=torch.int8), TypeError, "must be float32.*got torch.int8"),
        ],
    )
    def test_refuses_other_inputs(self, x, error, message):
        layer = QuantLinear.from_linear(make_linear(32, 8), "w8a8")
        with pytest.raises(error, match=f"QuantLinear: .*{message}"):
            layer(x)


class TestWeights:
    @pytest.mark.parametrize("name", ["w8a8", "w4a16", "w4a16_g32_zp", "w4a8_zp", "w4a8_g64"])
    def test_clip_search_lowers_the_error_of_every_group(self, name):
        linear = make_linear(256, 48)
        scheme = dataclasses.replace(Scheme.parse(name), scale_dtype=torch.float32)
        groups = 256 // (scheme.group_size or 256)

        def errors(layer: QuantLinear) -> torch.Tensor:
            error = (layer.dequantize() - linear.weight.detach()).double() ** 2
            return error.unflatten(1, (groups, -1)).sum(-1)

        plain = errors(QuantLinear.from_linear(linear, scheme))
        searched = errors(QuantLinear.from_linear(linear, scheme, clip_search=True))
        assert bool((searched <= plain * (1 + 1e-6)).all())
        if scheme.weights == "int4":
            assert float(searched.sum() / plain.sum()) < 0.97

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_weights_are_quantized_against_the_stored_scale(self, dtype):
        linear = make_linear(256, 48)
        layer = QuantLinear.from_linear(linear, "w4a16_g32_zp", dtype=dtype)
        assert layer.scale.dtype == dtype
        # Half a step everywhere but where the rounded scale no longer reaches the group's ends.
        step = layer.scale.float().repeat_interleave(32, dim=1)
        distance = (layer.dequantize() - linear.weight.detach()).abs() / step
        within = (distance <= 0.5 + 1e-5).double().mean()
        assert float(within) > (0.97 if dtype == torch.float32 else 0.93)
        assert float(distance.max()) < 1.05

    def test_multipliers_rebuild_the_group_scales(self):
        linear = make_linear(512, 48)
        plain = QuantLinear.from_linear(linear, "w4a8_g64")
        split = QuantLinear.from_linear(linear, "w4a8_g64_mul")
        assert split.scale.shape == (48,)
        assert split.multiplier.dtype == torch.uint8
        assert 1 <= int(split.multiplier.min()) <= int(split.multiplier.max()) <= 15
        weight = linear.weight.detach()
        ratio = relative_error(split.dequantize().T, weight.T) / relative_error(
            plain.dequantize().T, weight.T
        )
        assert ratio < 1.06

    @pytest.mark.parametrize("scheme", ["w4a8_g32_mul", "w4a8_g32_mul_zp", "w4a16_g32_zp", "w4a4"])
    def test_zero_weights_stay_zero(self, scheme):
        linear = make_linear(96, 6)
        with torch.no_grad():
            linear.weight[2] = 0
            linear.weight[4, :64] = 0
        layer = QuantLinear.from_linear(linear, scheme)
        full = layer.dequantize()
        assert not full[2].any()
        assert not full[4, :64].any()
        assert relative_error(full[4, 64:, None], linear.weight[4, 64:, None]) < 0.2

    def test_one_short_group_is_no_group(self):
        layer = QuantLinear.from_linear(make_linear(40, 8), "w4a8_g128_mul")
        assert (layer.padded_features, layer.group_size) == (64, None)
        assert layer.scale.shape == (8,)
        assert layer.multiplier is None

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_bytes_are_those_of_the_buffers(self, scheme):
        layer = QuantLinear.from_linear(make_linear(256, 64, bias=False), scheme)
        bits = 8 if scheme.startswith("w8") else 4
        assert layer.qweight.nbytes == 64 * 256 * bits // 8
        rest = layer.nbytes - layer.qweight.nbytes
        # Scales are bfloat16 in groups; zero points a byte, multipliers a byte, sums four.
        s = Scheme.parse(scheme)
        entries = 64 * (256 // s.group_size if s.group_size else 1)
        expected = 4 * 64 if s.multipliers or not s.group_size else 2 * entries
        expected += entries * (s.multipliers + (not s.symmetric_weights))
        expected += 4 * entries * (not s.symmetric_activations)
        assert rest == expected

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("scheme", ["w8a8", "w4a8_g32_mul", "w4a16_clip"])
    def test_refuses_weights_that_are_not_finite(self, scheme, bad):
        linear = make_linear(64, 8)
        with torch.no_grad():
            linear.weight[3, 5] = bad
        with pytest.raises(ValueError, match="the weight holds a NaN or an Inf"):
            QuantLinear.from_linear(linear, scheme)

    def test_refuses_other_modules(self):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Linear .* got Conv2d"):
            QuantLinear.from_linear(nn.Conv2d(1, 1, 1), "w8a8")
        with pytest.raises(ValueError, match="the weight is on the meta device"):
            QuantLinear.from_linear(nn.Linear(32, 8, device="meta"), "w8a8")
        with pytest.raises(ValueError, match="must be at least 1, got 0 and 8"):
            QuantLinear(0, 8, scheme="w8a8")

    def test_arguments_override_the_scheme(self):
        linear = make_linear(128, 8)
        layer = QuantLinear.from_linear(
            linear, "w4a16", group_size=64, symmetric=False, clip_search=True
        )
        assert layer.scheme.name == "w4a16_g64_zp_clip"
        assert layer.zero.shape == (8, 2)
        with pytest.raises(ValueError, match="group_size is taken for"):
            QuantLinear.from_linear(linear, "w8a8", group_size=64)


class TestFromQuantized:
    @pytest.mark.parametrize("k", [256, 200])
    def test_takes_unsigned_checkpoints_less_eight(self, k, device):
        g = generator(f"awq-{k}")
        groups = -(-k // 64)
        q = torch.randint(0, 16, (24, k), generator=g, dtype=torch.uint8)
        zero = torch.randint(0, 16, (24, groups), generator=g)
        scale = (torch.rand(24, groups, generator=g) + 0.5).half()
        real = (q.float() - zero.repeat_interleave(64, 1)[:, :k]) * scale.float().repeat_interleave(
            64, 1
        )[:, :k]
        layer = QuantLinear.from_quantized(
            (q.to(torch.int8) - 8).to(device),
            scale.to(device),
            (zero - 8).to(device),
            scheme="w4a16_g64",
        )
        assert layer.scheme.name == "w4a16_g64_zp"
        assert torch.equal(layer.dequantize().cpu(), real)
        x = make_input(9, k)
        expected = x.bfloat16().double() @ real.double().T
        assert relative_error(layer(x.to(device)), expected) <= 3e-3

    def test_takes_fractional_zero_points(self, device):
        g = generator("hqq")
        q = torch.randint(-8, 8, (24, 128), generator=g, dtype=torch.int8)
        zero = torch.randn(24, 2, generator=g) * 3
        scale = torch.rand(24, 2, generator=g) + 0.5
        layer = QuantLinear.from_quantized(
            q.to(device), scale.to(device), zero.to(device), scheme="w4a16_g64"
        )
        assert layer.zero.dtype == torch.float32
        real = (q - zero.repeat_interleave(64, 1)).double() * scale.repeat_interleave(64, 1)
        x = make_input(9, 128)
        assert relative_error(layer(x.to(device)), x.bfloat16().double() @ real.T) <= 3e-3

    def test_gives_back_what_from_linear_made(self):
        layer = QuantLinear.from_linear(make_linear(96, 24), "w8a8_zp_azp")
        again = QuantLinear.from_quantized(
            layer.qweight, layer.scale, layer.zero, layer.bias, scheme="w8a8_azp"
        )
        x = make_input(5, 96)
        # The bias is stored in the dtype that the layer reports, here bfloat16.
        again.bias = layer.bias
        assert torch.equal(again(x), layer(x))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"q": torch.zeros(8, 64)}, TypeError, r"q must be int8 \[N, K\], got torch.float32"),
            (
                {"q": torch.full((8, 64), 8, dtype=torch.int8)},
                ValueError,
                r"q must be in \[-8, 7\]",
            ),
            ({"scale": torch.ones(8, 3)}, ValueError, r"scale must be \(8, 2\) .* got \(8, 3\)"),
            ({"scale": torch.ones(8)}, ValueError, r"scale must be \(8, 2\) .* got \(8,\)"),
            ({"scale": torch.zeros(8, 2)}, ValueError, "scale must be finite and above 0"),
            ({"scale": torch.ones(8, 2).double()}, TypeError, "scale must be float32"),
            ({"zero": torch.full((8, 2), 9)}, ValueError, r"zero must be in \[-8, 7\]"),
            ({"zero": torch.zeros(8, 4)}, ValueError, r"zero must be \(8, 2\) .* got \(8, 4\)"),
            ({"scheme": "w4a8_g32_mul"}, ValueError, "scheme must be without mul and clip"),
            (
                {"scheme": "w4a8_g32", "zero": torch.zeros(8, 2)},
                ValueError,
                "zero_dtype must be int8",
            ),
        ],
    )
    def test_refuses_what_does_not_fit(self, change, error, message):
        arguments = {
            "q": torch.zeros(8, 64, dtype=torch.int8),
            "scale": torch.ones(8, 2),
            "zero": None,
            "scheme": "w4a16_g32",
        }
        with pytest.raises(error, match=message):
            QuantLinear.from_quantized(**(arguments | change))


class TestState:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("k", [256, 40])
    def test_round_trip(self, scheme, k, device):
        layer = QuantLinear.from_linear(make_linear(k, 24), scheme).to(device)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        empty = QuantLinear(k, 24, scheme=scheme, device=device)
        x = make_input(5, k).to(device)
        assert not torch.equal(empty(x), layer(x))
        empty.load_state_dict(torch.load(file))
        assert torch.equal(empty(x), layer(x))

    def test_refuses_the_state_of_another_scheme(self):
        linear = make_linear(256, 24)
        states = {s: QuantLinear.from_linear(linear, s).state_dict() for s in SCHEMES}
        for name, other in itertools.permutations(SCHEMES, 2):
            a, b = ({k: (v.shape, v.dtype) for k, v in states[s].items()} for s in (name, other))
            if a == b:  # such as w4a8 and w4a4: the same weights for other activations
                continue
            with pytest.raises(RuntimeError, match=r"Error.* in loading state_dict"):
                QuantLinear(256, 24, scheme=other).load_state_dict(states[name])

    def test_refuses_scales_of_another_dtype(self):
        state = QuantLinear.from_linear(make_linear(64, 8), "w4a16_g32").state_dict()
        state["scale"] = state["scale"].float()
        with pytest.raises(RuntimeError, match=r"dtype mismatch for scale: .*float32.*bfloat16"):
            QuantLinear(64, 8, scheme="w4a16_g32").load_state_dict(state)

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_casting_changes_no_number(self, scheme, device):
        layer = QuantLinear.from_linear(make_linear(96, 24), scheme).to(device)
        x = make_input(5, 96).to(device)
        before = layer(x)
        assert layer.weight.dtype == torch.float32
        cast = nn.Sequential(copy.deepcopy(layer)).to(torch.bfloat16).half()[0]
        assert torch.equal(cast(x), before)
        assert cast.weight.dtype == torch.float16
        assert {k: v.dtype for k, v in cast.state_dict().items()} == {
            k: v.dtype for k, v in layer.state_dict().items()
        }

    @pytest.mark.gpu
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_moves_between_devices(self, scheme):
        linear = make_linear(96, 24)
        here = QuantLinear.from_linear(linear, scheme)
        there = QuantLinear.from_linear(linear.cuda(), scheme)
        assert {b.device.type for b in there.buffers()} == {"cuda"}
        for name, value in here.state_dict().items():
            assert torch.equal(there.state_dict()[name].cpu(), value), name
        back = copy.deepcopy(there).cpu()
        x = make_input(5, 96)
        assert torch.equal(back(x), here(x))
        # Integer sums are the same everywhere; float sums across groups only nearly.
        on_gpu = there(x.cuda()).cpu()
        if here.scheme.activations == "bf16" or (here.group_size and here.multiplier is None):
            assert relative_error(on_gpu, here(x)) <= 6e-3
        else:
            assert torch.equal(on_gpu, here(x))

    def test_weight_has_a_dtype_but_no_data(self):
        layer = QuantLinear.from_linear(make_linear(96, 24).bfloat16(), "w8a8")
        assert layer.weight.shape == (24, 96)
        assert layer.weight.dtype == torch.bfloat16
        assert bool(nn.functional.linear(make_input(5, 96).bfloat16(), layer.weight).isnan().all())
        assert "weight" not in layer.state_dict()

    def test_representation(self):
        layer = QuantLinear.from_linear(make_linear(96, 24), "w4a16_g32_zp")
        assert repr(layer) == (
            "QuantLinear(in_features=96, out_features=24, bias=True, scheme=w4a16_g32_zp)"
        )


class TestModel:
    def test_replaces_every_linear_and_counts_bytes(self):
        inner = nn.Sequential(make_linear(64, 96), nn.GELU())
        model = nn.Sequential(inner, make_linear(96, 32, bias=False), nn.LayerNorm(32)).eval()
        calls = []
        out, report = quantize_model(model, "w8a8", progress=lambda *call: calls.append(call))
        assert out is model
        assert isinstance(model[0][0], QuantLinear)
        assert isinstance(model[1], QuantLinear)
        assert not model[0][0].training
        assert report.replaced == ["0.0", "1"]
        assert report.count == 2
        assert report.left == {}
        assert calls == [(1, 2, "0.0"), (2, 2, "1")]
        assert report.bytes_before == 4 * (64 * 96 + 96 + 96 * 32)
        assert report.bytes_after == 64 * 96 + 96 * 32 + 4 * (96 + 32) + 4 * 96
        assert str(report) == (
            f"w8a8: 2 linear layers, {report.bytes_before:,} bytes to {report.bytes_after:,} "
            f"({report.bytes_before / report.bytes_after:.2f}x smaller)"
        )

    def test_a_lone_linear_is_a_model(self):
        linear = make_linear(64, 16)
        layer, report = quantize_model(linear, "w4a4")
        assert isinstance(layer, QuantLinear)
        assert report.replaced == [""]

    @pytest.mark.parametrize(
        "skip", [["head", "blocks.1.*"], lambda n, m: n == "head" or n.startswith("blocks.1")]
    )
    def test_skips(self, skip):
        model = nn.ModuleDict(
            {
                "blocks": nn.ModuleList([nn.Sequential(make_linear(32, 32)) for _ in range(2)]),
                "head": make_linear(32, 8),
            }
        )
        model, report = quantize_model(model, "w4a8", skip=skip)
        assert report.replaced == ["blocks.0.0"]
        assert report.left == {"blocks.1.0": "skipped", "head": "skipped"}
        assert type(model["head"]) is nn.Linear

    def test_a_shared_layer_stays_shared(self):
        shared = make_linear(32, 32)
        model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": make_linear(32, 32)})
        model, report = quantize_model(model, "w8a8")
        assert model["a"] is model["b"][0]
        assert model["c"] is not model["a"]
        assert report.count == 2

    def test_leaves_layers_that_others_reach_into(self):
        hooked = make_linear(32, 32)
        hooked.register_forward_hook(lambda *_: None)
        patched = make_linear(32, 32)
        patched.forward = patched.forward
        attention = nn.MultiheadAttention(32, 2, batch_first=True)
        model = nn.ModuleList([hooked, patched, attention, make_linear(32, 32)])
        model, report = quantize_model(model, "w8a8")
        assert report.replaced == ["3"]
        assert report.left == {
            "0": "has hooks or a patched forward",
            "1": "has hooks or a patched forward",
            "2.out_proj": "a subclass, NonDynamicallyQuantizableLinear",
        }

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @torch.inference_mode()
    def test_torch_transformer_encoder(self):
        """Its fast path would hand the linear layers' weights to a fused kernel."""
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        model = nn.TransformerEncoder(layer, 2).eval()
        x = make_input(2, 5, 32)
        mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        expected = model(x, src_key_padding_mask=mask)[~mask]
        model, report = quantize_model(model, "w8a8")
        assert report.count == 4
        error = relative_error(model(x, src_key_padding_mask=mask)[~mask], expected)
        assert 1e-4 < error < 0.03

    def test_names_the_layer_that_cannot_be_quantized(self):
        model = nn.Sequential(make_linear(32, 8), make_linear(8, 4))
        with torch.no_grad():
            model[1].weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"quantize_model: 1: .* holds a NaN or an Inf"):
            quantize_model(model, "w8a8")

    def test_transformers_conv1d(self):
        pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
        conv = pytorch_utils.Conv1D(48, 64)
        linear = nn.Linear(64, 48)
        with torch.no_grad():
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
        model, report = quantize_model(nn.Sequential(conv), "w4a16_g32_zp")
        assert report.count == 1
        x = make_input(3, 64)
        assert torch.equal(model(x), QuantLinear.from_linear(linear, "w4a16_g32_zp")(x))
