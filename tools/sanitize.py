#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the compact GPU tests under compute-sanitizer: memcheck, racecheck and initcheck.

    python tools/sanitize.py                     # all three, the tests marked `compact`
    python tools/sanitize.py memcheck -- -k w4a8 # one tool; what follows -- goes to pytest

The caching allocator of torch is off meanwhile, so that each tensor is an allocation of its own and
one byte past its end is out of bounds. Before it is trusted, a tool has to find an error made on
purpose, where one can be made without a kernel of our own. Exit status 0: every tool ran at least
one test and found nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck")
FOUND_ERRORS = 86  # the exit status asked of compute-sanitizer; pytest's own are below 6

_PLANTED = {
    # Writes past the end of an allocation.
    "memcheck": """
import torch
class Memory:
    def __init__(self, t, size):
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "strides": None,
                                         "data": (t.data_ptr(), False), "version": 3}
t = torch.zeros(1024, dtype=torch.uint8, device="cuda")
torch.as_tensor(Memory(t, 1040), device="cuda").add_(1)
torch.cuda.synchronize()
""",
    # Reads what nothing has written.
    "initcheck": """
import torch
print((torch.empty(4096, device="cuda") + 1).sum().item())
""",
}


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, in CUDA_HOME or where toolkits are installed."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    roots = [Path(home) for home in homes if home] + sorted(Path("/usr/local").glob("cuda*"))
    candidates = [root / folder / "compute-sanitizer" for root in roots
                  for folder in ("bin", "compute-sanitizer")]  # fmt: skip
    on_path = shutil.which("compute-sanitizer")
    return on_path or next((str(c) for c in candidates if os.access(c, os.X_OK)), None)


def command(sanitizer: str, tool: str, ours_only: bool) -> list[str]:
    options = [f"--tool={tool}", f"--error-exitcode={FOUND_ERRORS}", "--print-limit=20"]
    if tool == "memcheck":
        # torch asks the driver for optional things and takes no for an answer.
        options.append("--report-api-errors=no")
    if tool == "racecheck" and ours_only:
        # Every access to shared memory is recorded: torch's kernels would only cost time.
        options.append("--kernel-regex=kns=qutlass")
    return [sanitizer, *options, sys.executable]


def environment() -> dict[str, str]:
    # The parts of a split k are waited for by reading flags that nothing need have written.
    flags = {"QUTLASS_CLEAR_FLAGS": "1"}
    return {**os.environ, **flags, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}


def finds_what_is_planted(sanitizer: str, tool: str) -> bool:
    run = [*command(sanitizer, tool, False), "-c", _PLANTED[tool]]
    return subprocess.run(run, env=environment(), capture_output=True).returncode == FOUND_ERRORS


def check(sanitizer: str, tool: str, pytest_arguments: list[str]) -> bool:
    """Runs the tests under one tool, showing its output; whether they ran and are clean."""
    start = time.monotonic()
    if tool in _PLANTED and not finds_what_is_planted(sanitizer, tool):
        print(f"{tool}: did not find an error made on purpose; its silence means nothing here")
        return False
    pytest = ["-m", "pytest", "-m", "gpu and compact", "-p", "no:cacheprovider", "tests"]
    run = [*command(sanitizer, tool, True), *pytest, *pytest_arguments]
    print(" ".join(run), flush=True)
    process = subprocess.Popen(
        run,
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line)
    status = process.wait()
    output = "".join(lines)
    passed = re.search(r"(\d+) passed", output)
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    clean = status == 0 and bool(passed) and bool(summaries)
    print(
        f"{tool}: {'clean' if clean else 'NOT CLEAN'}, {passed[0] if passed else 'no test passed'}"
        f" in {time.monotonic() - start:.0f} s, exit status {status}; "
        f"{summaries[-1] if summaries else 'no summary'}",
        flush=True,
    )
    return clean


def main() -> int:
    arguments = sys.argv[1:]
    after = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(TOOLS)}; all")
    chosen = parser.parse_args(arguments[:after]).tools or list(TOOLS)
    if unknown := sorted(set(chosen) - set(TOOLS)):
        parser.error(f"no such tool: {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("compute-sanitizer is not on PATH, in CUDA_HOME or in /usr/local/cuda*; it comes "
              "with the CUDA toolkit")  # fmt: skip
        return 1
    clean = [check(sanitizer, tool, arguments[after + 1 :]) for tool in chosen]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
