# SPDX-License-Identifier: Apache-2.0
"""tools/cost_model.py is the model of csrc/gemm/select.cpp, and what its tools do with it."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

import cost_model
import fit_selection
import project_cards
import qutlass
import what_rows_bring
from qutlass.bench.schemes import SCHEMES
from qutlass.tuned import table_rows

TOKENS = (1, 16, 33, 40, 64, 65, 100, 129, 257, 1000, 4096)
SHAPES = ((4096, 4096), (57344, 8192), (520, 14336))
MEASURED = {(4096, 4096): 1.0, (8192, 8192): 2.0}  # layer: regret that its times are made to have


@pytest.mark.parametrize("sm", [80, 86, 90])
def test_it_chooses_as_the_library_does(sm: int) -> None:
    card, values = cost_model.find_card(sm), cost_model.constants()
    factors = cost_model.row_factors()
    others = []
    for scheme, m, (n, k) in itertools.product(SCHEMES.values(), TOKENS, SHAPES):
        # Small groups leave some rows out, and move where splits may cut.
        for group in {scheme.group_of(128), scheme.group_of(32)}:
            multiplier = scheme.scales == "multiplier"
            answer = qutlass.explain(scheme.op, m, n, k, group, multiplier=multiplier, sm=sm)
            problem = cost_model.Problem(scheme.name, m, n, k, group or k)
            tile, split, us = cost_model.select(problem, card, values, factors)
            assert us > 0
            if (tile["name"], split) != (answer["tile"], answer["split_k"]):
                others.append((problem, tile["name"], split, answer["tile"], answer["split_k"]))
    assert not others


def test_strips_are_whole() -> None:
    """Rows of a warp that are multiplied or left out together."""
    for row in table_rows():
        assert 0 < row["strip"] <= 32 and row["warp_m"] % row["strip"] == 0, row


def test_cards_are_those_of_the_library() -> None:
    for sm in (80, 86, 89, 90):
        answer = qutlass.explain("matmul_int8_bf16_tn", 16, 4096, 4096, sm=sm)
        assert cost_model.find_card(sm).sm_count == answer["sm_count"]
    # 16 cycles for 8192 operations of each of 4 schedulers, at the clock the model assumes.
    card = cost_model.find_card(86)
    assert 8192 / card.cycles["s8"] * 4 * 82 * card.clock == pytest.approx(284e6, rel=0.03)
    with pytest.raises(ValueError, match="sm_75"):
        cost_model.find_card(75)


def test_factors_are_of_rows_that_there_are() -> None:
    """Close to 1, where they are; a row that was renamed or dropped takes its factor along."""
    factors = cost_model.row_factors()
    assert len(factors) > 50
    assert set(factors) <= {row["name"] for row in table_rows()}
    assert all(0.8 < factor < 1.25 for factor in factors.values())


def test_a_fit_lowers_regret_and_is_written(
    times: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On times that the constants choose wrongly by; what is written reads back."""
    source = tmp_path / "gemm" / "select.cpp"
    source.parent.mkdir()
    source.write_text(fit_selection.SELECT.read_text())
    monkeypatch.setattr(fit_selection, "SELECT", source)
    monkeypatch.setattr(fit_selection, "CSRC", tmp_path)
    before = cost_model.constants()
    fit_selection.main([str(times), "--steps", "200", "--write"])
    printed = capsys.readouterr().out
    assert "2 problems: regret 1.000 geometric mean, 1.000 worst" in printed
    monkeypatch.setattr(cost_model, "CSRC", tmp_path)
    cost_model._source.cache_clear()
    try:
        after, factors = cost_model.constants(), cost_model.row_factors()
    finally:
        cost_model._source.cache_clear()
    assert list(after) == list(before)
    for name, value in after.items():
        assert f"constexpr double {name} = {value:g};" in printed
        if name in fit_selection.FIXED:
            assert value == before[name]
    assert after != before
    assert list(factors) == [row["name"] for row in table_rows() if row["op"] == "w8a8"][:3]


@pytest.mark.parametrize("text", ["4096", "4096x", "4096x0", "4096,4096", "ax1"])
def test_layers_of_a_command_line(text: str) -> None:
    assert cost_model.parse_layer("6144x4096") == (6144, 4096)
    with pytest.raises(argparse.ArgumentTypeError, match="NxK"):
        cost_model.parse_layer(text)


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """Times as of time_rows.py: each layer's choice is so many times slower than the best row."""
    card = cost_model.find_card(90)
    # Where a search that holds layers out starts.
    values = {
        name: v if name in fit_selection.FIXED else 2.0 ** round(math.log2(v))
        for name, v in cost_model.constants().items()
    }
    lines = [{"op": "bf16", "m": 16, "n": 4096, "k": 4096, "us": 9.0}]
    for (n, k), regret in MEASURED.items():
        tiles = [row for row in table_rows() if row["op"] == "w8a8"][:3]
        points = cost_model.Points(((16, n, k, tile, 1) for tile in tiles), card)
        chosen = cost_model.first_clear(points.estimate(values).tolist(), values["kClearly"])
        lines += [
            {"op": "w8a8", "m": 16, "n": n, "k": k, "row": tile["name"], "s": 1, "us": us}
            for i, tile in enumerate(tiles)
            for us in [100.0 * regret if i == chosen else 100.0]
        ]
    lines.append({**lines[-1], "row": "w8a8_no_such_row"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_layers_held_out(times: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_selection.main([str(times), "--steps", "0", "--held-out", "8192x8192"])
    printed = capsys.readouterr().out
    assert "1 times are of rows that the table has no longer" in printed
    assert "1 problems: regret 1.000 geometric mean, 1.000 worst" in printed
    assert "1 problems out of sample: regret 2.000 geometric mean, 2.000 worst" in printed


def test_a_layer_that_was_not_timed_cannot_be_held_out(
    times: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit_selection.main([str(times), "--steps", "0", "--held-out", "512x512"])
    assert "has no layer 512x512" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit_selection.main([str(times), "--held-out", "4096x4096", "8192x8192"])
    assert "nothing is left to fit" in capsys.readouterr().err


def test_regular_expressions_of_a_command_line() -> None:
    assert cost_model.parse_regex("16x|32x").search("w8a8_32x64")
    with pytest.raises(argparse.ArgumentTypeError, match=r"no regular expression: '\('"):
        cost_model.parse_regex("(")


class TestWhatRowsBring:
    """Of three rows, one of which takes twice as long in one of two layers."""

    @pytest.fixture
    def rows(self, times: Path) -> dict[str, float]:
        """The regret of each where it is largest."""
        read = [json.loads(line) for line in times.read_text().splitlines()]
        known = {row["name"] for row in table_rows()}
        return {r["row"]: r["us"] / 100 for r in read if r.get("row") in known}

    def test_rows_that_others_replace(
        self, times: Path, rows: dict[str, float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        what_rows_bring.main([str(times), "--rows", f"^{next(iter(rows))}$"])
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["M", "16"],
            ["w8a8", "1.000"],
        ]

    def test_rows_that_do_better(
        self, times: Path, rows: dict[str, float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Only the slow one is left, in one layer as fast as the others."""
        slow = max(rows, key=lambda row: rows[row])
        assert rows[slow] == 2
        others = "|".join(row for row in rows if row != slow)
        what_rows_bring.main([str(times), "--rows", others, "--markdown"])
        assert f"| w8a8 | {1 / math.sqrt(2):.3f} |" in capsys.readouterr().out

    def test_by_shared_memory(
        self, times: Path, rows: dict[str, float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sizes = sorted(row["smem_bytes"] for row in table_rows() if row["name"] in rows)
        what_rows_bring.main([str(times), "--above", str(sizes[0] - 1)])
        assert capsys.readouterr().out.split() == ["M", "16", "w8a8", "-"]
        with pytest.raises(SystemExit):
            what_rows_bring.main([str(times), "--above", str(sizes[-1])])
        assert "has no such rows" in capsys.readouterr().err


class TestProjection:
    @pytest.fixture(autouse=True)
    def little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(project_cards, "TOKENS", (1, 4096))

    def test_ideal_bf16(self) -> None:
        """A large product takes its operations, a decode its bytes."""
        rtx_3090 = project_cards.CARDS[0]
        assert rtx_3090.ideal_bf16(4096, 4096, 4096) == pytest.approx(2 * 4096**3 / 71e12 * 1e6)
        weight = 4096 * 14336 * 2
        assert rtx_3090.ideal_bf16(1, 4096, 14336) == pytest.approx(
            (weight + 4096 * 2 + 14336 * 2) / 936e9 * 1e6
        )

    def test_a_data_sheet_is_a_card(self) -> None:
        for sheet in project_cards.CARDS:
            card = sheet.card()
            assert (card.sm, card.sm_count, card.bandwidth) == (
                sheet.sm,
                sheet.sm_count,
                sheet.bandwidth * 1e3,
            )
            # Instructions of all schedulers at these cycles make the rates; clocks are sensible.
            for name, rate in (("s8", sheet.int8), ("s4", sheet.int4), ("bf16", sheet.bf16)):
                operations = project_cards.OPERATIONS[name] * 4 * sheet.sm_count
                made = operations / card.cycles[name] * card.clock * 1e-6
                assert made == pytest.approx(rate)
            assert 1300 < card.clock < 1900
        # A GeForce sums bfloat16 in float32 at half the rate of its siblings.
        bf16 = [sheet.card().cycles["bf16"] for sheet in project_cards.CARDS]
        assert bf16 == pytest.approx([32, 16, 16, 8], rel=0.01)

    def test_one_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """TOPS and speed-up are of the same time, and none is above what the card can do."""
        monkeypatch.setattr(project_cards, "LAYERS", ((4096, 4096),))
        for sheet in project_cards.CARDS:
            rates = {"int8": sheet.int8, "int4": sheet.int4, "bf16": sheet.bf16}
            found = list(project_cards.project(sheet, cost_model.constants(), {}))
            assert {(p.scheme, p.m) for p in found} == set(itertools.product(SCHEMES, (1, 4096)))
            for p in found:
                us = 2e-6 * p.m * 4096 * 4096 / p.tops
                ideal = sheet.ideal_bf16(p.m, 4096, 4096)
                assert p.speedup_over_ideal_bf16 == pytest.approx(ideal / us)
                assert 0 < p.tops < rates[SCHEMES[p.scheme].instruction]

    def test_it_says_what_it_is(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(project_cards, "LAYERS", ((4096, 4096), (8192, 8192)))
        path = tmp_path / "projection.jsonl"
        project_cards.main(["--json", str(path)])
        plain = capsys.readouterr().out
        project_cards.main(["--markdown"])
        page = capsys.readouterr().out
        for printed in (plain, page):
            assert printed.startswith("PROJECTED")
            assert printed.count("PROJECTED: ") == len(project_cards.CARDS)
            assert "not measured" in printed
        assert page.count("| --- |") == len(project_cards.CARDS) + len(project_cards.TIMED)
        records = [json.loads(line) for line in path.read_text().splitlines()]
        projections = [r for r in records if r.get("projected")]
        assert len(projections) == len(project_cards.CARDS) * len(SCHEMES) * 2
        errors = [r for r in records if "median" in r]
        assert len(projections) + len(errors) == len(records)
        assert [(e["gpu"], e["scheme"]) for e in errors] == list(
            itertools.product(project_cards.TIMED, SCHEMES)
        )
        for error in errors:
            assert 0.3 < error["p10"] <= error["median"] <= error["p90"] < 3
            assert error["problems"] > 10

    def test_error_of_the_model(self, times: Path) -> None:
        values = cost_model.constants()
        [error], gone = project_cards.errors_of("a GPU", times, 3350.0, values)
        card = dataclasses.replace(cost_model.find_card(90), bandwidth=3350e3)
        read = cost_model.Times(times, card)
        estimates = read.points.estimate(values)
        chosen = read.chosen(estimates, values["kClearly"])
        ratios = sorted((estimates[chosen] / read.us[chosen]).tolist())
        assert (error.gpu, error.scheme, error.problems, gone) == ("a GPU", "w8a8", 2, 1)
        assert error.median == pytest.approx(sum(ratios) / 2)
        assert ratios[0] < error.p10 < error.median < error.p90 < ratios[1]
