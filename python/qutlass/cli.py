# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m qutlass`, one entry of COMMANDS each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """What a command does, in one line, and the function of its arguments that returns a status."""

    summary: str
    run: Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its name and arguments; None: those of the process.

    Returns:
        The exit status: 0 if all went well.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m qutlass",
        description="INT8 and INT4 matrix products for PyTorch.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
        + "\n\n`python -m qutlass COMMAND --help` says more about one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.add_argument(
        "command", nargs="?", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS)
    )
    # What follows the command's name is the command's own, its --help included.
    named = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    args = parser.parse_args(argv[: named + 1])
    if args.version:
        from . import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    return COMMANDS[args.command].run(argv[named + 1 :])


def _doctor(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m qutlass doctor", description=COMMANDS["doctor"].summary
    )
    parser.add_argument("--json", action="store_true", help="print data instead of a report")
    args = parser.parse_args(argv)
    from .doctor import diagnose

    diagnosis = diagnose()
    print(json.dumps(diagnosis.to_dict(), indent=2) if args.json else diagnosis)
    return 0


def _demo(argv: Sequence[str]) -> int:
    from .demo import main as demo

    return demo(argv)


def _bench(argv: Sequence[str]) -> int:
    from .bench import main as bench

    return bench(argv)


def _explain(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m qutlass explain", description=COMMANDS["explain"].summary
    )
    parser.add_argument("op", help="e.g. matmul_w4a8_bf16_tn")
    parser.add_argument("M", type=int, help="tokens")
    parser.add_argument("N", type=int, help="output features")
    parser.add_argument("K", type=int, help="input features")
    parser.add_argument("--group-size", type=int, metavar="G", help="k values that share a scale")
    parser.add_argument("--multiplier", action="store_true", help="groups with integer multipliers")
    parser.add_argument(
        "--act-bits", type=int, default=16, metavar="BITS", help="act_bits of matmul_int4_bf16_tn"
    )
    parser.add_argument("--device", help="where it would run, e.g. cuda:1 or cpu")
    parser.add_argument(
        "--sm", type=int, metavar="CC", help="a card instead: 80, 86, 89 or 90, there or not"
    )
    parser.add_argument("--json", action="store_true", help="print data instead of lines")
    args = parser.parse_args(argv)
    from .ops import explain

    try:
        answer = explain(
            args.op,
            args.M,
            args.N,
            args.K,
            args.group_size,
            multiplier=args.multiplier,
            act_bits=args.act_bits,
            device=args.device,
            sm=args.sm,
        )
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(answer))
    else:
        width = max(map(len, answer))
        print("\n".join(f"{key:<{width}}  {value}" for key, value in answer.items()))
    return 0


def _tune(argv: Sequence[str]) -> int:
    from .tuning import main as tune

    return tune(argv)


COMMANDS = {
    "doctor": Command("what is installed, what runs where, what to install", _doctor),
    "demo": Command("quantize a real model in every scheme and compare with float32", _demo),
    "bench": Command("time every product on this GPU, beside those of others", _bench),
    "explain": Command("which kernel a matrix product would run", _explain),
    "tune": Command("measure which kernels are best for a model on this GPU, and use them", _tune),
}
