# SPDX-License-Identifier: Apache-2.0
"""Files of tuned choices and how they reach the library. Needs no GPU but where it says so: the
rows, the rule and the loader are those of the library under test, asked for a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import qutlass
from qutlass import ops, tuned
from qutlass.tuned import Choice, Problem, Results, UnusableError

pytestmark = pytest.mark.usefixtures("empty_tuning_cache")

GPU = "NVIDIA Test Card 24"
PROBLEM = Problem("w8a8", 4096, 4096, 4096, 64)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the GPUs that torch reports, by index."""
    names = [GPU, GPU, "Another Card"]

    def properties(device: int) -> Any:
        return types.SimpleNamespace(name=names[device])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return names


def model_choice(problem: Problem, sm: int = 86) -> dict[str, Any]:
    p = problem
    return ops._explain(p.op, p.M, p.N, p.K, p.group, 0, sm, ops._BY_MODEL)


def other_choice(problem: Problem = PROBLEM, us: float = 10.0) -> Choice:
    """A row that can run the problem and is not the model's."""
    model = model_choice(problem)
    row = next(
        row
        for row in tuned.table_rows()
        if row["op"] == problem.op and row["name"] != model["tile"] and row["smem_bytes"] < 99 << 10
    )
    return Choice(problem, row["name"], 1, us, model["tile"], model["split_k"], 12.5)


def library_choice(problem: Problem, device: int = 0) -> tuple[str, int] | None:
    """What the library has for a problem on a device, by the limits of a 3090."""
    p = problem
    try:
        answer = ops._explain(p.op, p.M, p.N, p.K, p.group, device, 86, ops._BY_RESULTS)
    except RuntimeError:
        return None
    assert answer["tuned"]
    return answer["tile"], answer["split_k"]


def write(choice: Choice | None = None, gpu: str = GPU, path: Path | None = None) -> Path:
    results = Results(gpu)
    results.add([choice or other_choice()])
    path = path or tuned.path_for(gpu)
    results.save(path)
    return path


class TestFolder:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({"QUTLASS_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
            ({"QUTLASS_CACHE_DIR": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/qutlass"),
            ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/qutlass"),
            ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/qutlass"),
            ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/qutlass"),
            ({"HOME": "/c"}, "/c/.cache/qutlass"),
        ],
    )
    def test_the_order(
        self, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("QUTLASS_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert tuned.cache_dir() == Path(expected)

    @pytest.mark.parametrize(
        ("gpu", "name"),
        [
            ("NVIDIA GeForce RTX 3090", "tuned-nvidia-geforce-rtx-3090.json"),
            ("NVIDIA A100-SXM4-80GB", "tuned-nvidia-a100-sxm4-80gb.json"),
            ("../../etc/passwd", "tuned-etc-passwd.json"),
            ("", "tuned-gpu.json"),
        ],
    )
    def test_the_name(self, gpu: str, name: str) -> None:
        assert tuned.path_for(gpu) == tuned.cache_dir() / name

    def test_what_is_stored(self) -> None:
        assert tuned.stored() == []
        paths = [write(gpu=gpu) for gpu in ("B", "A")]
        (tuned.cache_dir() / "something else.json").write_text("{}")
        assert tuned.stored() == paths[::-1]


class TestFile:
    def test_what_is_written_is_read(self) -> None:
        first, second = other_choice(), other_choice(Problem("w4a16", 512, 256, 128, 1), 3.25)
        results = Results(GPU)
        results.add([first, second])
        path = tuned.path_for(GPU)
        results.save(path)
        assert Results.load(path) == results
        assert first.gain == 1.25
        # Plain JSON that says what it is, a choice a line, and nothing beside it.
        data = json.loads(path.read_text())
        assert data["version"] == 1 and data["gpu"] == GPU
        assert data["table"] == tuned.table_signature()
        assert sum('"tile"' in line for line in path.read_text().splitlines()) == 2
        assert os.listdir(path.parent) == [path.name]

    def test_no_choices(self) -> None:
        path = tuned.path_for(GPU)
        Results(GPU).save(path)
        assert Results.load(path) == Results(GPU)

    def test_a_new_choice_replaces_the_old(self) -> None:
        results = Results(GPU)
        results.add([other_choice(us=10.0)])
        results.add([other_choice(us=9.0)])
        assert [choice.us for choice in results.choices.values()] == [9.0]

    def test_a_failed_write_leaves_the_old_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write()
        text = path.read_text()

        def full(self: Path, target: Path) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            write(other_choice(us=1.0))
        assert path.read_text() == text
        assert os.listdir(path.parent) == [path.name]

    def test_a_missing_file(self) -> None:
        with pytest.raises(FileNotFoundError):
            Results.load(tuned.path_for(GPU))

    @staticmethod
    def changed(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"version": 2}, "version 2 of the file, not 1"),
            ({"version": None}, "version None"),
            ({"table": "0-0123456789abcdef"}, "another tile table"),
            ({"table": None}, "another tile table"),
            ({"format": "other"}, "no file of tuned choices"),
            ({"gpu": 3}, "names no GPU"),
            ({"choices": {}}, "has no choices"),
            ({"choices": [3]}, "lacks something"),
            ({"choices": [{}]}, "lacks something"),
        ],
    )
    def test_what_is_not_read(self, changes: dict[str, Any], reason: str) -> None:
        path = write()
        self.changed(path, **changes)
        with pytest.raises(UnusableError, match=reason):
            Results.load(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("tile", "w8a8_1x2x3_w4x5x6_s7"),
            ("tile", None),
            ("model_tile", "w8a8"),
            ("op", "w4a8"),
            ("op", ["w8a8"]),
            ("M", 0),
            ("M", 2**31),
            ("N", 1.5),
            ("K", "4096"),
            ("group", True),
            ("split_k", -1),
            ("us", 0),
            ("us", float("nan")),
            ("model_us", float("inf")),
            ("model_us", None),
        ],
    )
    def test_a_choice_that_is_none(self, key: str, value: Any) -> None:
        path = write()
        [choice] = json.loads(path.read_text())["choices"]
        self.changed(path, choices=[{**choice, key: value}])
        with pytest.raises(UnusableError, match="a choice is none"):
            Results.load(path)
        choice.pop(key)
        self.changed(path, choices=[choice])
        with pytest.raises(UnusableError, match="a choice lacks something"):
            Results.load(path)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"format": 1', "[" * 100000, "\0"])
    def test_no_json(self, text: str) -> None:
        path = write()
        path.write_text(text)
        with pytest.raises(UnusableError, match=r"no JSON|no file of tuned choices"):
            Results.load(path)

    def test_no_text(self) -> None:
        path = write()
        path.write_bytes(b"\xff\xfe{")
        with pytest.raises(UnusableError, match="cannot be read"):
            Results.load(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(UnusableError, match="cannot be read"):
            Results.load(path)

    def test_a_cut_file(self) -> None:
        path = write()
        text = path.read_text()
        for length in range(0, len(text.rstrip()) - 1, 7):
            path.write_text(text[:length])
            with pytest.raises(UnusableError):
                Results.load(path)


class TestSignature:
    def test_it_follows_the_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [dict(row) for row in tuned.table_rows()]

        def signature(table: list[dict[str, Any]]) -> str:
            monkeypatch.setattr(tuned, "table_rows", lambda: tuple(table))
            return tuned.table_signature.__wrapped__()

        same = signature(rows)
        assert same == tuned.table_signature()
        reordered = [{**row, "index": i} for i, row in enumerate(rows[::-1])]
        assert signature(reordered) == same
        assert signature(rows[1:]) != same
        assert signature([{**rows[0], "smem_bytes": 1}, *rows[1:]]) != same


class TestFirstUse:
    """What the library asks for, and when."""

    def test_the_choice_is_used(self, gpus: list[str]) -> None:
        choice = other_choice()
        write(choice)
        assert library_choice(PROBLEM) == (choice.tile, 1)
        assert library_choice(PROBLEM, 1) == (choice.tile, 1)  # another GPU of that model
        assert library_choice(PROBLEM, 2) is None  # and one of another

    def test_a_neighbour_and_a_stranger(self, gpus: list[str]) -> None:
        choice = other_choice()
        write(choice)
        near = Problem("w8a8", 4096, 4096, 4096, 128)
        assert library_choice(near) == (choice.tile, 1)
        for stranger in (
            Problem("w8a8", 4096, 4096, 4096, 129),
            Problem("w8a8", 4096, 8192, 8192, 64),
            Problem("w4a8", 4096, 4096, 4096, 64),
        ):
            assert library_choice(stranger) is None

    def test_without_a_file(self, gpus: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert library_choice(PROBLEM) is None
        assert model_choice(PROBLEM)["tuned"] is False

    def test_it_is_read_once(self, gpus: list[str]) -> None:
        path = write()
        before = library_choice(PROBLEM)
        path.unlink()
        assert library_choice(PROBLEM) == before
        tuned.reset()
        assert library_choice(PROBLEM) is None

    def test_an_explanation_for_a_card_is_the_models(self, gpus: list[str]) -> None:
        """What was measured is of the GPU, not of a card that is asked about."""
        write()
        tuned.Results.load(tuned.path_for(GPU)).hand_over(0)
        answer = qutlass.explain("matmul_int8_bf16_tn", 64, 4096, 4096, sm=86)
        assert answer["tuned"] is False
        assert answer == model_choice(PROBLEM)

    def test_turned_off(self, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        write()
        monkeypatch.setenv("QUTLASS_TUNED", "0")
        assert library_choice(PROBLEM) is None
        monkeypatch.setenv("QUTLASS_TUNED", "1")
        tuned.reset()
        assert library_choice(PROBLEM) is not None

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda path: path.write_text("{"), "no JSON"),
            (lambda path: TestFile.changed(path, table="1-0"), "another tile table"),
            (lambda path: TestFile.changed(path, version=7), "version 7"),
            (lambda path: TestFile.changed(path, gpu="Other"), "was measured on 'Other'"),
        ],
    )
    def test_one_warning(self, gpus: list[str], spoil: Any, reason: str) -> None:
        path = write()
        spoil(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert library_choice(PROBLEM) is None
            assert library_choice(PROBLEM) is None
            assert library_choice(PROBLEM, 1) is None
        [warning] = caught
        assert str(path) in str(warning.message) and reason in str(warning.message)
        assert "python -m qutlass tune" in str(warning.message)

    def test_warnings_as_errors(self, gpus: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        write().write_text("{")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert library_choice(PROBLEM) is None
        assert "is not used: it is no JSON" in capfd.readouterr().err

    def test_no_home(self, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("QUTLASS_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", home)
        with pytest.warns(RuntimeWarning, match="no tuned choices can be read") as caught:
            assert library_choice(PROBLEM) is None
        assert len(caught) == 1

    def test_a_product_while_the_file_is_read(
        self, gpus: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A finalizer, say, may choose on the thread that reads; it neither hangs nor recurses."""
        choice = other_choice()
        write(choice)
        inside: list[Any] = []
        load_for = tuned.load_for

        def reenter(gpu: str) -> Results | None:
            inside.append(library_choice(PROBLEM))
            return load_for(gpu)

        monkeypatch.setattr(tuned, "load_for", reenter)
        assert library_choice(PROBLEM) == (choice.tile, 1)
        assert inside == [None]

    def test_from_many_threads(self, gpus: list[str]) -> None:
        """All get the choice, the first ones too, and the file is read once."""
        choice = other_choice()
        write(choice)
        reads: list[str] = []
        load_for = tuned.load_for
        for _ in range(20):
            tuned.reset()
            start = threading.Barrier(8)
            answers: list[Any] = []

            def ask(start: threading.Barrier = start, answers: list[Any] = answers) -> None:
                start.wait()
                answers.append(library_choice(PROBLEM))

            def count(gpu: str) -> Results | None:
                reads.append(gpu)
                return load_for(gpu)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tuned, "load_for", count)
                threads = [threading.Thread(target=ask) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert answers == [(choice.tile, 1)] * 8
        assert len(reads) == 20

    def test_importing_reads_nothing(self, tmp_path: Path) -> None:
        """A file that cannot be used is not noticed, and CUDA is not initialised."""
        write(gpu=GPU).write_text("{")
        code = (
            "import warnings; warnings.simplefilter('error')\n"
            "import torch, qutlass\n"
            "assert not torch.cuda.is_initialized()\n"
            "assert 'qutlass.tuning' not in __import__('sys').modules\n"
        )
        root = str(Path(qutlass.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.gpu
class TestOnTheGpu:
    # In a process of its own the first thing chosen on the GPU is chosen inside a graph capture,
    # and on a thread that Python did not start a product from.
    CODE = """
import sys, threading, torch, qutlass
mode, m, n, k = sys.argv[1], *map(int, sys.argv[2:])
torch.manual_seed(0)
a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
b = torch.randint(-128, 128, (n, k), dtype=torch.int8)
one = torch.ones(1)
expected = qutlass.matmul_int8_bf16_tn(a, b, one, one)
a, b, one = a.cuda(), b.cuda(), one.cuda()
if mode == "graph":
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = qutlass.matmul_int8_bf16_tn(a, b, one, one)
    graph.replay()
elif mode == "threads":
    outs = []
    threads = [threading.Thread(
        target=lambda: outs.append(qutlass.matmul_int8_bf16_tn(a, b, one, one)))
        for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(outs) == 8 and all(torch.equal(out, outs[0]) for out in outs)
    out = outs[0]
else:
    out = qutlass.matmul_int8_bf16_tn(a, b, one, one)
torch.cuda.synchronize()
assert torch.equal(out.cpu(), expected)
answer = qutlass.explain("matmul_int8_bf16_tn", m, n, k)
print(answer["tile"], answer["split_k"], answer["tuned"])
"""

    @pytest.mark.parametrize("mode", ["plain", "graph", "threads"])
    @pytest.mark.parametrize("use", ["1", "0"])
    def test_operators_follow_the_file(self, mode: str, use: str, tmp_path: Path) -> None:
        m, n, k = 64, 512, 1024
        gpu = torch.cuda.get_device_name(0)
        model = qutlass.explain("matmul_int8_bf16_tn", m, n, k, device="cuda:0")
        row = next(
            row
            for row in tuned.table_rows()
            if row["op"] == "w8a8"
            and row["name"] != model["tile"]
            and ops._gemm_legal("w8a8", row["index"], 1, m, n, k)
        )
        choice = Choice(
            Problem("w8a8", n, k, k, m), row["name"], 1, 1.0, model["tile"], model["split_k"], 2.0
        )
        write(choice, gpu)
        root = str(Path(qutlass.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        ran = subprocess.run(
            [sys.executable, "-c", self.CODE, mode, str(m), str(n), str(k)],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "QUTLASS_PRINT_TILE": "1",
                "QUTLASS_TUNED": use,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        if use == "1":
            assert ran.stdout.split() == [row["name"], "1", "True"]
        else:
            assert ran.stdout.split() == [model["tile"], str(model["split_k"]), "False"]
        [line] = [line for line in ran.stderr.splitlines() if line.startswith("qutlass: ")]
        assert (row["name"] if use == "1" else model["tile"]) in line
        assert line.endswith(" tuned") == (use == "1")
