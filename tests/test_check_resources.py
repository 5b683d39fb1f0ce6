# SPDX-License-Identifier: Apache-2.0
"""tools/check_resources.py sees what it is there to see."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import check_resources as cr
import machine_code as mc

KIB = 1024
# A kernel that multiplies INT4 and one that a limit of 32 registers makes spill.
SOURCE = """
extern "C" __global__ void products(int* out, const unsigned* in) {
  int c[4] = {0, 0, 0, 0};
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32.satfinite "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(in[0]), "r"(in[1]), "r"(in[2]), "r"(in[3]), "r"(in[4]), "r"(in[5]));
  out[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}
extern "C" __global__ void spills(float* p, int n) {
  __shared__ float s[8];
  float v[48];
#pragma unroll
  for (int i = 0; i < 48; ++i) v[i] = p[i * n + threadIdx.x];
  s[threadIdx.x % 8] = v[47];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 48; ++i) p[i * n + threadIdx.x] = v[i] * v[47 - i] + s[i % 8];
}
"""
NATIVE_OPCODE = {
    "w8a8": "IMMA.16832.S8.S8",
    "w4a4": "IMMA.16864.S4.S4.SAT",
    "w4a8": "IMMA.16832.S8.S8",
    "w4a16": "HMMA.16816.F32.BF16",
}


def row(op: str = "w8a8", smem: int = 64 * KIB, threads: int = 128) -> dict:
    return {"name": "a_row", "op": op, "smem_bytes": smem, "threads": threads}


def kernel(op: str = "w8a8", arch: int = 86, registers: int = 128, **opcodes: int) -> mc.Kernel:
    instructions = Counter({NATIVE_OPCODE[op]: 64, "FFMA": 3, **opcodes})
    return mc.Kernel(arch, "k", registers, 0, 0, instructions)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[mc.Kernel]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    try:
        cuobjdump = mc.find_tool("cuobjdump")
    except SystemExit as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("object")
    (folder / "k.cu").write_text(SOURCE)
    code = "--generate-code=arch=compute_80,code=[sm_80,sm_86]"
    command = [nvcc, code, "--maxrregcount=32", "-c", "k.cu", "-o", "k.o"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return mc.read_object(folder / "k.o", cuobjdump)


def test_it_reads_what_the_compiler_wrote(compiled: list[mc.Kernel]) -> None:
    assert sorted((k.arch, k.name) for k in compiled) == [
        (80, "products"),
        (80, "spills"),
        (86, "products"),
        (86, "spills"),
    ]
    for k in compiled:
        assert 0 < k.registers <= 32
        if k.name == "products":
            assert k.count(cr.NATIVE["w4a4"]) == 1
            assert k.local_bytes == k.static_smem == 0
            assert k.count(r"(LDL|STL)\b") == 0
        else:
            assert k.static_smem == 32
            assert k.local_bytes > 0
            assert k.count(r"LDL\b") > 0
            assert k.count(r"STL\b") > 0


def test_a_spill_in_a_real_object_is_a_problem(compiled: list[mc.Kernel]) -> None:
    for k in compiled:
        problems = cr.judge(row("w4a4"), k, legal=True).problems
        assert any("spills" in p for p in problems) == (k.name == "spills")


@pytest.mark.parametrize("op", NATIVE_OPCODE)
@pytest.mark.parametrize("arch", [80, 86])
def test_a_sound_row_has_no_problems(op: str, arch: int) -> None:
    report = cr.judge(row(op), kernel(op, arch), legal=True)
    assert report.problems == []
    assert report.tensor == 64


@pytest.mark.parametrize("opcode", ["LDL", "STL.64", "LDL.LU"])
def test_a_spill_is_a_problem(opcode: str) -> None:
    [problem] = cr.judge(row(), kernel(**{opcode: 2}), legal=True).problems
    assert "2 loads and stores" in problem


def test_local_memory_without_an_instruction_is_a_problem() -> None:
    k = kernel()
    k.local_bytes = 16
    [problem] = cr.judge(row(), k, legal=True).problems
    assert "16 bytes of local memory" in problem


def test_int4_products_must_be_native() -> None:
    emulated = mc.Kernel(86, "k", 128, 0, 0, Counter({"IMMA.16832.S8.S8": 64}))
    [problem] = cr.judge(row("w4a4"), emulated, legal=True).problems
    assert "IMMA" in problem
    emulated.arch = 90  # where there is no such instruction
    assert cr.judge(row("w4a4"), emulated, legal=True).problems == []


def test_unsigned_weights_are_for_multipliers() -> None:
    unsigned = mc.Kernel(86, "k", 128, 0, 0, Counter({"IMMA.16832.S8.U8": 64}))
    assert cr.judge(row("w4a8_multiplier"), unsigned, legal=True).problems == []
    assert cr.judge(row("w4a8"), unsigned, legal=True).problems != []


def test_foreign_tensor_instructions_are_a_problem() -> None:
    [problem] = cr.judge(row(), kernel(**{"HMMA.16816.F32": 1}), legal=True).problems
    assert "HMMA.16816.F32" in problem


@pytest.mark.parametrize(
    ("arch", "smem", "fits"),
    [
        (86, 99 * KIB, True),
        (86, 99 * KIB + 1, False),
        (89, 99 * KIB + 1, False),
        (80, 163 * KIB, True),
        (80, 163 * KIB + 1, False),
    ],
)
def test_shared_memory_is_limited(arch: int, smem: int, fits: bool) -> None:
    legal = cr.judge(row(smem=smem), kernel(arch=arch), legal=True)
    assert (legal.problems == []) == fits
    # A row that selection leaves out on the card may need what it likes.
    assert cr.judge(row(smem=smem), kernel(arch=arch), legal=False).problems == []


def test_a_block_has_to_fit_the_register_file() -> None:
    assert cr.judge(row(threads=256), kernel(registers=255), legal=True).problems == []
    [problem] = cr.judge(row(threads=512), kernel(registers=255), legal=True).problems
    assert "512 threads of 255 registers" in problem


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "smem", "blocks"),
    [
        (80, 128, 128, 48 * KIB, 3),  # shared memory: 164 / (48 + 1)
        (80, 255, 256, 1 * KIB, 1),  # registers: 65536 / (256 * 256)
        (86, 32, 256, 1 * KIB, 6),  # threads: 1536 / 256
        (86, 32, 32, 1 * KIB, 16),  # blocks
    ],
)
def test_blocks_of_a_multiprocessor(
    arch: int, registers: int, threads: int, smem: int, blocks: int
) -> None:
    assert cr.blocks_per_sm(arch, registers, threads, smem) == blocks


def test_a_row_without_its_object_is_refused(tmp_path: Path) -> None:
    class OneRow:
        def rows(self) -> list[dict]:
            tile = dict.fromkeys(("m", "n", "k", "warp_m", "warp_n", "warp_k", "stages"), 16)
            return [{**row(), **tile}]

    with pytest.raises(SystemExit, match="no objects of a_row"):
        cr.check(tmp_path, OneRow())
