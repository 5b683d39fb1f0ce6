# SPDX-License-Identifier: Apache-2.0
"""`qutlass.tune`: what is measured, how the best row is found, what is kept. A clock that is made
up takes the GPU's place but where a test says so."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import qutlass
from qutlass import cli, ops, tuned, tuning
from qutlass.nn import PRESETS, QuantLinear, quantize_model
from qutlass.tuned import Problem, Results
from qutlass.tuning import Row, Target, Weight, find_best, measure, tune

pytestmark = pytest.mark.usefixtures("empty_tuning_cache")

CARD = Target("NVIDIA Test Card 24", sm=86)


class Clock:
    """Made-up times by row, and what was asked for."""

    def __init__(self, times: Callable[[Problem, Row], float]) -> None:
        self.times = times
        self.quick: list[tuple[Problem, Row]] = []
        self.thorough: list[tuple[Problem, Row]] = []

    def __call__(self, problem: Problem, row: Row, thorough: bool) -> float:
        (self.thorough if thorough else self.quick).append((problem, row))
        return self.times(problem, row)


def rows_of(*tiles: int, splits: tuple[int, ...] = (1, 2, 4, 8)) -> list[Row]:
    return [Row(tile, f"tile {tile}", split) for tile in tiles for split in splits]


PROBLEM = Problem("w8a8", 4096, 4096, 4096, 16)


class TestFindBest:
    def test_the_fastest_row(self) -> None:
        rows = rows_of(0, 1, 2)
        clock = Clock(lambda _, row: 10.0 + abs(row.index - 1) + abs(row.split_k - 4))
        choice = find_best(PROBLEM, rows, rows[0], clock)
        assert (choice.problem, choice.tile, choice.split_k) == (PROBLEM, "tile 1", 4)
        assert (choice.us, choice.model_us) == (10.0, 14.0)
        assert (choice.model_tile, choice.model_split_k) == ("tile 0", 1)

    def test_the_models_choice_wins_ties(self) -> None:
        rows = rows_of(0, 1)
        model = rows[5]

        def times(_: Problem, row: Row) -> float:
            return 10.0 if row == rows[0] else 10.19 if row == model else 12.0

        choice = find_best(PROBLEM, rows, model, Clock(times))
        assert (choice.tile, choice.split_k, choice.us) == (model.name, model.split_k, 10.19)
        assert choice.gain == 1
        # And loses where the difference is more than noise.
        slower = Clock(lambda p, row: 10.21 if row == model else times(p, row))
        assert find_best(PROBLEM, rows, model, slower).tile == rows[0].name

    def test_hopeless_rows_get_one_short_sample(self) -> None:
        rows = rows_of(*range(40), splits=(1,))
        clock = Clock(lambda _, row: 10.0 if row.index < 3 else 30.0)
        find_best(PROBLEM, rows, rows[0], clock)
        assert len(clock.quick) == 40
        assert {row.index for _, row in clock.thorough} == {0, 1, 2}

    def test_few_are_timed_thoroughly(self) -> None:
        rows = rows_of(*range(40), splits=(1,))
        clock = Clock(lambda _, row: 10.0 + row.index / 100)
        find_best(PROBLEM, rows, rows[39], clock)
        assert 2 <= len(clock.thorough) <= 10
        assert (PROBLEM, rows[39]) in clock.thorough  # the model's, although it is none of the best

    def test_hopeless_splits_are_not_raised(self) -> None:
        rows = rows_of(0, 1)
        clock = Clock(lambda _, row: 10.0 if row.index == 0 else 21.0 + row.split_k)
        find_best(PROBLEM, rows, rows[0], clock)
        assert [row.split_k for _, row in clock.quick if row.index == 1] == [1, 2]
        # Where splitting helps it goes on, however slow it began.
        clock = Clock(lambda _, row: 10.0 if row.index == 0 else 99.0 / row.split_k)
        find_best(PROBLEM, rows, rows[0], clock)
        assert [row.split_k for _, row in clock.quick if row.index == 1] == [1, 2, 4, 8]

    def test_a_quick_sample_decides_nothing_close(self) -> None:
        rows = rows_of(0, 1, splits=(1,))

        def sample(_: Problem, row: Row, thorough: bool) -> float:
            return {(0, False): 10.0, (1, False): 13.0, (0, True): 12.0, (1, True): 11.0}[
                row.index, thorough
            ]

        assert find_best(PROBLEM, rows, rows[0], sample).tile == "tile 1"


class TestTarget:
    @pytest.mark.parametrize(
        "op", ["w8a8", "w4a4", "w4a8", "w4a8_group", "w4a8_multiplier", "w4a16"]
    )
    @pytest.mark.parametrize("m", [1, 17, 256, 4096])
    def test_rows_can_run(self, op: str, m: int) -> None:
        group = 128 if op in ("w4a8_group", "w4a8_multiplier", "w4a16") else 4096
        problem = Problem(op, 4096, 4096, group, m)
        rows = CARD.rows(problem)
        by_index = {row["index"]: row for row in tuned.table_rows()}
        assert len(set(rows)) == len(rows)
        for row in rows:
            tile = by_index[row.index]
            assert (tile["op"], tile["name"]) == (op, row.name)
            assert ops._gemm_legal(op, row.index, row.split_k, m, 4096, 4096, group, sm=86)
        # Every row that fits is among them at least once.
        assert {row.index for row in rows} == {
            i for i, tile in by_index.items() if tile["op"] == op and tile["smem_bytes"] <= 99 << 10
        }
        assert CARD.model_row(problem)[0] in rows

    def test_large_products_are_not_split(self) -> None:
        rows = CARD.rows(Problem("w8a8", 28672, 8192, 8192, 4096))
        # Stream-K splits only what is left over of whole rounds.
        assert {row.split_k for row in rows} == {0, 1}


class TestProblems:
    @pytest.mark.parametrize("scheme", [*PRESETS, "w4a8_g64_mul_zp_azp", "w8a8_azp", "w4a4_zp"])
    @pytest.mark.parametrize("k", [384, 100])
    def test_a_layer_and_its_shape_agree(self, scheme: str, k: int) -> None:
        layer = QuantLinear(k, 96, scheme=scheme, device="meta")
        [of_layer] = tuning.weights_of_model(layer)
        assert of_layer == tuning.weight_of(96, k, scheme)
        [of_linear] = tuning.weights_of_model(nn.Linear(k, 96, device="meta"), [scheme])
        assert of_linear == of_layer
        assert of_layer.op in {row["op"] for row in tuned.table_rows()}
        assert CARD.rows(Problem(*of_layer, 16))

    @pytest.mark.parametrize(
        ("scheme", "weight"),
        [
            ("w8a8", Weight("w8a8", 96, 112, 112)),  # K padded to a multiple of 16
            ("w4a4", Weight("w4a4", 96, 128, 128)),
            ("w4a8", Weight("w4a8", 96, 128, 128)),
            ("w4a8_g32", Weight("w4a8_group", 96, 128, 32)),
            ("w4a8_g32_mul", Weight("w4a8_multiplier", 96, 128, 32)),
            ("w4a16_g64", Weight("w4a16", 96, 128, 64)),
            ("w4a16", Weight("w4a16", 96, 128, 128)),
            ("w4a8_g128", Weight("w4a8", 96, 128, 128)),  # one group is none
        ],
    )
    def test_the_kernel_family(self, scheme: str, weight: Weight) -> None:
        assert tuning.weight_of(96, 100, scheme) == weight

    def test_a_quantized_model(self) -> None:
        model = nn.Sequential(
            nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 128), nn.LayerNorm(128)
        )
        model, _ = quantize_model(model, "w4a16_g32")
        assert tuning.weights_of_model(model) == [
            Weight("w4a16", 128, 64, 32),
            Weight("w4a16", 128, 128, 32),
        ]
        problems = tuning._problems(model, (), (), [8, 1, 8])
        assert [(p.K, p.M) for p in problems] == [(64, 1), (64, 8), (128, 1), (128, 8)]

    def test_shapes_and_schemes(self) -> None:
        problems = tuning._problems(None, ["w8a8", "w4a8"], [(64, 32), (64, 32)], [2])
        assert problems == [Problem("w8a8", 64, 32, 32, 2), Problem("w4a8", 64, 32, 32, 2)]

    @pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    )
    @pytest.mark.parametrize("form", ["object", "folder", "file"])
    def test_a_hugging_face_configuration(self, form: str, tmp_path: Path) -> None:
        import transformers

        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            architectures=["LlamaForCausalLM"],
        )
        config.save_pretrained(tmp_path)
        given = {"object": config, "folder": tmp_path, "file": str(tmp_path / "config.json")}[form]
        problems = tuning._problems(given, "w4a8", (), [1])
        assert {(p.N, p.K) for p in problems} == {
            (64, 64),  # q and o
            (32, 64),  # k and v
            (160, 64),
            (64, 160),
            (96, 64),  # the head
        }

    @pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    )
    def test_gpt2_has_its_weights_the_other_way(self) -> None:
        import transformers

        config = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=96)
        problems = tuning._problems(config, "w8a8", (), [1])
        assert (192, 64) in {(p.N, p.K) for p in problems}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((None, (), (), [1]), "name a model, or shapes and a scheme"),
            ((None, "w8a8", (), [1]), "name a model, or shapes and a scheme"),
            ((None, (), [(64, 64)], [1]), "shapes need a scheme"),
            ((None, "w8a8", [(64,)], [1]), r"a shape is \(N, K\), both at least 1, got \(64,\)"),
            ((None, "w8a8", [(0, 64)], [1]), r"both at least 1, got \(0, 64\)"),
            ((None, "w8a8", [(64, 64)], []), r"ms must be integers of at least 1, got \[\]"),
            ((None, "w8a8", [(64, 64)], [0]), r"ms must be integers of at least 1, got \[0\]"),
            ((None, "w9a9", [(64, 64)], [1]), "the name must be"),
            ((nn.ReLU(), "w8a8", (), [1]), "the model has no quantized layers"),
            ((nn.Linear(8, 8), (), (), [1]), "the model has no quantized layers"),
            (("folder", (), (), [1]), "a configuration needs a scheme"),
        ],
    )
    def test_refusals(self, arguments: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tuning._problems(*arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu(self) -> None:
        with pytest.raises(RuntimeError, match="tune: there is no CUDA device here"):
            tune(shapes=[(64, 64)], scheme="w8a8")


class Stop(Exception):
    pass


class TestMeasure:
    problems = tuple(Problem("w8a8", 256, 512, 512, m) for m in (1, 16, 64))

    @staticmethod
    def times(problem: Problem, row: Row) -> float:
        return 5.0 + (row.index * 7 + row.split_k * 3 + problem.M) % 11

    def test_the_file_is_written_and_used(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b.json"
        clock = Clock(self.times)
        seen: list[tuple[int, int, str]] = []
        report = measure(
            self.problems, CARD, path, lambda: clock, progress=lambda *args: seen.append(args)
        )
        assert report.measured == 3 and not report.failed
        assert [choice.problem for choice in report.choices] == list(self.problems)
        assert Results.load(path).choices == {c.problem: c for c in report.choices}
        for choice in report.choices:
            p = choice.problem
            rows = [Row(*row) for row in CARD.rows(p)]
            assert choice.us <= min(self.times(p, row) for row in rows) * 1.02
            assert choice.model_us >= choice.us
        assert [done for done, _, _ in seen] == [0, 1, 2, 3]
        assert {total for _, total, _ in seen} == {3}
        assert seen[0][2] == "w8a8 M=1 N=256 K=512" and seen[-1][2] == ""
        text = str(report)
        assert str(path) in text and "3 products, 3 measured now" in text

    def test_a_rerun_measures_what_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        measure(self.problems[:1], CARD, path, lambda: Clock(self.times))
        clock = Clock(self.times)
        report = measure(self.problems, CARD, path, lambda: clock)
        assert {problem for problem, _ in clock.quick} == set(self.problems[1:])
        assert report.measured == 2 and len(report.choices) == 3

        def none() -> tuning.Sample:
            raise AssertionError("there is nothing to measure")

        assert measure(self.problems, CARD, path, none).measured == 0
        again = measure(self.problems, CARD, path, lambda: Clock(self.times), force=True)
        assert again.measured == 3

    def test_a_run_that_is_stopped_goes_on(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"

        def stops(problem: Problem, row: Row) -> float:
            if problem == self.problems[2]:
                raise Stop
            return self.times(problem, row)

        with pytest.raises(Stop):
            measure(self.problems, CARD, path, lambda: Clock(stops))
        assert set(Results.load(path).choices) == set(self.problems[:2])
        clock = Clock(self.times)
        assert measure(self.problems, CARD, path, lambda: clock).measured == 1
        assert {problem for problem, _ in clock.quick} == {self.problems[2]}

    def test_what_fails_is_said_and_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"

        def fails(problem: Problem, row: Row) -> float:
            if problem == self.problems[1]:
                raise torch.cuda.OutOfMemoryError("out of memory\nmore words")
            return self.times(problem, row)

        report = measure(self.problems, CARD, path, lambda: Clock(fails))
        assert report.failed == {self.problems[1]: "out of memory"}
        assert report.measured == 2 and len(report.choices) == 2
        assert "not measured: w8a8 M=16 N=256 K=512: out of memory" in str(report)

    def test_another_process_writes_at_the_same_time(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        other = Problem("w4a8", 256, 512, 512, 8)
        wrote: list[int] = []

        def times(problem: Problem, row: Row) -> float:
            if not wrote:
                wrote.append(1)
                measure([other], CARD, path, lambda: Clock(self.times))
            return self.times(problem, row)

        measure(self.problems, CARD, path, lambda: Clock(times))
        assert set(Results.load(path).choices) == {*self.problems, other}

    @pytest.mark.parametrize("text", ["{", '{"format": "qutlass tuned choices", "version": 0}'])
    def test_a_file_that_cannot_be_used_is_written_anew(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        path.write_text(text)
        assert measure(self.problems, CARD, path, lambda: Clock(self.times)).measured == 3
        assert len(Results.load(path).choices) == 3

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            measure(self.problems, CARD, tmp_path / "file" / "x", lambda: Clock(self.times))

    def test_the_library_takes_it(self, tmp_path: Path) -> None:
        """From the measurement to what the operators ask, for every M in between."""
        path = tmp_path / "results.json"
        report = measure(self.problems, CARD, path, lambda: Clock(self.times))
        Results.load(path).hand_over(0)
        for choice in report.choices:
            p = choice.problem
            answer = ops._explain(p.op, p.M, p.N, p.K, p.group, 0, 86, ops._BY_RESULTS)
            assert (answer["tile"], answer["split_k"]) == (choice.tile, choice.split_k)
        answer = ops._explain("w8a8", 40, 256, 512, 512, 0, 86, ops._BY_RESULTS)
        assert answer["tile"] == report.choices[2].tile  # 64 is the next larger one


class TestCommand:
    problem = Problem("w8a8", 256, 512, 512, 16)

    def write(self, path: Path, gpu: str = CARD.gpu, us: float = 5.0, m: int = 16) -> Path:
        row, _ = CARD.model_row(self.problem)
        results = Results(gpu)
        problem = Problem("w8a8", 256, 512, 512, m)
        results.add([tuned.Choice(problem, row.name, 1, us, row.name, 1, 6.0)])
        results.save(path)
        return path

    def test_show_and_clear(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["tune", "--show"]) == 0
        assert "no results in" in capsys.readouterr().out
        paths = [self.write(tuned.path_for(gpu), gpu) for gpu in ("Card A", "Card B")]
        paths[1].write_text("{")
        assert cli.main(["tune", "--show"]) == 0
        out = capsys.readouterr().out
        assert f"Card A: {paths[0]}" in out and "1.20" in out
        assert f"{paths[1]}: not used: it is no JSON" in out
        assert cli.main(["tune", "--show", "--gpu", "Card A"]) == 0
        assert "card-b" not in capsys.readouterr().out
        assert cli.main(["tune", "--clear", "--gpu", "Card A"]) == 0
        assert [path.exists() for path in paths] == [False, True]
        assert cli.main(["tune", "--clear"]) == 0
        assert tuned.stored() == []

    def test_merge(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a = self.write(tmp_path / "a.json", us=5.0)
        b = self.write(tmp_path / "b.json", us=4.0)
        c = self.write(tmp_path / "c.json", m=32)
        out = tmp_path / "out.json"
        merge = ["tune", "--merge", str(a), str(b), str(c), "-o", str(out)]
        assert cli.main(merge) == 0
        assert "2 choices for NVIDIA Test Card 24" in capsys.readouterr().out
        merged = Results.load(out).choices
        assert {problem.M for problem in merged} == {16, 32}
        assert merged[self.problem].us == 4.0  # the later file's

    def test_merge_into_the_users_results(self, tmp_path: Path) -> None:
        """How results that were shipped are taken in."""
        shipped = self.write(tmp_path / "shipped.json", m=32)
        assert cli.main(["tune", "--merge", str(shipped)]) == 0
        path = tuned.path_for(CARD.gpu)
        assert Results.load(path) == Results.load(shipped)
        self.write(path, m=64)
        assert cli.main(["tune", "--merge", str(shipped)]) == 0
        assert {problem.M for problem in Results.load(path).choices} == {32, 64}

    def test_merge_refuses(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a = self.write(tmp_path / "a.json")
        out = tmp_path / "out.json"
        for other, message in (
            (self.write(tmp_path / "b.json", gpu="Other"), "b.json was measured on Other"),
            (tmp_path / "missing.json", "missing.json"),
            (tmp_path / "broken.json", "broken.json: it is no JSON"),
        ):
            if "broken" in other.name:
                other.write_text("{")
            assert cli.main(["tune", "--merge", str(a), str(other), "-o", str(out)]) == 2
            assert message in capsys.readouterr().err
            assert not out.exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--shapes", "4096"], "a shape is N,K, got '4096'"),
            (["--shapes", "a,b"], "a shape is N,K, got 'a,b'"),
            (["--show", "--clear"], "not allowed with"),
            (["--gpu", "x"], "--gpu goes with --show or --clear"),
            (["-o", "x"], "-o goes with --merge"),
            (["--m", "x"], "invalid int value"),
        ],
    )
    def test_wrong_words(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["tune", *words])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err

    def test_what_reaches_tune(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[tuple] = []

        def fake(model: object, **arguments: object) -> tuning.TuneReport:
            calls.append((model, arguments))
            return tuning.TuneReport("A card", Path("file.json"))

        monkeypatch.setattr(tuning, "tune", fake)
        words = "tune folder --scheme w8a8 w4a8 --shapes 64,32 8,16 --m 1 2 --device cuda:1 --force"
        assert cli.main(words.split()) == 0
        assert calls == [
            (
                "folder",
                {
                    "scheme": ["w8a8", "w4a8"],
                    "shapes": [(64, 32), (8, 16)],
                    "ms": [1, 2],
                    "device": "cuda:1",
                    "force": True,
                },
            )
        ]
        assert "A card: file.json" in capsys.readouterr().out

    def test_when_it_cannot(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["tune"]) == 2
        assert "tune: name a model" in capsys.readouterr().err

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(tuning, "tune", interrupted)
        assert cli.main(["tune"]) == 130
        assert "the next run goes on" in capsys.readouterr().err


class TestProgress:
    def show(self, progress: object) -> None:
        with tuning._shown(progress) as show:
            for done in range(2):
                show(done, 2, f"what {done}")
            show(2, 2, "")

    def test_lines_where_there_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.show(True)
        assert capsys.readouterr().err == "[1/2] what 0\n[2/2] what 1\n"

    def test_lines_without_rich(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
        self.show(True)
        assert capsys.readouterr().err == "[1/2] what 0\n[2/2] what 1\n"

    @pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="rich is not installed")
    def test_a_bar(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
        self.show(True)
        err = capsys.readouterr().err
        assert "tuning" in err and "2/2" in err and "[1/2]" not in err

    def test_none_and_a_function(self, capsys: pytest.CaptureFixture[str]) -> None:
        with tuning._shown(False) as show:
            assert show is None
        seen: list[tuple] = []
        self.show(lambda *args: seen.append(args))
        assert seen == [(0, 2, "what 0"), (1, 2, "what 1"), (2, 2, "")]
        assert capsys.readouterr().err == ""


@pytest.mark.gpu
class TestOnTheGpu:
    def test_a_small_model(self) -> None:
        model = nn.Sequential(nn.Linear(512, 768), nn.Linear(768, 512)).cuda().bfloat16()
        model, _ = quantize_model(model, "w8a8")
        x = torch.randn(40, 512, device="cuda", dtype=torch.bfloat16)
        before = model(x)
        first = qutlass.explain("matmul_int8_bf16_tn", 40, 768, 512)
        assert first["tuned"] is False

        report = qutlass.tune(model, ms=[8, 64], progress=False)
        assert report.measured == 4 and not report.failed
        assert report.gpu == torch.cuda.get_device_name()
        assert report.path == tuned.path_for(report.gpu) and report.path.is_file()
        for choice in report.choices:
            p = choice.problem
            assert 0 < choice.us <= choice.model_us * 1.0001
            answer = qutlass.explain("matmul_int8_bf16_tn", p.M, p.N, p.K)
            assert answer["tuned"] is True
            assert (answer["tile"], answer["split_k"]) == (choice.tile, choice.split_k)
        # 64 is the next larger M of 40; integer products have the same bits on every row.
        assert qutlass.explain("matmul_int8_bf16_tn", 40, 768, 512)["tuned"] is True
        assert torch.equal(model(x), before)
        # Nothing is measured twice, and what is asked for the card itself is still the model's.
        assert qutlass.tune(model, ms=[8, 64], progress=False).measured == 0
        assert qutlass.explain("matmul_int8_bf16_tn", 64, 768, 512, sm=86)["tuned"] is False
        # A process that starts now reads the file.
        tuned.reset()
        assert qutlass.explain("matmul_int8_bf16_tn", 64, 768, 512)["tuned"] is True
        assert json.loads(report.path.read_text())["gpu"] == report.gpu

    @pytest.mark.parametrize("scheme", [s for s in PRESETS if s != "w8a8"])
    def test_every_kind_of_product(self, scheme: str) -> None:
        report = tune(shapes=[(256, 512)], scheme=scheme, ms=[16], progress=False)
        assert report.measured == 1 and not report.failed

    def test_it_takes_about_a_second(self) -> None:
        import time

        tune(shapes=[(256, 512)], scheme="w8a8", ms=[1], progress=False)  # warms up
        start = time.perf_counter()
        tune(shapes=[(4096, 4096)], scheme="w8a8", ms=[16, 256], progress=False)
        assert time.perf_counter() - start < 10  # the clock's own start included

    def test_the_gain_holds(self) -> None:
        """Rows are told apart: one of 256 rows a tile is not taken for a single token."""
        report = tune(shapes=[(4096, 4096)], scheme="w4a8", ms=[1], progress=False)
        [choice] = report.choices
        [tile] = [row for row in tuned.table_rows() if row["name"] == choice.tile]
        assert tile["m"] <= 64
