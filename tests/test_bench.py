# SPDX-License-Identifier: Apache-2.0
"""`python -m qutlass bench`: what follows from records, and how they come to be."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from qutlass import cli
from qutlass.bench import gemm, gpu, host, measure, peers, plots, records, schemes, shapes, tables
from qutlass.timing import Timing

FACTS = {
    "gpu": "NVIDIA H200",
    "sm": 90,
    "sm_count": 132,
    "driver_version": "580.1",
    "clocks_sm": "1980 MHz",
    "clocks_max_sm": "1980 MHz",
    "cuda": "13.0",
    "torch": "2.11.0",
    "commit": "abc1234",
    "modified": False,
    "copy_GBps": 4000.0,
    "ceiling_TOPS": {"int8": 1000.0, "bf16": 500.0},
    "ceiling_source": "measured",
    "assume_sm": None,
    "command": "python -m qutlass bench",
}


def record(scheme: str, us: float, kind: str = "ideal", **other: Any) -> records.Record:
    """A record of M 16, N 4096, K 4096 unless `other` says so, with a floor of 2 us."""
    made = {
        "bench": "gemm",
        "scheme": scheme,
        "kind": kind,
        "title": scheme.upper(),
        "M": 16,
        "N": 4096,
        "K": 4096,
        "group": None,
        "zeros": False,
        "us": us,
        "low_us": us,
        "high_us": us,
        "spread": 0.0,
        "samples": 9,
        "bytes": 8e6,
        "floor_us": None if kind == "peer" else 2.0,
        "instruction": None if kind == "peer" else "int8",
        "tile": None if kind == "peer" else "a_tile",
        "split_k": None if kind == "peer" else 1,
        "beside": [],
        **other,
        **FACTS,
    }
    made["operations"] = 2 * made["M"] * made["N"] * made["K"]
    made["TOPS"] = made["operations"] / us / 1e6
    made["GBps"] = made["bytes"] / us / 1e3
    made["of_floor"] = made["floor_us"] / us if made["floor_us"] else None
    return made


def run(*, w8a8: Sequence[float] = (5.0, 10.0, 40.0), n: int = 4096) -> list[records.Record]:
    """Three M of one (N, K): cuBLAS takes 20 us, `w8a8` what is said."""
    made = []
    for m, us in zip((1, 16, 64), w8a8, strict=True):
        point = [
            record("cublas_bf16", 20.0, "peer", M=m, N=n),
            record("torch_int_mm", 12.0, "peer", M=m, N=n, beside=["w8a8"]),
            record("w8a8", us, M=m, N=n),
            record("w8a8", us + 1, "actual", M=m, N=n),
        ]
        records.relate(point)
        made += point
    return made


def write(path: Path, lines: Sequence[records.Record]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bench(*words: str | Path) -> int:
    return cli.main(["bench", *map(str, words)])


class TestRecords:
    def test_geomean(self) -> None:
        assert records.geomean([2.0, 8.0]) == pytest.approx(4.0)
        assert records.geomean([1.0, 10.0, 100.0]) == pytest.approx(10.0)
        assert records.geomean([]) is None

    def test_relate(self) -> None:
        point = [
            record("cublas_bf16", 20.0, "peer"),
            record("one", 12.0, "peer", beside=["w8a8"]),
            record("other", 8.0, "peer", beside=["w8a8", "w4a8"]),
            record("w8a8", 10.0),
            record("w8a8", 16.0, "actual"),
            record("w4a8", 4.0),
            record("w4a8", 2.0, "tile", tile="better"),
            record("w4a8", 6.0, "tile", tile="worse"),
            record("w4a16", 5.0),
        ]
        records.relate(point)
        by_name = {(r["scheme"], r["kind"], r["tile"]): r for r in point}
        w8a8 = by_name["w8a8", "ideal", "a_tile"]
        assert (w8a8["x_bf16"], w8a8["best_peer"], w8a8["x_peer"]) == (2.0, "other", 0.8)
        assert w8a8["regret"] is None
        assert by_name["w8a8", "actual", "a_tile"]["x_bf16"] == 1.25
        assert by_name["w4a8", "ideal", "a_tile"]["regret"] == 2.0
        assert by_name["w4a8", "tile", "better"]["regret"] == 1.0
        assert by_name["w4a8", "tile", "worse"]["regret"] == 3.0
        assert by_name["w4a16", "ideal", "a_tile"]["best_peer"] is None
        assert by_name["one", "peer", None]["x_peer"] is None

    def test_relate_without_a_baseline(self) -> None:
        point = [record("w8a8", 10.0)]
        records.relate(point)
        assert point[0]["x_bf16"] is None

    def test_means_over_layers(self) -> None:
        """20 us of cuBLAS over 5 and over 20 us: 4 and 1, whose geometric mean is 2."""
        both = run(w8a8=(5.0, 10.0, 40.0)) + run(w8a8=(20.0, 10.0, 10.0), n=8192)
        means = records.mean_by_m(both, "x_bf16")
        mean, count = means["w8a8", "ideal"][1]
        assert (mean, count) == (pytest.approx(2.0), 2)
        assert means["w8a8", "ideal"][64][0] == pytest.approx(1.0)
        assert means["cublas_bf16", "peer"][16] == (1.0, 2)
        assert list(means["w8a8", "actual"]) == [1, 16, 64]

    def test_rows_of_the_table_are_in_no_mean(self) -> None:
        point = [record("w8a8", 10.0, of="x"), record("w8a8", 1.0, "tile")]
        assert records.mean_by_m(point, "of_floor") == {("w8a8", "ideal"): {16: (0.2, 1)}}

    def test_cliffs(self) -> None:
        """From 16 to 64 the time grows fourfold and the floor twofold; from 1 to 16 both twice."""
        line = [
            record("w8a8", 5.0, M=1, floor_us=1.0),
            record("w8a8", 40.0, M=64, floor_us=4.0),
            record("w8a8", 10.0, M=16, floor_us=2.0),
            record("w8a8", 1e3, "actual", M=32),
        ]
        [cliff] = records.cliffs(line)
        assert (cliff.low, cliff.high, cliff.rise, cliff.floor_rise) == (16, 64, 4.0, 2.0)
        assert cliff.excess == 2.0

    def test_a_cliff_is_of_one_layer(self) -> None:
        assert not records.cliffs([record("w8a8", 1.0, M=1, N=64), record("w8a8", 9.0, N=128)])

    def test_regrets(self) -> None:
        points = []
        for m, best in ((1, 5.0), (16, 2.5)):
            point = [
                record("w4a8", 10.0, M=m),
                record("w4a8", best, "tile", M=m, tile=f"best_of_{m}", split_k=2),
            ]
            records.relate(point)
            points += point
        [loss] = records.regrets(points)
        assert loss.points == 2
        assert loss.mean == pytest.approx(math.sqrt(8))
        assert (loss.worst["M"], loss.worst["regret"]) == (16, 4.0)
        assert loss.best_row == "best_of_16 x2"

    def test_load_takes_the_later_of_two(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [*run(), record("w8a8", 7.0, M=1)])
        loaded = records.load([path])
        assert len(loaded) == 12
        assert [
            r["us"] for r in loaded if (r["scheme"], r["kind"], r["M"])[1:] == ("ideal", 1)
        ] == [7.0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [("", "no records"), ("{}\n", "line 1: not a record"), ("\nno\n", "line 2: not a record")],
    )
    def test_load_refuses(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(text)
        with pytest.raises(records.NoRecords, match=message):
            records.load([path])

    def test_what_differs_is_not_averaged(self) -> None:
        records.require_one_kind([record("a", 1.0), record("b", 1.0, group=128)])
        for other in ({"group": 64}, {"zeros": True}, {"assume_sm": "86"}):
            mixed = [record("a", 1.0, group=128), {**record("b", 1.0), **other}]
            with pytest.raises(records.NoRecords, match=next(iter(other))):
                records.require_one_kind(mixed)


class TestGpu:
    def test_ceilings(self) -> None:
        known = gpu.ceilings({"gpu": "NVIDIA H200", "sm": 90})
        assert known["ceiling_source"] == "measured"
        sheet = gpu.ceilings({"gpu": "NVIDIA GeForce RTX 3090", "sm": 86})
        assert (sheet["ceiling_TOPS"]["int8"], sheet["ceiling_source"]) == (284.0, "data sheet")
        a100 = gpu.ceilings({"gpu": "NVIDIA A100-SXM4-80GB", "sm": 80})
        assert a100["ceiling_TOPS"]["int4"] == 1248.0
        for name in ("NVIDIA GeForce RTX 3090 Ti", "NVIDIA A10G"):
            other = gpu.ceilings({"gpu": name, "sm": 86, "sm_count": 84})
            assert other == {"ceiling_TOPS": {}, "ceiling_source": None}

    def test_ceilings_of_a_smaller_hopper(self) -> None:
        """Half the SMs at the same clock do half of what the whole card does."""
        environment = {"gpu": "A Hopper", "sm": 90, "sm_count": 66, "clocks_max_sm": "1980 MHz"}
        scaled = gpu.ceilings(environment)
        whole = gpu.ceilings({"gpu": "NVIDIA H200", "sm": 90})["ceiling_TOPS"]
        assert scaled["ceiling_TOPS"]["int8"] == pytest.approx(whole["int8"] / 2)
        assert scaled["ceiling_source"] == "scaled from H200 by SMs and clock"

    def test_label(self) -> None:
        assert gpu.label("NVIDIA H200", 90) == "H200, mma.sync path"
        assert gpu.label("NVIDIA GeForce RTX 3090", 86) == "RTX 3090 (sm_86)"
        assumed = gpu.label("NVIDIA H200", 90, "86")
        assert assumed == "H200, mma.sync path, limits of sm_86"


class TestShapes:
    def test_presets(self) -> None:
        assert len(shapes.PRESETS["targets"]) == 70
        assert shapes.Shape(8192, 57344, 8192) in shapes.PRESETS["targets"]
        assert {33, 65, 129} <= {shape.m for shape in shapes.PRESETS["sweep"]}

    def test_by_layer(self) -> None:
        points = [shapes.Shape(*p) for p in ((1, 8, 16), (4, 8, 32), (2, 8, 16), (1, 8, 16))]
        assert shapes.by_layer(points) == {(8, 16): [1, 2], (8, 32): [4]}


class TestTables:
    def test_a_sheet_as_markdown(self) -> None:
        sheet = tables.Sheet("A title", ["what", "n"], notes=["A note."])
        sheet.add("one", "1")
        assert sheet.markdown() == (
            "**A title**\n\n| what | n |\n| --- | ---: |\n| one | 1 |\n\nA note.\n"
        )

    def test_the_summary(self) -> None:
        speedup, floor, cliff = tables.summary(run())
        assert speedup.columns == ["M", "1", "16", "64"]
        assert speedup.rows == [
            ["W8A8", "4.00", "2.00", "0.50"],
            ["W8A8 + quantization", "3.33", "1.82", "0.49"],
            ["TORCH_INT_MM", "1.67", "1.67", "1.67"],
        ]
        assert floor.rows == [["W8A8", "0.40", "0.20", "0.05"]]
        assert "int8 1000, bf16 500 TOPS, measured" in floor.notes[0]
        assert cliff.rows == [["W8A8", "4096, 4096", "16 to 64", "4.00x", "1.00x", "4.00x"]]

    def test_a_mean_over_fewer_layers_is_marked(self) -> None:
        speedup = next(tables.summary(run() + run(n=8192)[:4]))
        assert speedup.title == "x cuBLAS bf16, geometric mean over 2 (N, K)"
        assert speedup.rows[0] == ["W8A8", "4.00", "2.00*", "0.50*"]
        assert speedup.notes[-1] == "* of fewer (N, K)."

    def test_points(self) -> None:
        [row] = [r for r in tables.points(run()).rows if r[1] == "W8A8" and r[3] == "10.00"]
        assert row[2] == "a_tile x1"
        assert row[-4:] == ["800", "0.20", "2.00", "1.20 torch_int_mm"]

    def test_rows_of_the_table_stand_below_the_choice(self) -> None:
        point = [record("w4a8", 10.0), record("w4a8", 5.0, "tile", tile="other")]
        records.relate(point)
        sheet = tables.points(point)
        assert sheet.columns[-1] == "regret"
        assert [(row[1], row[2], row[-1]) for row in sheet.rows] == [
            ("W4A8", "a_tile x1", "2.000"),
            ("", "other x1", "1.000"),
        ]
        *_, regret = tables.summary(point)
        assert regret.rows == [
            ["W4A8", "16, 4096, 4096", "a_tile x1", "other x1", "1", "2.000", "2.000"]
        ]


class TestFrom:
    """Tables and plots of a file, on a machine without a GPU."""

    def test_tables(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path / "a.jsonl", run())
        assert bench("--from", path) == 0
        out = capsys.readouterr().out
        for text in ("N 4096, K 4096", "x cuBLAS bf16", "Fraction of the floor", "commit abc1234"):
            assert text in out
        assert bench("--from", path, "--summary", "--markdown") == 0
        assert "| W8A8 | 4.00 | 2.00 | 0.50 |" in capsys.readouterr().out

    @pytest.mark.parametrize("of", ["two layers", "one layer", "one point", "no ceilings"])
    def test_plots(self, tmp_path: Path, of: str) -> None:
        lines = {
            "two layers": run() + run(n=8192),
            "one layer": run(),
            "one point": run()[:4],
            "no ceilings": [
                {**r, "ceiling_TOPS": {}, "ceiling_source": None} for r in run() if r["M"] > 1
            ],
        }[of]
        folder = tmp_path / "new" / "plots"
        path = write(tmp_path / "a.jsonl", lines)
        assert bench("--from", path, "--summary", "--plots", folder) == 0
        names = {f"{n}.{s}" for n in ("speedup", "throughput", "floor", "roofline") for s in SUFFIX}
        assert {p.name for p in folder.iterdir()} == names
        for name in names:
            data = (folder / name).read_bytes()
            assert len(data) > 4000
            assert data[1:4] == b"PNG" if name.endswith("png") else b"<svg" in data
        assert "H200, mma.sync path" in (folder / "speedup.svg").read_text()
        assert "W8A8" in (folder / "throughput.svg").read_text()

    def test_plots_of_peers_alone(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [r for r in run() if r["kind"] == "peer"])
        assert bench("--from", path, "--summary", "--plots", tmp_path / "plots") == 0
        names = {p.stem for p in (tmp_path / "plots").iterdir()}
        assert names == {"speedup", "throughput"}

    def test_nothing_to_show(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench("--from") == 2
        assert "there are no records" in capsys.readouterr().err
        assert bench("--from", tmp_path / "absent.jsonl") == 2
        assert "absent.jsonl" in capsys.readouterr().err

    def test_two_gpus(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = [{**r, "gpu": "Another"} for r in run(n=8192)]
        path = write(tmp_path / "a.jsonl", [*run(), *other])
        assert bench("--from", path) == 2
        assert "differ in gpu (Another, NVIDIA H200)" in capsys.readouterr().err


SUFFIX = ("svg", "png")


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([0, 50], [0, 50]),
        ([50, 50], [45, 55]),
        ([48, 50, 52], [40, 50, 60]),
        ([20, 30, 31], [17, 27, 37]),
        ([98, 99], [90, 100]),
        ([0, 1, 50, 52], [0, 10, 46, 56]),
    ],
)
def test_labels_make_room(wanted: list[float], placed: list[float]) -> None:
    found = plots.spread(wanted, 10, 100)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(found))
    assert found[0] >= 0 and found[-1] <= 100
    assert found == pytest.approx(placed)


class TestCompare:
    @pytest.fixture
    def compare(self, tmp_path: Path) -> Callable[..., int]:
        before = write(tmp_path / "before.jsonl", run())

        def compare(after: list[records.Record], *words: str) -> int:
            return bench("--compare", before, write(tmp_path / "after.jsonl", after), *words)

        return compare

    def test_the_same(self, compare: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
        assert compare(run()) == 0
        assert "0 of 6 points slower" in capsys.readouterr().out

    def test_faster(self, compare: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
        assert compare(run(w8a8=(2.5, 5.0, 20.0))) == 0
        out = capsys.readouterr().out
        assert "0.500" in out
        assert "peers, as a control" in out

    def test_one_point_slower(
        self, compare: Callable[..., int], capsys: pytest.CaptureFixture
    ) -> None:
        after = run(w8a8=(5.0, 11.0, 40.0))
        assert compare(after) == 1
        out = capsys.readouterr().out
        assert "2 of 6 points slower by more than 1.08x" in out
        assert "1.100" in out
        # (1 * 1.1 * 1) ** (1 / 3)
        assert "1.032" in out
        assert compare(after, "--threshold", "1.2") == 0

    def test_slower_peers_are_not_ours(self, compare: Callable[..., int]) -> None:
        slower = [{**r, "us": 2 * r["us"]} if r["kind"] == "peer" else r for r in run()]
        assert compare(slower) == 0

    def test_points_of_one_file_only(
        self, compare: Callable[..., int], capsys: pytest.CaptureFixture
    ) -> None:
        assert compare(run()[:4]) == 0
        assert "8 records stand in one file only" in capsys.readouterr().out
        for other in ({"group": 64}, {"zeros": True}, {"N": 64}):
            assert compare([{**r, **other} for r in run()]) == 2
        assert "no point in common" in capsys.readouterr().err


class TestCommandLine:
    @pytest.mark.parametrize(
        "words",
        [
            ["--shapes", "1,2"],
            ["--shapes", "1,2,x"],
            ["--shapes", "0,4096,4096"],
            ["--preset", "all"],
            ["--schemes", "w2a2"],
            ["--seconds", "0"],
            ["--threshold", "-1"],
            ["--peers", "nobody"],
        ],
    )
    def test_refused(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            bench(*words)
        assert stopped.value.code == 2
        assert words[0] in capsys.readouterr().err

    def test_without_a_gpu(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert bench() == 2
        assert "torch sees no CUDA GPU; --from shows" in capsys.readouterr().err

    def test_without_rich(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(gemm.importlib.util, "find_spec", lambda name: None)
        assert bench("--plots", "somewhere") == 2
        message = 'needs rich, matplotlib; install with: pip install "qutlass[bench]"'
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("question", ["quant", "host"])
    def test_other_questions(self, question: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            bench(question, "--help")
        assert stopped.value.code == 0
        assert f"python -m qutlass bench {question}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "script",
        sorted((Path(__file__).parent.parent / "bench").glob("*.py")),
        ids=lambda p: p.stem,
    )
    def test_scripts(
        self, script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each is the program of the package."""
        monkeypatch.setattr("sys.argv", [str(script), "--help"])
        with pytest.raises(SystemExit) as stopped:
            exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__"})
        assert stopped.value.code == 0
        assert "usage: python -m qutlass bench" in capsys.readouterr().out


class TestPeers:
    def test_one_that_is_not_installed(self) -> None:
        for name in ("gemlite", "bitsandbytes", "torchao"):
            peer = next(p for p in peers.PEERS.values() if p.package == name)
            absent = peers.Peer(**{**vars(peer), "package": "a_package_that_nobody_has"})
            assert peers.missing(absent) == "a_package_that_nobody_has is not installed"

    def test_one_that_does_not_import(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_peer.py").write_text("raise RuntimeError('no such GPU\\nand more')\n")
        monkeypatch.syspath_prepend(tmp_path)
        peer = peers.Peer(**{**vars(peers.PEERS["gemlite_w4a16"]), "package": "broken_peer"})
        assert peers.missing(peer) == "broken_peer does not import: RuntimeError: no such GPU"

    def test_each_stands_beside_schemes_that_there_are(self) -> None:
        for peer in peers.PEERS.values():
            assert set(peer.beside) <= set(schemes.SCHEMES)
        assert peers.missing(peers.PEERS["torch_int_mm"]) is None


class HostClock(measure.Gpu):
    """Runs each call once, on the CPU, and says that it took 10 us."""

    def __init__(self) -> None:
        super().__init__(0.01, "cpu")
        self.small = self.large = 0

    def time_small(self, call: Callable[[Any], Any], copies: Sequence[Any]) -> Timing:
        self.small += 1
        assert len(copies) == 2
        for copy in copies:
            assert call(copy).shape[0] <= measure.GRAPH_M
        return Timing(10.0, 9.5, 10.5, 7)

    def time_large(self, call: Callable[[Any], Any], operands: Any) -> Timing:
        self.large += 1
        assert call(operands).shape[0] > measure.GRAPH_M
        return Timing(10.0, 9.5, 10.5, 3)

    def forget(self) -> None:
        pass


class TestTiming:
    """What is asked of the library that times large products, and what is made of its answer."""

    def test_large_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []

        def do_bench(call: Callable[[], Any], warmup: int, rep: int, return_mode: str) -> list:
            call()
            done.append(f"{warmup} and {rep} ms, {return_mode}")
            return [0.25, 0.5, 4.0]  # milliseconds

        triton, testing = types.ModuleType("triton"), types.ModuleType("triton.testing")
        testing.do_bench = do_bench  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton", triton)
        monkeypatch.setitem(sys.modules, "triton.testing", testing)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("idle"))
        monkeypatch.setattr(measure.time, "sleep", lambda seconds: done.append(f"rest {seconds}"))
        timing = measure.Gpu(0.1).time_large(done.append, "call")
        assert done == ["call", "idle", "rest 0.1", "call", "25 and 100 ms, all"]
        assert (timing.us, timing.samples) == (500.0, 3)
        assert 250 <= timing.low < timing.us < timing.high <= 4000
        assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


@pytest.fixture
def two_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, its L2 cannot be asked how many copies exceed it."""
    monkeypatch.setattr(schemes, "copies_of", lambda make, bytes_each: [make(), make()])


@pytest.mark.usefixtures("two_copies")
class TestMeasuring:
    """The loop itself, with the operators on the CPU and a clock that says 10 us."""

    @pytest.mark.parametrize("zeros", [False, True])
    def test_every_scheme(self, zeros: bool) -> None:
        said: list[str] = []
        plan = measure.Plan(
            [shapes.Shape(m, 32, 256) for m in (3, 300)], peers=["cublas_bf16"], zeros=zeros
        )
        clock = HostClock()
        steps: list[str] = []
        walk = measure.Bench(plan, FACTS, clock, said.append, steps.append)
        [found] = walk.run()
        assert not said and walk.failures == 0
        kinds = {(r["scheme"], r["kind"], r["M"]) for r in found}
        assert kinds == {
            (scheme, kind, m)
            for m in (3, 300)
            for scheme, kind in (
                ("cublas_bf16", "peer"),
                *((name, "ideal") for name in schemes.SCHEMES),
                *((name, "actual") for name in schemes.SCHEMES if name != "w4a16"),
            )
        }
        assert len(found) == len(steps) == walk.steps() == 24
        assert clock.small == clock.large == 12
        for r in found:
            assert r["x_bf16"] == 1.0 and r["gpu"] == "NVIDIA H200" and r["zeros"] == zeros
            assert r["spread"] == pytest.approx(0.1)

    def test_bytes_and_floor(self) -> None:
        """W4A8 with float scales, M 3, N 32, K 256: 768 B of a, 12 of its scales, 4096 of b, 256 of
        its scales, 192 of the result; at 4 TB/s 1.331 ns."""
        plan = measure.Plan([shapes.Shape(3, 32, 256)], ["w4a8_group"], peers=[])
        [found] = measure.Bench(plan, FACTS, HostClock(), pytest.fail).run()
        ideal, actual = found
        assert ideal["bytes"] == 768 + 12 + 4096 + 256 + 192
        assert actual["bytes"] == 1536 + 4096 + 256 + 192
        assert ideal["floor_us"] == pytest.approx(5324 / 4e6)
        assert ideal["floor_of"] == "memory"
        assert ideal["of_floor"] == pytest.approx(5324 / 4e6 / 10)
        assert ideal["TOPS"] == pytest.approx(2 * 3 * 32 * 256 / 10e6)
        assert ideal["group"] == 128 and ideal["title"] == "W4A8 g128 float scales"

    def test_a_floor_of_arithmetic(self) -> None:
        facts = {**FACTS, "ceiling_TOPS": {"int8": 0.001}}
        plan = measure.Plan([shapes.Shape(3, 32, 256)], ["w8a8"], ["ideal"], [])
        [[found]] = measure.Bench(plan, facts, HostClock(), pytest.fail).run()
        assert found["floor_us"] == pytest.approx(2 * 3 * 32 * 256 / 1e3)
        assert found["floor_of"] == "arithmetic"

    def test_a_peer_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*operands: Any) -> torch.Tensor:
            raise RuntimeError("not on this card\nand a stack")

        broken = peers.Peer("broken", "Broken", ("w8a8",), lambda w: [0, 0], refuse, "x", 16)
        absent = peers.Peer(**{**vars(broken), "name": "absent", "package": "nobody_has_this"})
        for peer in (broken, absent):
            monkeypatch.setitem(peers.PEERS, peer.name, peer)
        said: list[str] = []
        points = [shapes.Shape(m, 32, 256) for m in (1, 2)]
        plan = measure.Plan(points, ["w8a8"], ["ideal"], ["broken", "absent"])
        walk = measure.Bench(plan, FACTS, HostClock(), said.append)
        [found] = walk.run()
        assert said == [
            "not measured: nobody_has_this is not installed",
            "broken: not measured, RuntimeError: not on this card",
        ]
        assert [r["scheme"] for r in found] == ["w8a8", "w8a8"]
        assert walk.failures == 0

    def test_a_product_of_ours_that_fails(self) -> None:
        """K 96 is not a whole number of groups; the rest is measured all the same."""
        said: list[str] = []
        plan = measure.Plan(
            [shapes.Shape(1, 32, 96)], ["w4a8_group", "w8a8"], ["ideal"], [], group=64
        )
        walk = measure.Bench(plan, FACTS, HostClock(), said.append)
        [found] = walk.run()
        assert [r["scheme"] for r in found] == ["w8a8"]
        assert walk.failures == 1
        assert "ValueError: w4a8_group: K 96 is not several groups of 64" in said
        assert "w4a8_group: ideal failed at 1 x 32 x 96" in said

    def test_rows_of_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = {"index": 3, "op": "w8a8", "name": "a_row"}
        monkeypatch.setattr(
            measure.Bench, "_legal", lambda self, scheme, m, n, k: iter([(row, 1), (row, 4)])
        )
        called: list[tuple[int, int]] = []

        def call_row(self: Any, tile: int, split: int, args: dict) -> torch.Tensor:
            called.append((tile, split))
            return self.call("ideal", args)

        monkeypatch.setattr(schemes.Scheme, "call_row", call_row)
        plan = measure.Plan([shapes.Shape(1, 32, 96)], ["w8a8"], peers=[], all_tiles=True)
        [found] = measure.Bench(plan, FACTS, HostClock(), pytest.fail).run()
        assert [(r["kind"], r["split_k"]) for r in found] == [
            ("ideal", None),
            ("tile", 1),
            ("tile", 4),
            ("actual", None),
        ]
        assert set(called) == {(3, 1), (3, 4)}
        assert [r["regret"] for r in found] == [1.0, 1.0, 1.0, None]

    def test_the_emulated_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            schemes.Scheme,
            "explain",
            lambda *a: {"tile": "t", "split_k": 1, "emulated": True, "tuned": True},
        )
        plan = measure.Plan([shapes.Shape(1, 32, 96)], ["w4a4"], ["ideal"], [])
        [[found]] = measure.Bench(plan, FACTS, HostClock(), pytest.fail).run()
        assert (found["title"], found["tile"]) == ("W4A4 (emulated)", "t")
        assert tables.points([found]).rows[0][2] == "t x1, tuned"


def test_time_of_the_host() -> None:
    """Each way of calling works, and each is called as often as is said."""
    for _, _, call in host.cases(2, 32, 256, "cpu"):
        call()
    calls = []
    us, spread = host.microseconds(lambda: calls.append(0), lambda: None, calls=5, samples=4)
    assert len(calls) == 5 * (4 + 2)
    assert us > 0 and spread >= 0


@pytest.mark.gpu
class TestOnAGpu:
    def test_a_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Measured, written, shown, shown again and compared with itself."""
        path = tmp_path / "new" / "a.jsonl"
        where = ["--shapes", "1,256,256", "300,256,256", "--seconds", "0.002", "--all-tiles"]
        assert bench(*where, "--json", path, "--plots", tmp_path / "plots") == 0
        out = capsys.readouterr().out
        assert "N 256, K 256" in out and "Regret" in out
        found = records.load([path])
        done = {(r["scheme"], r["kind"]) for r in found if r["M"] == 1}
        ours = {(name, kind) for name, s in schemes.SCHEMES.items() for kind in s.kinds()}
        assert ours | {("cublas_bf16", "peer")} <= done
        for r in found:
            assert r["us"] > 0 and r["samples"] >= 3 and r["gpu"] and r["torch"] and r["command"]
            assert r["x_bf16"] > 0
            assert r["kind"] == "peer" or r["tile"]
        assert all(r["regret"] >= 1 for r in found if r["kind"] in ("ideal", "tile"))
        assert len(list((tmp_path / "plots").iterdir())) == 8
        assert bench("--from", path, "--markdown") == 0
        assert bench("--compare", path, path) == 0

    def test_the_host(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        assert bench("host", "--m", "1", "--json", path) == 0
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[0]["what"] == "torch.mm" and rows[0]["x mm"] == 1.0
        assert {row["what"] for row in rows} >= set(schemes.SCHEMES)
        assert all(row["host us"] > 0 for row in rows)
