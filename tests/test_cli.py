# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qutlass
from qutlass import _library, cli


def test_as_a_module(tmp_path: Path) -> None:
    """In a process of its own, outside the checkout."""
    root = str(Path(qutlass.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-m", "qutlass", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, qutlass.__version__), ran.stderr


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.summary in out


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["nope"])
    assert stopped.value.code == 2
    assert "invalid choice: 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_the_commands_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"python -m qutlass {command}" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("Versions")
    assert cli.main(["doctor", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"versions", "gpus", "operators", "advice"}


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "matmul_w4a8_bf16_tn", "16", "4096", "4096", "--sm", "86"]
    assert cli.main([*words, "--group-size", "128", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == qutlass.explain("matmul_w4a8_bf16_tn", 16, 4096, 4096, 128, sm=86)
    assert cli.main(words) == 0
    assert "tile " in capsys.readouterr().out
    words[1] = "matmul_int4_bf16_tn"
    assert cli.main([*words, "--act-bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["op"] == "w4a4"


def test_explain_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "matmul_w4a8_bf16_tn", "0", "8", "32"]) == 2
    assert "M, N and K must be at least 1, got 0, 8 and 32" in capsys.readouterr().err


class TestLibrary:
    """What _library says where there is nothing to load. In processes of their own: a process loads
    one library."""

    @staticmethod
    def load(environment: dict[str, str], before: str = "pass") -> str:
        root = str(Path(qutlass.__file__).resolve().parent.parent)
        script = f"import sys; sys.path.insert(0, {root!r}); {before}; import qutlass"
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 1
        return ran.stderr.splitlines()[-1]

    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def test_a_missing_file_that_was_named(self, environment: dict[str, str]) -> None:
        message = self.load({**environment, "QUTLASS_LIBRARY": "/nowhere/libqutlass.so"})
        assert message == (
            "ImportError: QUTLASS_LIBRARY names /nowhere/libqutlass.so, and there is no such file."
        )

    def test_a_file_that_does_not_load(self, environment: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "libqutlass.so").write_text("not a library")
        message = self.load({**environment, "QUTLASS_LIBRARY": str(tmp_path / "libqutlass.so")})
        assert "does not load into torch" in message
        assert "pip install --no-build-isolation -e ." in message

    def test_an_old_torch(self, environment: dict[str, str]) -> None:
        message = self.load(environment, "import torch; torch.__version__ = '2.10.1+cpu'")
        assert message.startswith(
            "ImportError: qutlass needs torch 2.11 or later, and this is torch 2.10.1+cpu."
        )

    def test_where_it_is(self) -> None:
        assert _library.library_path().name == "libqutlass.so"
