# SPDX-License-Identifier: Apache-2.0
"""Results of `qutlass.tune`: the files they are kept in, and how they reach the operators.

There is one JSON file for each GPU model, in $QUTLASS_CACHE_DIR, else $XDG_CACHE_HOME/qutlass, else
~/.cache/qutlass, named after the GPU: tuned-nvidia-geforce-rtx-3090.json. It can be copied to any
machine with such a GPU. The library asks for it when a kernel is first chosen on a GPU (see
csrc/gemm/tuned.h), so that an import neither reads files nor initialises CUDA. A file that cannot
be used is left alone, with one warning: the selection model decides then, as without a file.
QUTLASS_TUNED=0 in the environment turns all of this off.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .ops import _c

__all__ = ["Choice", "Problem", "Results", "UnusableError", "cache_dir", "path_for"]

_FORMAT = "qutlass tuned choices"
_VERSION = 1  # of the file; another one is not read
_LIMIT = 2**31  # of every size: what the kernels take


class UnusableError(Exception):
    """A file holds no results that can be used; the message says why."""


@dataclass(frozen=True, order=True)
class Problem:
    """What a choice depends on besides the GPU."""

    op: str  # the kernel family as the tile table names it, "w8a8", "w4a8_group" ...
    N: int
    K: int
    group: int  # columns that share a scale; K where there are no groups
    M: int


@dataclass(frozen=True)
class Choice:
    """The row that was measured to be best for a problem, beside what the model chose."""

    problem: Problem
    tile: str  # the row's name
    split_k: int
    us: float  # microseconds
    model_tile: str
    model_split_k: int
    model_us: float  # in the same sitting

    @property
    def gain(self) -> float:
        """The time of the model's choice over this one's."""
        return self.model_us / self.us


@dataclass
class Results:
    """What a file holds: the choices measured on one GPU model."""

    gpu: str  # the model's name
    choices: dict[Problem, Choice] = field(default_factory=dict)

    def add(self, choices: Iterable[Choice]) -> None:
        """Take in choices; one for the same problem is replaced."""
        self.choices.update((choice.problem, choice) for choice in choices)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            FileNotFoundError: There is none.
            UnusableError: It cannot be read, is no such file, or is of another version of the file
                or another tile table.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableError(f"it cannot be read: {error}") from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"it is no JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise UnusableError("it is no file of tuned choices")
        if data.get("version") != _VERSION:
            raise UnusableError(
                f"it is of version {data.get('version')!r} of the file, not {_VERSION}"
            )
        if data.get("table") != table_signature():
            raise UnusableError("it was measured with another tile table")
        gpu, choices = data.get("gpu"), data.get("choices")
        if not isinstance(gpu, str) or not isinstance(choices, list):
            raise UnusableError("it names no GPU or has no choices")
        results = cls(gpu)
        results.add(_parse(choice) for choice in choices)
        return results

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, making folders as needed.

        Raises:
            OSError: It cannot be written.
        """
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "table": table_signature(),
            "gpu": self.gpu,
        }
        lines = [
            json.dumps({**asdict(choice.problem), **_without_problem(choice)})
            for _, choice in sorted(self.choices.items())
        ]
        # One choice a line, so that two files can be compared by eye.
        text = json.dumps(head, indent=1)[:-2] + ',\n "choices": [\n  '
        text += ",\n  ".join(lines) + "\n ]\n}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def hand_over(self, device: int) -> None:
        """Let the operators use these choices, and no others, on a CUDA device from now on."""
        rows = {row["name"]: row["index"] for row in table_rows()}
        numbers: list[int] = []
        for problem, choice in self.choices.items():
            numbers += [problem.M, problem.N, problem.K, problem.group]
            numbers += [rows[choice.tile], choice.split_k]
        array = (ctypes.c_int64 * max(len(numbers), 1))(*numbers)
        if not _c.qutlass_tuned_set(device, array, len(numbers) // 6):
            raise AssertionError("a row of the library's own table was refused")


def _without_problem(choice: Choice) -> dict[str, Any]:
    return {key: value for key, value in vars(choice).items() if key != "problem"}


def _parse(data: Any) -> Choice:
    """A choice of a file, or UnusableError."""
    ops = {row["name"]: row["op"] for row in table_rows()}
    try:
        sizes = [data[key] for key in ("M", "N", "K", "group")]
        splits = [data[key] for key in ("split_k", "model_split_k")]
        times = [data[key] for key in ("us", "model_us")]
        names = [data[key] for key in ("op", "tile", "model_tile")]
    except (KeyError, TypeError) as error:
        raise UnusableError(f"a choice lacks something: {data!r}") from error
    if not (
        all(type(size) is int and 1 <= size < _LIMIT for size in sizes)
        and all(type(split) is int and 0 <= split < _LIMIT for split in splits)
        and all(type(time) in (int, float) and 0 < time < 1e12 for time in times)
        and all(type(name) is str for name in names)
        and ops.get(data["tile"]) == data["op"]
        and ops.get(data["model_tile"]) == data["op"]
    ):
        raise UnusableError(f"a choice is none: {data!r}")
    m, n, k, group = sizes
    split_k, model_split_k = splits
    return Choice(
        Problem(data["op"], n, k, group, m),
        data["tile"],
        split_k,
        float(data["us"]),
        data["model_tile"],
        model_split_k,
        float(data["model_us"]),
    )


@functools.cache
def table_rows() -> tuple[dict[str, Any], ...]:
    """The rows of the tile table, whether this build can launch them or not."""
    return tuple(json.loads(_c.qutlass_gemm_tiles()))


@functools.cache
def table_signature() -> str:
    """What identifies the kernels that results were measured with.

    The rows whatever their order, and a number that is raised when the kernels themselves change.
    """
    rows = [{key: row[key] for key in sorted(row) if key != "index"} for row in table_rows()]
    text = json.dumps(sorted(rows, key=lambda row: row["name"]))
    return f"{_c.qutlass_tuned_version()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cache_dir() -> Path:
    """Where results are kept: $QUTLASS_CACHE_DIR, else $XDG_CACHE_HOME/qutlass, else
    ~/.cache/qutlass. XDG_CACHE_HOME counts where it is absolute, as its specification has it.

    Raises:
        RuntimeError: None of them is set and there is no home directory.
    """
    named = os.environ.get("QUTLASS_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "qutlass"


def path_for(gpu: str) -> Path:
    """The file of a GPU model.

    Args:
        gpu: The model's name.

    Example:
        >>> path_for("NVIDIA GeForce RTX 3090").name
        'tuned-nvidia-geforce-rtx-3090.json'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_dir() / f"tuned-{slug or 'gpu'}.json"


def stored() -> list[Path]:
    """The files of all GPU models."""
    return sorted(cache_dir().glob("tuned-*.json"))


def in_use() -> bool:
    """Whether results are used at all: unless QUTLASS_TUNED is 0."""
    return os.environ.get("QUTLASS_TUNED") != "0"


def load_for(gpu: str) -> Results | None:
    """The results of a GPU model, None where there are none; a file that cannot be used is said
    once, and never raises."""
    path: Path | None = None
    try:
        path = path_for(gpu)
        results = Results.load(path)
        if results.gpu != gpu:
            raise UnusableError(f"it was measured on {results.gpu!r}, and this is {gpu!r}")
        return results
    except FileNotFoundError:
        return None
    except UnusableError as error:
        _warn_once(
            path,
            f"{path} is not used: {error}. `python -m qutlass tune` measures again, "
            "`python -m qutlass tune --clear` removes it.",
        )
    except Exception as error:  # no home directory, say
        _warn_once(path, f"no tuned choices can be read: {error}")
    return None


_warned: set[Path | None] = set()


def _warn_once(path: Path | None, message: str) -> None:
    if path in _warned:
        return
    _warned.add(path)
    try:
        warnings.warn(f"qutlass: {message}", RuntimeWarning, stacklevel=3)
    except RuntimeWarning as raised:  # where warnings are made errors; this is no place for one
        print(raised, file=sys.stderr)


# Reentrant: while a file is read the interpreter may run anything on this thread (a finalizer), an
# operator too, which then is answered by the model.
_lock = threading.RLock()
_reading: set[int] = set()
_read: set[int] = set()


def _load(device: int) -> None:
    """What the library calls when a kernel is first chosen on a device.

    Other threads that choose there at the same time call it too, and wait here without holding the
    interpreter's lock until the first is done. The name of the GPU is known to torch since CUDA was
    initialised; nothing is launched or waited for, so a graph capture is not disturbed.
    """
    try:
        with _lock:
            if device in _read or device in _reading:
                return
            _reading.add(device)
            try:
                if in_use():
                    results = load_for(torch.cuda.get_device_properties(device).name)
                    if results is not None:
                        results.hand_over(device)
                _read.add(device)
            finally:
                _reading.discard(device)
    except Exception as error:
        _warn_once(None, f"no tuned choices can be read: {error}")


_LOADER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_c.qutlass_tuned_set.restype = ctypes.c_bool
_c.qutlass_tuned_set.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_int]
_c.qutlass_tuned_version.restype = ctypes.c_int
_c.qutlass_tuned_version.argtypes = []
_c.qutlass_tuned_loader.restype = None
_c.qutlass_tuned_loader.argtypes = [_LOADER]

_loader = _LOADER(_load)  # the library keeps no reference that Python counts


def reset() -> None:
    """Forget what was read, so that each device is read again when it is next used."""
    with _lock:
        _read.clear()
        _warned.clear()
        _c.qutlass_tuned_loader(_loader)


_c.qutlass_tuned_loader(_loader)
# A thread that outlives the interpreter must not call into it.
atexit.register(_c.qutlass_tuned_loader, _LOADER())
