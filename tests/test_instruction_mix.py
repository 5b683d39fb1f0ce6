# SPDX-License-Identifier: Apache-2.0
"""tools/instruction_mix.py finds the steady state of a mainloop, on a disassembly made up here."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

import instruction_mix as im
import machine_code as mc

MMA = "IMMA.16832.S8.S8 R4, R132.ROW, R136.COL, R4"


def listing_of(lines: Sequence[str]) -> list[mc.Instruction]:
    """As cuobjdump writes it; `name:` labels the next line, `{name}` is its address."""
    labels: dict[str, str] = {}
    code: list[str] = []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = hex(16 * len(code))
        else:
            code.append(line)
    text = ["\tcode for sm_86", "\t\tFunction : k"]
    for n, line in enumerate(code):
        line = line.format(**labels)
        text.append(f"        /*{16 * n:04x}*/  {line} ;  /* 0x0000000000000000 */")
        text.append(f"{'':60}/* 0x000fe40000000f00 */")
    return mc.parse_sass("\n".join(text))[86, "k"]


# A plain loop of two tensor instructions with a rare block in it, behind a loop with zero points,
# which issues more, and before a shorter loop of one, which is no whole k tile.
PROGRAM = [
    "MOV R1, c[0x0][0x28]",
    "zeros:",
    MMA,
    MMA,
    *["IDP.4A.S8.S8 R3, R4, c[0x2][0x0], R3"] * 16,
    "@P0 BRA {zeros}",
    "copies:",  # a loop without tensor instructions
    "LDGSTS.E.BYPASS.LTC128B.128 [R10+0x80], [R88.64], P3",
    "@P0 BRA {copies}",
    "head:",
    MMA,
    "LOP3.LUT R44, R43, 0xf0f0f0f0, RZ, 0xc0, !PT",
    "LDSM.16.M88.4 R24, [R8+0x80]",
    "@!PT LDS RZ, [RZ]",
    "LDGSTS.E.BYPASS.LTC128B.128 [R10+0x80], [R88.64], P3",
    "IMAD R8, R9.reuse, 0x1000, R44",
    "@P2 IADD3 R84, P0, R69, R62, RZ",
    "IMAD.MOV.U32 R88, RZ, RZ, R69",
    MMA,
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "@P1 BRA {done}",
    *["LDS R164, [R169+0x10]", "I2F.RP R170, R174", "MUFU.RCP R166, R170"] * 20,
    "@P3 BRA {done}",
    "CALL.REL.NOINC 0x0",
    "done:",
    "BSYNC B2",
    "@!P4 BRA {head}",
    "short:",
    MMA,
    "@P0 BRA {short}",
    "EXIT",
]
PLAIN = {"tensor": 2, "logic": 1, "integer": 2, "float": 0, "shared": 1, "copy": 1, "rest": 6}


def counts_of(path: Sequence[mc.Instruction]) -> dict[str, int]:
    classes = [im.class_of(instruction) for instruction in path]
    return {name: classes.count(name) for name in im.CLASSES}


def test_a_disassembly_is_read() -> None:
    listing = listing_of(["@!P0 BRA 0x10", "IADD3.X R157, R197, UR5, RZ, P0, !PT", "EXIT"])
    assert listing == [
        (0x00, "!P0", "BRA", "0x10"),
        (0x10, "", "IADD3.X", "R157, R197, UR5, RZ, P0, !PT"),
        (0x20, "", "EXIT", ""),
    ]


def test_loops_that_hold_tensor_instructions() -> None:
    listing = listing_of(PROGRAM)
    loops = im.mainloops(listing)
    bodies = [[i for i in listing if head <= i.address <= end] for head, end in loops]
    assert sorted(len(body) for body in bodies) == [2, 19, 75]


def test_an_outer_loop_is_no_mainloop() -> None:
    listing = listing_of(["outer:", "NOP", *PROGRAM[:-1], "BRA {outer}", "EXIT"])
    assert len(im.mainloops(listing)) == 3


def test_the_steady_state_jumps_over_what_is_rare() -> None:
    path = im.plainest(listing_of(PROGRAM), tensor=2)
    assert counts_of(path) == PLAIN
    assert path[-1].opcode == "BRA"


def test_only_whole_k_tiles_count() -> None:
    listing = listing_of(PROGRAM)
    assert counts_of(im.plainest(listing, tensor=1))["tensor"] == 1
    assert im.plainest(listing, tensor=3) is None


@pytest.mark.parametrize("hot", [MMA, "LDSM.16.M88.4 R24, [R8+0x80]"])
def test_what_every_k_tile_needs_is_not_jumped_over(hot: str) -> None:
    listing = listing_of(["head:", MMA, "@P0 BRA {on}", hot, "on:", "NOP", "@P1 BRA {head}"])
    assert len(im.plainest(listing, tensor=1)) == 5


def test_an_unconditional_branch_is_followed() -> None:
    lines = ["head:", MMA, "BRA {on}", "rare:", MMA, MMA, "on:", "NOP", "@P1 BRA {head}"]
    assert len(im.plainest(listing_of(lines), tensor=1)) == 4


def test_a_condition_may_stand_beside_the_target() -> None:
    lines = ["head:", MMA, "BRA P0, {on}", "MUFU.RCP R1, R2", "on:", "@P0 BRA P1, {head}"]
    assert len(im.plainest(listing_of(lines), tensor=1)) == 3


def test_what_is_rare_may_stand_in_front_of_the_loop() -> None:
    lines = ["BRA {head}", "rare:", "NOP", "NOP", "BRA {on}"]
    lines += ["head:", "@!P0 BRA {rare}", "on:", MMA, "@P1 BRA {head}", "EXIT"]
    path = im.plainest(listing_of(lines), tensor=1)
    assert [i.opcode for i in path] == ["BRA", MMA.split()[0], "BRA"]


@pytest.mark.parametrize(
    "way", ["BRX R2 -0x10", "CALL.REL.NOINC 0x0", "@P0 BRA {before}", "BRA {after}"]
)
def test_a_loop_that_the_rule_does_not_fit_is_set_aside(way: str) -> None:
    """Nothing is counted rather than something wrong."""
    lines = ["before:", "NOP", "head:", MMA, way, "NOP", "@P1 BRA {head}", "after:", "EXIT"]
    listing = listing_of(lines)
    head = next(i.address for i in listing if i.opcode.startswith("IMMA"))
    end = listing[-2].address
    assert im.steady_state(listing, head, end) is None


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (MMA, "tensor"),
        ("HMMA.16816.F32.BF16 R36, R56, R36, RZ", "tensor"),
        ("PRMT R4, R5, 0x4140, R6", "logic"),
        ("SHF.R.U32.HI R4, RZ, 0x4, R5", "logic"),
        ("ULOP3.LUT UR4, UR5, 0x1, URZ, 0xc0, !UPT", "logic"),
        ("SEL R4, R5, RZ, P0", "logic"),
        ("LEA.HI.X R163, R193, R201, R192, 0x6, P0", "integer"),
        ("IMAD.WIDE.U32 R4, R5, R6, R8", "integer"),
        ("UIADD3 UR4, UR4, 0x1, URZ", "integer"),
        ("ISETP.GT.AND P0, PT, R4, RZ, PT", "integer"),
        ("FFMA R4, R5, R6, R4", "float"),
        ("HFMA2.MMA.BF16_V2 R4, R5, 1, 1, R6", "float"),
        ("I2FP.F32.S32 R4, R5", "float"),
        ("LDS.64 R4, [R5]", "shared"),
        ("LDGSTS.E.BYPASS.LTC128B.128 [R10+0x80], [R88.64], P3", "copy"),
        ("LDGDEPBAR", "rest"),
        ("LDG.E R4, [R5.64]", "rest"),
        ("IMAD.MOV.U32 R4, RZ, RZ, R5", "rest"),
        ("@!PT LDS RZ, [RZ]", "rest"),
        ("@!UPT UIADD3 URZ, URZ, URZ, URZ", "rest"),
    ],
)
def test_classes(line: str, name: str) -> None:
    [instruction] = listing_of([line])
    assert im.class_of(instruction) == name


@pytest.mark.parametrize(
    ("op", "warp", "instruction", "tensor", "steps"),
    [
        ("w8a8", (64, 32, 64), "mma.m16n8k32.s8", 32, 2),
        ("w4a4", (16, 64, 128), "mma.m16n8k64.s4", 16, 2),
        ("w4a16", (64, 32, 64), "mma.m16n8k16.bf16", 64, 2),
    ],
)
def test_units(
    op: str, warp: tuple[int, int, int], instruction: str, tensor: int, steps: int
) -> None:
    row = {
        **dict(zip(("warp_m", "warp_n", "warp_k"), warp, strict=True)),
        "name": "a_row",
        "op": op,
        "instruction": instruction,
        "smem_bytes": 64 << 10,
        "threads": 128,
    }
    lines = ["head:", *[MMA] * tensor, *["FADD R4, R5, R6"] * tensor, "@P1 BRA {head}"]
    kernel = mc.Kernel(86, "k", 128, 8, 0, listing=listing_of(lines))
    mix = im.mix_of(row, kernel, legal=True)
    assert (mix.registers, mix.spill_bytes, mix.blocks_per_sm) == (128, 8, 1)
    record = json.loads(json.dumps(mix.record()))
    assert record["total"] == 2 * tensor + 1
    assert record["per_tensor"]["float"] == 1
    assert record["per_step"]["float"] == tensor / steps
    for unit, value in (("tensor", "1.00"), ("step", f"{tensor / steps:.1f}"), ("tile", tensor)):
        *_, tensors = im.table_of([mix], unit, markdown=False).splitlines()
        assert tensors.split()[7] == str(value)


def test_a_row_without_its_loop_is_refused() -> None:
    row = {"name": "a_row", "op": "w8a8", "instruction": "mma.m16n8k32.s8"}
    row |= {"warp_m": 64, "warp_n": 64, "warp_k": 64}
    kernel = mc.Kernel(86, "k", listing=listing_of(PROGRAM))
    with pytest.raises(SystemExit, match="a_row on sm_86 has no loop with the 64 tensor"):
        im.mix_of(row, kernel, legal=True)
