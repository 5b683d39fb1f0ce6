# SPDX-License-Identifier: Apache-2.0
"""What people copy runs as printed: the README's example and the docstrings'."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qutlass

README = Path(__file__).resolve().parent.parent / "README.md"


def first_python_block(text: str) -> str:
    found = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, "README.md has no ```python block"
    return found[1]


def test_the_first_block_is_found() -> None:
    text = "# A\n```bash\nmake\n```\n\n```python\nprint(1)\n```\n```python\nprint(2)\n```\n"
    assert first_python_block(text) == "print(1)\n"


def test_the_readme_example_runs(tmp_path: Path) -> None:
    """In a process of its own, outside the checkout, against the qutlass under test."""
    example = first_python_block(README.read_text())
    assert "import qutlass" in example
    package_root = str(Path(qutlass.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, f"{example}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.parametrize("module", ["qutlass.ops", "qutlass.reference", "qutlass.tuned"])
def test_docstring_examples_run(module: str) -> None:
    torch.manual_seed(0)
    imported = importlib.import_module(module)
    names = {name: getattr(qutlass, name) for name in dir(qutlass) if not name.startswith("_")}
    names |= vars(imported) | {"torch": torch, "qutlass": qutlass}
    result = doctest.testmod(imported, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 and result.failed == 0
