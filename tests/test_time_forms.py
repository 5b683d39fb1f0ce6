# SPDX-License-Identifier: Apache-2.0
"""tools/time_forms.py: the operands of each form, and its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import time_forms
from qutlass.bench import schemes
from qutlass.bench.schemes import Weights, make_tokens

N, K, M, GROUP = 16, 128, 3, 32


@pytest.mark.parametrize("scheme", time_forms.PRODUCTS, ids=lambda scheme: scheme.name)
def test_forms_are_the_plain_call_and_what_they_say(
    monkeypatch: pytest.MonkeyPatch, scheme: schemes.Scheme
) -> None:
    # How many copies there are follows from a GPU's L2.
    monkeypatch.setattr(schemes, "copies_of", lambda make, bytes_each: [make(), make()])
    weights = Weights(N, K, GROUP, False, "cpu"), Weights(N, K, GROUP, True, "cpu")
    tokens = make_tokens(M, K, False, "cpu"), make_tokens(M, K, True, "cpu")
    forms = time_forms.forms_of(scheme, weights, tokens, torch.zeros(N))
    plain = set(forms["plain"][0])
    assert not plain & {"a_zero", "b_zero", "b_sum", "bias"}
    assert set(forms["bias"][0]) - plain == {"bias"}
    if scheme.activation == "bf16":
        assert set(forms) == {"plain", "weight", "bias"}
        assert set(forms["weight"][0]) - plain == {"b_zero"}
        return
    assert set(forms) == {"plain", *time_forms.FORMS}
    assert set(forms["weight"][0]) - plain == {"b_zero", "b_sum"}
    assert set(forms["activations"][0]) - plain == {"a_zero", "b_sum"}
    assert set(forms["both"][0]) - plain == {"a_zero", "b_zero", "b_sum"}
    assert all(len(copies) == 2 for copies in forms.values())


def test_a_line_is_medians_over_the_plain_call() -> None:
    times = {"plain": [1.0, 2.0, 9.0], "weight": [2.2, 2.2, 50.0], "bias": [2.0, 2.0, 2.0]}
    assert time_forms.row_of(["w4a16"], times) == ["w4a16", "2.0", "1.100", "-", "-", "1.000"]


@pytest.mark.gpu
def test_it_runs() -> None:
    tool = Path(time_forms.__file__)
    command = [sys.executable, str(tool), "--shapes", "16,512,1024", "--markdown"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert lines[2].startswith("| product |")
    assert len(lines) == 4 + len(time_forms.PRODUCTS)
