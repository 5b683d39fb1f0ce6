# SPDX-License-Identifier: Apache-2.0
"""Turns the measured numbers into the README of this folder and its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Result = dict[str, Any]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:" for _ in header[1:]]], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format_rows(result: Result) -> list[list[str]]:
    rows = []
    for row in result["formats"]:
        four = row["4_bit"]
        mark = "" if row["operator_for_4_bit_activations"] else " *"
        eight = row.get("int8")
        rows.append(
            [
                row["format"],
                row["rotation"],
                f"{row['bits_per_weight']:.3f}",
                _percent(row["weight_error"]["mean"]),
                _percent(row["float"]["output_error"]["mean"]),
                f"{row['float']['cosine']['mean']:.3f}",
                _percent(four["output_error"]["mean"]) + mark,
                f"{four['cosine']['mean']:.3f}{mark}",
                _percent(eight["output_error"]["mean"]) if eight else "",
                f"{eight['cosine']['mean']:.3f}" if eight else "",
            ]
        )
    return rows


def _operator_rows(result: Result) -> list[list[str]]:
    by_name: dict[str, dict[str, Any]] = {}
    for row in result["operators"]:
        by_name.setdefault(row["name"], {"operator": row["operator"]})[row["rotation"]] = row
    return [
        [
            name,
            entry["operator"],
            *(
                _percent(entry[rotation]["output_error"]["mean"])
                for rotation in ("none", "H32", "H128")
            ),
        ]
        for name, entry in by_name.items()
    ]


def render(result: Result) -> str:
    """Write the folder's README from the numbers alone.

    Args:
        result: what `compare` measured, as results.json holds it.
    Returns:
        Markdown.
    """
    formats = _table(
        [
            "weights",
            "rotation",
            "bits",
            "W error %",
            "float acts: output %",
            "cosine",
            "4-bit acts: output %",
            "cosine",
            "INT8 acts: output %",
            "cosine",
        ],
        _format_rows(result),
    )
    operators = _table(
        ["product", "operator", "none", "H32", "H128"],
        _operator_rows(result),
    )
    return f"""# MXFP4, NVFP4 and INT4 on {result["model"]}

This page, `results.json` and the plot are written by one command; nothing on it is typed in:

    {result["command"]}

Measured on {result["device"]} with torch {result["torch"]}: {result["linears"]} Linear layers,
{result["weights"]:,} weights, {result["sentences"]} sentences, {result["tokens"]:,} tokens.
Round to nearest; no calibration and no GPTQ in any row.

![Output error and embedding similarity of each format](accuracy.svg)

## Formats

- *bits*: stored a weight, with its scales (E8M0 or E4M3: 8 bits, INT4: bfloat16) and zero points
  (8 bits).
- *W error*: Frobenius norm of the weight's error over that of the weight; mean over the layers.
- *output*: the same for `x @ w.T` on the activations that the float32 model feeds the layer, with
  the activations in float32, in 4 bits (the weight's own format, groups of the same size,
  symmetric) or in INT8 (one scale a token).
- *cosine*: of the sentence embeddings against float32 with every layer quantized; mean.
- *rotation*: both operands multiplied by a Hadamard matrix over runs of 32 or 128 columns.
- \\*: no operator of this library multiplies such a pair; the number is about the format.

{formats}

## Operators

Mean output error in % of the products that exist, run as they are with their bfloat16 results, on
the first {result["operator_tokens"]} tokens.

{operators}
"""


def write_report(result: Result, folder: Path) -> str:
    """Write README.md into folder and return its text."""
    text = render(result)
    (folder / "README.md").write_text(text)
    return text


def write_plot(result: Result, folder: Path) -> None:
    """Write accuracy.svg and accuracy.png into folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # A fixed salt and no date: the same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "legacy_blackwell"
    rotations = list(dict.fromkeys(row["rotation"] for row in result["formats"]))
    names = list(dict.fromkeys(row["format"] for row in result["formats"]))
    rows = {(row["format"], row["rotation"]): row for row in result["formats"]}
    colours = ["#0072b2", "#e69f00", "#009e73"]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 4.6), sharey=True, layout="constrained")
    height = 0.8 / len(rotations)
    panels = [
        ("float", "output_error", "weights in 4 bits,\nactivations in float32"),
        ("4_bit", "output_error", "weights and activations\nin 4 bits"),
        ("int8", "output_error", "weights in 4 bits,\nactivations in INT8"),
        ("4_bit", "cosine", "sentence embeddings, weights\nand activations in 4 bits"),
    ]
    largest = max(row["4_bit"]["output_error"]["mean"] for row in result["formats"])
    for axis, (activations, metric, title) in zip(axes, panels, strict=True):
        for index, rotation in enumerate(rotations):
            for position, name in enumerate(names):
                cell = rows[name, rotation].get(activations)
                if cell is None:
                    continue
                value = cell[metric]["mean"]
                value = 100 * value if metric == "output_error" else 1 - value
                real = (
                    activations != "4_bit" or rows[name, rotation]["operator_for_4_bit_activations"]
                )
                axis.barh(
                    position + (index - (len(rotations) - 1) / 2) * height,
                    value,
                    height,
                    color=colours[index],
                    alpha=1.0 if real else 0.45,
                    hatch=None if real else "///",
                    edgecolor="white",
                    linewidth=0.5,
                )
                axis.annotate(
                    f"{value:.1f}" if metric == "output_error" else f"{value:.3f}",
                    (value, position + (index - (len(rotations) - 1) / 2) * height),
                    xytext=(2, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                )
        axis.set_title(title, fontsize=10)
        # The three error panels share one scale, so that they can be compared by eye.
        axis.set_xlabel("output error, %" if metric == "output_error" else "1 - mean cosine")
        if metric == "output_error":
            axis.set_xlim(0, 115 * largest)
        else:
            axis.margins(x=0.16)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    handles = [
        *(pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours),
        pyplot.Rectangle((0, 0), 1, 1, facecolor="0.7", hatch="///", edgecolor="white"),
    ]
    labels = [
        "no rotation" if rotation == "none" else f"Hadamard {rotation[1:]}"
        for rotation in rotations
    ]
    figure.legend(
        handles,
        [*labels, "format only, no such operator"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.suptitle(
        f"{result['model']}: round to nearest, {result['linears']} Linear layers, "
        f"{result['tokens']:,} tokens"
    )
    figure.savefig(folder / "accuracy.svg", metadata={"Date": None})
    figure.savefig(folder / "accuracy.png", dpi=160, metadata={"Software": None})
    pyplot.close(figure)
