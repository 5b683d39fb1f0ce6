# SPDX-License-Identifier: Apache-2.0
"""Puts the checkout on the path: legacy_blackwell is read from there and never installed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# An installed qutlass is compared with where there is one, else the checkout's.
if importlib.util.find_spec("qutlass") is None:
    sys.path.append(str(ROOT / "python"))


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20250714)
