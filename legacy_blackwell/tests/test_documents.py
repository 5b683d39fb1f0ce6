# SPDX-License-Identifier: Apache-2.0
"""What the pages say, run."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.legacy

FOLDER = Path(__file__).parents[1]
MODULES = ["backward", "elements", "matmul", "quantize", "rotation", "scale_layout"]


def code_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (FOLDER / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"legacy_blackwell.reference.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_no_module_is_left_out():
    reference = importlib.import_module("legacy_blackwell.reference")
    assert sorted(module.name for module in pkgutil.iter_modules(reference.__path__)) == MODULES
    assert all(hasattr(reference, name) for name in reference.__all__)


def test_readme_example_runs():
    (block,) = code_blocks("README.md")
    names: dict = {}
    exec(block, names)
    truth = names["x"].double() @ names["w"].double().T
    assert float((names["out"].double() - truth).norm() / truth.norm()) < 0.2


def test_migration_snippet_runs():
    pytest.importorskip(
        "qutlass", reason="the integer side needs the built library", exc_type=ImportError
    )
    (block,) = code_blocks("MIGRATION.md")
    names: dict = {}
    exec(block, names)
    truth = names["x"].double() @ names["w"].double().T
    assert float((names["out"].double() - truth).norm() / truth.norm()) < 0.25


def test_migration_example_prints_what_the_page_shows():
    pytest.importorskip(
        "qutlass", reason="the integer side needs the built library", exc_type=ImportError
    )
    report = importlib.import_module("legacy_blackwell.migration_example").report()
    page = (FOLDER / "MIGRATION.md").read_text()
    assert "\n".join(f"    {line}" for line in report.splitlines()) in page


def test_the_package_never_imports_this_folder(root):
    for path in (root / "python" / "qutlass").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.startswith("legacy_blackwell") for name in names), path


def test_links_inside_the_folder_exist():
    for page in FOLDER.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_accuracy_page_is_made_from_its_numbers():
    report = importlib.import_module("legacy_blackwell.accuracy.report")
    folder = FOLDER / "accuracy"
    result = json.loads((folder / "results.json").read_text())
    assert report.render(result) == (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def accuracy() -> dict:
    return json.loads((FOLDER / "accuracy" / "results.json").read_text())


def test_accuracy_numbers_make_sense(accuracy):
    rows = {(row["format"], row["rotation"]): row for row in accuracy["formats"]}
    for row in accuracy["formats"]:
        # Rounding the activations as well cannot help.
        assert row["4_bit"]["output_error"]["mean"] > row["float"]["output_error"]["mean"]
        assert row["float"]["output_error"]["mean"] <= row["float"]["output_error"]["worst"]
        assert row["float"]["cosine"]["worst"] <= row["float"]["cosine"]["mean"] <= 1
    for rotation in ("none", "H32", "H128"):
        errors = [
            rows[name, rotation]["weight_error"]["mean"]
            for name in ("INT4 g32 + zero", "INT4 g32", "INT4 g128", "INT4 row")
        ]
        assert errors == sorted(errors)


def test_what_the_migration_page_reads_from_the_numbers(accuracy):
    rows = {(row["format"], row["rotation"]): row for row in accuracy["formats"]}
    names = {row["format"] for row in accuracy["formats"]}
    rotations = ("none", "H32", "H128")

    def error(name: str, rotation: str, activations: str) -> float:
        return rows[name, rotation][activations]["output_error"]["mean"]

    def cosine(name: str, rotation: str, activations: str) -> float:
        return rows[name, rotation][activations]["cosine"]["mean"]

    # Weights alone.
    best = {name: min(error(name, rotation, "float") for rotation in rotations) for name in names}
    assert min(best, key=best.__getitem__) == "INT4 g32 + zero"
    assert best["NVFP4"] < best["INT4 g128 + zero"] < best["MXFP4 abs_max"] < best["MXFP4 quest"]
    bits = {name: rows[name, "none"]["bits_per_weight"] for name in names}
    assert bits["INT4 g128 + zero"] < bits["MXFP4 abs_max"] < bits["NVFP4"]

    # INT8 activations.
    for name in names:
        if name.startswith("INT"):
            for rotation in rotations:
                assert error(name, rotation, "int8") - error(name, rotation, "float") < 0.005
    for rotation in rotations:
        for name in ("MXFP4 quest", "MXFP4 abs_max", "NVFP4"):
            assert error("INT4 g32", rotation, "int8") < error(name, rotation, "4_bit")
        for name in ("MXFP4 quest", "MXFP4 abs_max"):
            assert cosine("INT4 g32", rotation, "int8") > cosine(name, rotation, "4_bit")

    # 4-bit activations.
    assert error("INT4 row", "none", "4_bit") > 1.5 * error("MXFP4 abs_max", "none", "4_bit")
    assert error("INT4 row", "H128", "4_bit") < 1.15 * error("MXFP4 abs_max", "H128", "4_bit")
    existing = [row for row in accuracy["formats"] if row["operator_for_4_bit_activations"]]
    assert min(existing, key=lambda row: row["4_bit"]["output_error"]["mean"])["format"] == "NVFP4"

    # Rotation.
    gain = {
        name: error(name, "none", "4_bit") / error(name, "H128", "4_bit")
        for name in ("NVFP4", "INT4 g32", "INT4 g128", "INT4 row", "MXFP4 quest")
    }
    assert gain["NVFP4"] < 1 < gain["INT4 g32"] < gain["INT4 g128"] < gain["INT4 row"]
    assert gain["MXFP4 quest"] > 1.5
    abs_max = [error("MXFP4 abs_max", rotation, "float") for rotation in rotations]
    assert max(abs_max) / min(abs_max) < 1.03
