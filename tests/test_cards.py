# SPDX-License-Identifier: Apache-2.0
"""QUTLASS_ASSUME_SM: one card's kernels on another GPU. The variable is read once in a process, so
each test starts one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qutlass

CASES = [
    ("matmul_int8_bf16_tn", None, False),
    ("matmul_w4a4_bf16_tn", None, False),
    ("matmul_w4a8_bf16_tn", None, False),
    ("matmul_w4a8_bf16_tn", 128, False),
    ("matmul_w4a8_bf16_tn", 64, True),
    ("matmul_int4_bf16_tn", 32, False),
]


def run(
    folder: Path, code: str, *words: str, assume: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    root = str(Path(qutlass.__file__).resolve().parent.parent)
    tests = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [root, tests, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "QUTLASS_TUNED": "1", **variables}
    environment.pop("QUTLASS_ASSUME_SM", None)
    if assume is not None:
        environment["QUTLASS_ASSUME_SM"] = assume
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


# KiB of shared memory a block may have (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227}


def skip_on_a_lesser_gpu(sm: int) -> None:
    """The kernels of a card need its shared memory; the GPU itself says whether it has that."""
    if not torch.cuda.is_available():
        return
    here = torch.cuda.get_device_properties().shared_memory_per_block_optin >> 10
    if here < SHARED_MEMORY[sm]:
        pytest.skip(f"the GPU has {here} KiB of shared memory a block, sm_{sm} {SHARED_MEMORY[sm]}")


EXPLAIN = """
import json, sys, qutlass
answers = []
for op, group, multiplier in json.loads(sys.argv[1]):
    for m in (1, 16, 100, 4096):
        for sm in (None, 80):
            where = {"multiplier": multiplier, "device": "cuda:0", "sm": sm}
            answers.append(qutlass.explain(op, m, 4096, 4096, group, **where))
print(json.dumps(answers))
"""


@pytest.mark.parametrize("sm", ["80", "86", "89", "90"])
def test_explain(sm: str, tmp_path: Path) -> None:
    """A device is explained as the card, whether it is there or not; another card as itself."""
    skip_on_a_lesser_gpu(int(sm))
    ran = run(tmp_path, EXPLAIN, json.dumps(CASES), assume=sm)
    assert ran.returncode == 0, ran.stderr
    answers = iter(json.loads(ran.stdout))
    for op, group, multiplier in CASES:
        for m in (1, 16, 100, 4096):
            named: dict[str, Any] = {"group_size": group, "multiplier": multiplier}
            as_card = qutlass.explain(op, m, 4096, 4096, sm=int(sm), **named)
            assert as_card["assumed"] is False
            assert next(answers) == {**as_card, "assumed": True}
            assert next(answers) == qutlass.explain(op, m, 4096, 4096, sm=80, **named)


def test_without_it_a_device_must_be_there(tmp_path: Path) -> None:
    code = (
        "import qutlass; print(qutlass.explain('matmul_int8_bf16_tn', 1, 16, 16, device='cuda:63'))"
    )
    for assume in (None, ""):
        ran = run(tmp_path, code, assume=assume)
        assert ran.returncode == 1
        assert "RuntimeError: explain: " in ran.stderr
    ran = run(tmp_path, code, assume="86")
    assert ran.returncode == 0, ran.stderr
    assert "'assumed': True" in ran.stdout


@pytest.mark.parametrize("value", ["8.6", "75", "yes", '8"6', "0"])
def test_a_wrong_value(value: str, tmp_path: Path) -> None:
    """An exception that says what is wrong, where it matters and nowhere else."""
    code = """
import torch, qutlass
x = torch.ones(1, 16, dtype=torch.int8)
one = torch.ones(1)
print(float(qutlass.matmul_int8_bf16_tn(x, x, one, one)))
print(qutlass.explain("matmul_int8_bf16_tn", 1, 16, 16, sm=80)["sm"])
try:
    qutlass.explain("matmul_int8_bf16_tn", 1, 16, 16, device="cuda:0")
except RuntimeError as error:
    print(error)
if torch.cuda.is_available() and qutlass.build_info()["cuda"]:
    try:
        qutlass.matmul_int8_bf16_tn(x.cuda(), x.cuda(), one.cuda(), one.cuda())
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    ran = run(tmp_path, code, assume=value)
    assert ran.returncode == 0, ran.stderr
    product, card, *errors = ran.stdout.splitlines()
    assert (product, card) == ("16.0", "80")
    assert errors
    for error in errors:
        assert error.endswith(f"QUTLASS_ASSUME_SM must be 80, 86, 89 or 90, got '{value}'")


def test_doctor_says_so(tmp_path: Path) -> None:
    code = "import qutlass; qutlass.doctor()"
    assert "QUTLASS_ASSUME_SM" not in run(tmp_path, code).stdout
    assert "QUTLASS_ASSUME_SM=86 is in force" in run(tmp_path, code, assume="86").stdout
    assert "QUTLASS_ASSUME_SM must be 80, 86, 89 or 90, got 'x'" in (
        run(tmp_path, code, assume="x").stdout
    )


# Every operator's choices for a 3090 at every edge of its tiles, run and compared: exact ones with
# the CPU bit for bit, float sums within the contract's bound.
PRODUCTS = """
import itertools, sys, torch, qutlass
from qutlass import ops, reference
assume = int(sys.argv[1])
torch.manual_seed(0)
ran = set()
edges = sorted({m + d for row in ops._gemm_tiles() for m in (row["m"],) for d in (-1, 0, 1)})
for m, (n, k) in itertools.product([1, 2, *edges, 700], [(72, 256), (1032, 512), (3000, 1024)]):
    a8 = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    a4 = torch.randint(0, 256, (m, k // 2), dtype=torch.uint8)
    a16 = torch.randn(m, k).bfloat16()
    b8 = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    b4 = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    a_scale, b_scale = torch.rand(m) + 0.5, torch.rand(n) + 0.5
    groups = torch.rand(n, k // 64) + 0.5
    multiplier = torch.randint(1, 16, (n, k // 64), dtype=torch.uint8)
    calls = [
        ("matmul_int8_bf16_tn", None, {}, (a8, b8, a_scale, b_scale)),
        ("matmul_w4a4_bf16_tn", None, {}, (a4, b4, a_scale, b_scale)),
        ("matmul_w4a8_bf16_tn", None, {}, (a8, b4, a_scale, b_scale)),
        ("matmul_w4a8_bf16_tn", 64, {}, (a8, b4, a_scale, groups)),
        ("matmul_w4a8_bf16_tn", 64, {"b_multiplier": multiplier}, (a8, b4, a_scale, b_scale)),
        ("matmul_int4_bf16_tn", 64, {}, (a16, b4, groups)),
    ]
    for op, group, named, args in calls:
        chosen = qutlass.explain(op, m, n, k, group, multiplier=bool(named), device="cuda:0")
        assert chosen["assumed"] and chosen["sm"] == assume
        card = qutlass.explain(op, m, n, k, group, multiplier=bool(named), sm=assume)
        assert chosen == {**card, "assumed": True}
        ran.add((chosen["tile"], chosen["split_k"]))
        call = getattr(qutlass, op)
        got = call(*(x.cuda() for x in args), **{key: x.cuda() for key, x in named.items()}).cpu()
        wanted = call(*args, **named)
        if op == "matmul_int4_bf16_tn" or (group and not named):
            error = (got.double() - wanted.double()).norm() / wanted.double().norm()
            assert error < 6e-3, (op, m, n, k, float(error))
        else:
            assert torch.equal(got, wanted), (op, m, n, k, chosen)
print(len(ran))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("sm", [86, 80, 89])
def test_its_choices_run_and_are_right(sm: int, tmp_path: Path) -> None:
    skip_on_a_lesser_gpu(sm)
    ran = run(tmp_path, PRODUCTS, str(sm), assume=str(sm))
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 6


@pytest.mark.gpu
def test_tuned_choices_are_not_an_assumed_cards(tmp_path: Path) -> None:
    """They are of the GPU that is there: neither used nor measured."""
    code = """
import qutlass
from qutlass.tuned import Choice, Problem, Results, path_for
import torch
gpu = torch.cuda.get_device_name(0)
card = qutlass.explain("matmul_int8_bf16_tn", 16, 4096, 4096, sm=86)
results = Results(gpu)
problem = Problem("w8a8", 4096, 4096, 4096, 16)
results.add([Choice(problem, card["tile"], 1, 1.0, card["tile"], 1, 1.0)])
results.save(path_for(gpu))
print(qutlass.explain("matmul_int8_bf16_tn", 16, 4096, 4096)["tuned"])
try:
    qutlass.tune(shapes=[(64, 64)], scheme="w8a8", progress=False)
except RuntimeError as error:
    print(error)
"""
    cache = str(tmp_path / "cache")
    ran = run(tmp_path, code, assume="86", QUTLASS_CACHE_DIR=cache)
    assert ran.returncode == 0, ran.stderr
    used, refusal = ran.stdout.splitlines()
    assert used == "False" and "QUTLASS_ASSUME_SM is set" in refusal
    ran = run(tmp_path, code, QUTLASS_CACHE_DIR=cache)
    assert ran.stdout.splitlines()[0] == "True", ran.stderr
