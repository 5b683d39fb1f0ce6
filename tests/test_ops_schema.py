# SPDX-License-Identifier: Apache-2.0
"""The operators as torch sees them, and the functions over them as people do."""

from __future__ import annotations

import doctest
import inspect
import time
from typing import Any

import pytest
import torch

import qutlass
from cases import CALL_NAMES, example_call
from test_ops_refusals import OPERATORS, valid

PUBLIC = (*OPERATORS, "split_group_scales")


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.qutlass, name).default


@pytest.mark.parametrize("name", CALL_NAMES)
def test_opcheck(device: str, name: str) -> None:
    """Schema (no hidden mutation or aliasing), autograd registration, fake kernel, and tracing with
    symbolic shapes, each by torch's own checks."""
    call = example_call(name, device)
    results = torch.library.opcheck(overload(call.operator), tuple(call.tensors), call.keywords)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALL_NAMES)
def test_fake_strides_and_devices(device: str, name: str) -> None:
    """What comes out is contiguous, new and on the device of what went in, and the meta kernel
    says the same shapes and dtypes."""
    call = example_call(name, device)
    real = call()
    meta = call.map(lambda t: t.to("meta"))()
    assert len(real) == len(meta)
    inputs = {t.untyped_storage().data_ptr() for t in call.all_tensors()}
    for r, m in zip(real, meta, strict=True):
        assert (r.shape, r.dtype, r.stride()) == (m.shape, m.dtype, m.stride())
        assert r.is_contiguous()
        assert r.device.type == device
        assert m.device.type == "meta"
        assert r.untyped_storage().data_ptr() not in inputs


def test_every_operator_is_public() -> None:
    """All that is registered, but for private ones, is a function of the module, and no more."""
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("qutlass::") for s in schemas if s.name.startswith("qutlass::")}
    assert {name for name in names if not name.startswith("_")} == set(PUBLIC)
    assert set(PUBLIC) <= set(qutlass.__all__)
    for name in qutlass.__all__:
        assert getattr(qutlass, name).__doc__.strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_function_and_schema_agree(name: str) -> None:
    """Names, order, defaults and which arguments are by keyword only."""
    function = inspect.signature(getattr(qutlass, name)).parameters
    schema = overload(name)._schema.arguments
    extra = {"split_group_scales": {"return_error"}}.get(name, set())
    assert [a.name for a in schema] == [n for n in function if n not in extra]
    for argument in schema:
        parameter = function[argument.name]
        assert argument.kwarg_only == (parameter.kind is inspect.Parameter.KEYWORD_ONLY)
        has_default = parameter.default is not inspect.Parameter.empty
        assert argument.has_default_value() == has_default
        if has_default and argument.name != "dtype":  # None in the schema, float32 in Python
            assert argument.default_value == parameter.default
    assert inspect.signature(getattr(qutlass, name)).return_annotation


@pytest.mark.parametrize("key", ["CPU", "CUDA"])
@pytest.mark.parametrize("name", OPERATORS)
def test_registered_for(name: str, key: str) -> None:
    """For CUDA too in a build without it: the operator then says so itself."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"qutlass::{name}", key)


def test_other_devices_are_torchs_to_refuse() -> None:
    a = torch.ones(4, 32, dtype=torch.int8).to_sparse()
    with pytest.raises(NotImplementedError, match="qutlass::pack_int4"):
        qutlass.pack_int4(a)


def test_doctests() -> None:
    for module in (qutlass, qutlass.ops):
        result = doctest.testmod(module, extraglobs={"torch": torch})
        assert result.attempted > 0
        assert result.failed == 0


def test_the_calls_people_make(device: str) -> None:
    """quantize_int8 gives three values; matmul_int4_bf16_tn takes four, in this order."""
    torch.manual_seed(0)
    x = torch.randn(5, 128, device=device)
    w = torch.randn(24, 128, device=device)
    q, scale, zero = qutlass.quantize_int8(x)
    assert (q.dtype, scale.shape, zero) == (torch.int8, (5,), None)
    q, scale, zero = qutlass.quantize_int8(x, symmetric=False)
    assert (zero.dtype, zero.shape) == (torch.int32, (5,))
    packed_w, scales, zeros = qutlass.quantize_int4(w, symmetric=False, group_size=64)
    acts_bf16 = x.bfloat16()
    out = qutlass.matmul_int4_bf16_tn(acts_bf16, packed_w, scales, zeros)
    assert (out.dtype, out.shape) == (torch.bfloat16, (5, 24))
    want = acts_bf16.float() @ qutlass.dequantize_int4(packed_w, scales, zeros).T
    assert (out.float() - want).norm() / want.norm() < 3e-3


LEADING = [(), (0,), (1,), (3, 0), (2, 3), (1, 4, 1, 2)]


@pytest.mark.parametrize("lead", LEADING, ids=str)
@pytest.mark.parametrize("op", OPERATORS[-4:])
def test_leading_dims(device: str, op: str, lead: tuple[int, ...]) -> None:
    """a[..., K] gives out[..., N], the rows of the flat call; per-token vectors in each form."""
    arguments = {name: v.to(device) for name, v in valid(op).items()}
    tokens = torch.Size(lead).numel()
    g = torch.Generator().manual_seed(1)
    a = torch.randint(-8, 8, (tokens, arguments["a"].shape[1]), generator=g)
    a = a.to(device=device, dtype=arguments["a"].dtype)
    flat: dict[str, Any] = {**arguments, "a": a}
    scale = torch.rand(tokens, generator=g).to(device) + 0.5
    shapes: list[tuple[int, ...]] = [()]
    if "a_scale" in arguments:
        flat["a_scale"] = scale
        shapes = [lead, (*lead, 1), (tokens,), (tokens, 1)]
    want = getattr(qutlass, op)(**flat)
    assert want.shape == (tokens, arguments["b"].shape[0])
    for shape in shapes:
        shaped = {**flat, "a": a.reshape(*lead, a.shape[1])}
        if "a_scale" in arguments:
            shaped["a_scale"] = scale.reshape(shape)
        out = getattr(qutlass, op)(**shaped)
        assert out.shape == (*lead, want.shape[1])
        assert torch.equal(out.reshape(want.shape), want)


@pytest.mark.parametrize("op", OPERATORS[-4:])
def test_rows_are_read_in_place(device: str, op: str) -> None:
    """Slices of columns, of leading dims, overlapping and repeated rows give what a copy gives."""
    arguments = {name: v.to(device) for name, v in valid(op).items()}
    if op != OPERATORS[-1]:
        arguments["a_scale"] = torch.ones(1, device=device)
    cols = arguments["a"].shape[1]
    g = torch.Generator().manual_seed(2)
    wide = torch.randint(-8, 8, (6, 4, 3 * cols), generator=g)
    wide = wide.to(device=device, dtype=arguments["a"].dtype)
    views = {
        "columns": wide[0, :, cols : 2 * cols],
        "every other row": wide[:, 1, :cols],
        "leading dims": wide[..., :cols],
        "part of the first dim": wide[2:5, :, cols : 2 * cols],
        "one repeated row": wide[0, :1, :cols].expand(7, -1),
        "overlapping rows": wide.flatten().as_strided((5, cols), (16, 1)),
        "one row": wide.flatten()[16 : 16 + cols],
        "size-one dims": wide[:, :1, :cols].unsqueeze(0),
    }
    for name, a in views.items():
        out = getattr(qutlass, op)(**(arguments | {"a": a}))
        assert torch.equal(out, getattr(qutlass, op)(**(arguments | {"a": a.contiguous()}))), name


def test_expanded_vectors_are_one_value(device: str) -> None:
    arguments = {name: v.to(device) for name, v in valid("matmul_int8_bf16_tn").items()}
    half = torch.full((), 0.5, device=device)
    want = qutlass.matmul_int8_bf16_tn(**(arguments | {"a_scale": half, "b_scale": half}))
    expanded = {"a_scale": half.expand(4), "b_scale": half.expand(6, 1)}
    assert torch.equal(qutlass.matmul_int8_bf16_tn(**(arguments | expanded)), want)
    assert want[0, 0] == 128 / 4


def test_per_channel_sums_and_scales_take_a_trailing_one(device: str) -> None:
    """[N, 1] is [N], for each vector of a row of b."""
    arguments = {name: v.to(device) for name, v in valid("matmul_w4a8_bf16_tn").items()}
    g = torch.Generator().manual_seed(3)
    more = {
        "a_zero": torch.randint(-9, 9, (4,), generator=g, dtype=torch.int32),
        "b_scale": torch.rand(6, generator=g),
        "b_zero": torch.randint(-8, 8, (6,), generator=g, dtype=torch.int8),
        "b_sum": qutlass.weight_sums(arguments["b"]).cpu(),
    }
    arguments |= {name: v.to(device) for name, v in more.items()}
    want = qutlass.matmul_w4a8_bf16_tn(**arguments)
    for names in ({"b_scale"}, {"b_zero"}, {"b_sum"}, {"b_scale", "b_zero", "b_sum"}):
        columns = {name: arguments[name][:, None] for name in names}
        assert torch.equal(qutlass.matmul_w4a8_bf16_tn(**(arguments | columns)), want)


def test_scales_of_one_group_may_be_a_vector(device: str) -> None:
    arguments = {name: v.to(device) for name, v in valid("matmul_int4_bf16_tn").items()}
    scales = torch.arange(1.0, 7.0, device=device)
    want = qutlass.matmul_int4_bf16_tn(**(arguments | {"scales": scales[:, None]}))
    assert torch.equal(qutlass.matmul_int4_bf16_tn(**(arguments | {"scales": scales})), want)


def test_threads_are_torchs() -> None:
    """One thread where torch says one: the processor time of a call is then its wall time."""
    a = torch.ones(256, 2048, dtype=torch.int8)
    one = torch.ones(1)
    before = torch.get_num_threads()

    def share() -> float:
        """Processor time over wall time."""
        wall, busy = time.perf_counter(), time.process_time()
        for _ in range(3):
            qutlass.matmul_int8_bf16_tn(a, a, one, one)
        return (time.process_time() - busy) / (time.perf_counter() - wall)

    try:
        torch.set_num_threads(1)
        single = qutlass.matmul_int8_bf16_tn(a, a, one, one)
        time.sleep(0.5)  # threads of earlier calls spin a while for more work before they sleep
        assert share() < 1.1
        torch.set_num_threads(4)
        assert torch.equal(qutlass.matmul_int8_bf16_tn(a, a, one, one), single)
    finally:
        torch.set_num_threads(before)


def test_no_gradient_is_made_up() -> None:
    """The operators have none: the result of a call says so when it is asked for one."""
    x = torch.randn(2, 64, requires_grad=True)
    arguments = valid("matmul_int4_bf16_tn")
    out = qutlass.matmul_int4_bf16_tn(
        **(arguments | {"scales": torch.ones(6, 2, requires_grad=True)})
    )
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        out.float().sum().backward()
    q, scale, _ = qutlass.quantize_int8(x)
    assert not q.requires_grad
    assert torch.isfinite(scale).all()


def test_build_info() -> None:
    info = qutlass.build_info()
    assert info["version"] == qutlass.__version__
    assert info["torch_abi"] == "2.11"
    assert info["cpu_isa"]
    assert bool(info["cuda"]) == bool(info["archs"]) == bool(info["cutlass"])


def test_tile_rows() -> None:
    """Rows are listed where the build has kernels for them, and are what explain() names."""
    rows = qutlass.ops._gemm_tiles()
    assert bool(rows) == bool(qutlass.build_info()["cuda"])
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        warps = (
            (row["m"] // row["warp_m"]) * (row["n"] // row["warp_n"]) * (row["k"] // row["warp_k"])
        )
        assert row["threads"] == 32 * warps


EXPLAINED = [
    ("matmul_int8_bf16_tn", None, False, "w8a8"),
    ("matmul_w4a4_bf16_tn", None, False, "w4a4"),
    ("matmul_w4a8_bf16_tn", None, False, "w4a8"),
    ("matmul_w4a8_bf16_tn", 4096, False, "w4a8"),
    ("matmul_w4a8_bf16_tn", 128, False, "w4a8_group"),
    ("matmul_w4a8_bf16_tn", 64, True, "w4a8_multiplier"),
    ("matmul_int4_bf16_tn", 32, False, "w4a16"),
    ("matmul_int4_bf16_tn", None, False, "w4a16"),
]


@pytest.mark.parametrize("sm", [80, 86, 89, 90])
@pytest.mark.parametrize(("op", "group", "multiplier", "family"), EXPLAINED)
def test_explain(op: str, group: int | None, multiplier: bool, family: str, sm: int) -> None:
    """Needs no GPU; the choice fits the card and runs there."""
    limit = {80: 163, 86: 99, 89: 99, 90: 227}[sm] * 1024
    for m in (1, 16, 100, 4096):
        choice = qutlass.explain(op, m, 4096, 4096, group, multiplier=multiplier, sm=sm)
        assert choice["op"] == family
        assert choice["tile"].startswith(f"{family}_")
        assert choice["smem_bytes"] <= limit
        assert choice["blocks"] >= 1
        assert choice["waves"] > 0
        assert choice["emulated"] == (family == "w4a4" and sm >= 90)
        assert qutlass.ops._gemm_legal(
            family, choice["index"], choice["split_k"], m, 4096, 4096, group, sm=sm
        )
        assert choice == qutlass.explain(op, m, 4096, 4096, group, multiplier=multiplier, sm=sm)


@pytest.mark.parametrize(
    ("act_bits", "group", "operator", "type_of_mma"),
    [
        (16, 64, "matmul_int4_bf16_tn", "bf16"),
        (8, None, "matmul_w4a8_bf16_tn", "s8"),
        (8, 4096, "matmul_w4a8_bf16_tn", "s8"),
        (8, 64, "matmul_w4a8_bf16_tn", "s8"),
        (4, None, "matmul_w4a4_bf16_tn", "s4"),
    ],
)
def test_explain_act_bits(
    act_bits: int, group: int | None, operator: str, type_of_mma: str
) -> None:
    """Quantizing its activations, the operator runs what the integer operator would."""
    for m in (1, 100, 4096):
        shape = (m, 4096, 4096, group)
        choice = qutlass.explain("matmul_int4_bf16_tn", *shape, act_bits=act_bits, sm=86)
        assert choice == qutlass.explain(operator, *shape, sm=86)
        assert choice["instruction"].endswith(f".{type_of_mma}")


def test_explain_on_a_cpu() -> None:
    answer = qutlass.explain("matmul_int8_bf16_tn", 16, 4096, 4096, device="cpu")
    assert answer == {"op": "w8a8", "device": "cpu", "isa": qutlass.build_info()["cpu_isa"]}


@pytest.mark.gpu
def test_explain_on_this_gpu() -> None:
    """The device's own limits are asked for, and the row is one that _gemm_tiles() lists."""
    properties = torch.cuda.get_device_properties(0)
    answer = qutlass.explain("matmul_int8_bf16_tn", 16, 4096, 4096, device="cuda:0")
    assert answer["sm"] == 10 * properties.major + properties.minor
    assert answer["sm_count"] == properties.multi_processor_count
    assert qutlass.ops._gemm_tiles()[answer["index"]]["name"] == answer["tile"]


@pytest.mark.gpu
def test_print_tile(tmp_path) -> None:
    """QUTLASS_PRINT_TILE=1 prints each choice once, and it is the one explain() gives."""
    import os
    import subprocess
    import sys

    code = (
        "import torch, qutlass\n"
        "a = torch.ones(16, 512, dtype=torch.int8, device='cuda')\n"
        "one = torch.ones(1, device='cuda')\n"
        "for m in (16, 16, 3, 16):\n"
        "    qutlass.matmul_int8_bf16_tn(a[:m], a, one, one)\n"
        "print(qutlass.explain('matmul_int8_bf16_tn', 16, 16, 512)['tile'])\n"
    )
    for value, count in (("1", 2), ("0", 0), ("", 0)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"QUTLASS_PRINT_TILE": value},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line for line in run.stderr.splitlines() if line.startswith("qutlass: ")]
        assert len(lines) == count
        if count:
            assert "w8a8 M=16 N=16 K=512" in lines[0]
            assert run.stdout.strip() in lines[0]
