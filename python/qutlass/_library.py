# SPDX-License-Identifier: Apache-2.0
"""Finds libqutlass.so and loads it into torch."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

_OLDEST_TORCH = (2, 11)
_REBUILD = (
    "Build it from the checkout with `pip install --no-build-isolation -e .` "
    "(`make test` does all of it), or install a wheel of qutlass."
)


def library_path() -> Path:
    """The library that `load` takes: $QUTLASS_LIBRARY if set, else the one in the package."""
    named = os.environ.get("QUTLASS_LIBRARY")
    return Path(named) if named else Path(__file__).resolve().parent / "libqutlass.so"


@functools.cache
def load() -> ctypes.CDLL:
    """Registers the operators under `torch.ops.qutlass` and returns the library's C functions.

    Raises:
        ImportError: the library is missing or does not load; the message says what to do.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"qutlass needs torch {oldest} or later, and this is torch {torch.__version__}. "
            f'Install a newer one: pip install "torch>={oldest}"'
        )
    path = library_path()
    if not path.is_file():
        if "QUTLASS_LIBRARY" in os.environ:
            raise ImportError(f"QUTLASS_LIBRARY names {path}, and there is no such file.")
        raise ImportError(f"qutlass is not built: {path} does not exist. {_REBUILD}")
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path))
    except OSError as error:
        reason = error.__cause__ or error  # what the loader said, behind torch's "could not load"
        raise ImportError(
            f"{path} does not load into torch {torch.__version__}: {reason}. It was built for "
            f"another machine or another torch. {_REBUILD}"
        ) from error
