# SPDX-License-Identifier: Apache-2.0
"""Times the products of one shape after another and makes records of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import ops
from ..timing import Timing, bytes_of, time_calls
from .peers import PEERS, Peer, missing, one_line
from .records import relate
from .schemes import SCHEMES, Scheme, Tokens, Weights, make_tokens
from .shapes import Shape, by_layer

# Up to this M a call is short beside what an event costs, and is timed in graphs on rotated copies.
GRAPH_M = 256
SPLITS = (0, 1, 2, 3, 4, 6, 8, 12)  # 0: Stream-K


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    shapes: Sequence[Shape]
    schemes: Sequence[str] = tuple(SCHEMES)
    kinds: Sequence[str] = ("ideal", "actual")
    peers: Sequence[str] = tuple(PEERS)
    group: int = 128
    zeros: bool = False
    all_tiles: bool = False


@dataclass
class Gpu:
    """How a call is timed; a test puts something else in its place.

    `seconds` is the aim for all samples of one call.
    """

    seconds: float
    device: str = "cuda"

    def time_small(self, call: Callable[[Any], Any], copies: Sequence[Any]) -> Timing:
        """In a graph that rotates over copies of the operands."""
        self._rest()
        return time_calls(call, copies, seconds=self.seconds)

    def time_large(self, call: Callable[[Any], Any], operands: Any) -> Timing:
        """One call after the other, with L2 overwritten between them, as Triton does it."""
        from triton.testing import do_bench

        call(operands)  # loads modules, allocates
        self._rest()
        # The shares that are do_bench's defaults: 25 ms of calls that are not counted, then 100.
        milliseconds = do_bench(
            lambda: call(operands),
            warmup=math.ceil(1e3 * self.seconds / 4),
            rep=math.ceil(1e3 * self.seconds),
            return_mode="all",
        )
        return Timing.of([1e3 * sample for sample in milliseconds])

    def _rest(self) -> None:
        """For as long as a call is timed. Large products reach the card's power limit, and its
        clock follows with a delay: without a pause a call would run at the clock that the one
        before it has earned."""
        torch.cuda.synchronize()
        time.sleep(self.seconds)

    def forget(self) -> None:
        """Give back the memory of operands that are gone."""
        torch.cuda.empty_cache()


class Bench:
    """Walks over a plan."""

    def __init__(
        self,
        plan: Plan,
        facts: dict[str, Any],
        gpu: Gpu,
        say: Callable[[str], None],
        step: Callable[[str], None] = lambda what: None,
    ) -> None:
        """
        Args:
            plan: What to measure.
            facts: What each record carries besides; of them are used "copy_GBps" and
                "ceiling_TOPS".
            gpu: How to time a call.
            say: Told, in one line each, of what was not measured and why.
            step: Told of each call before it is timed.
        """
        self.plan, self.facts, self.gpu, self.say, self.step = plan, facts, gpu, say, step
        self.failures = 0  # of our own products
        self._rows = ops._gemm_tiles() if plan.all_tiles else []
        self._said: set[str] = set()
        self._peers: list[Peer] = []
        for name in plan.peers:
            reason = missing(PEERS[name])
            if reason is None:
                self._peers.append(PEERS[name])
            else:
                self._say_once(f"not measured: {reason}")

    def steps(self) -> int:
        """How many calls are timed at most, rows of the tile table aside."""
        kinds = sum(
            len(set(self.plan.kinds) & set(SCHEMES[name].kinds())) for name in self.plan.schemes
        )
        return len(set(self.plan.shapes)) * (kinds + len(self._peers))

    def run(self) -> Iterator[list[dict[str, Any]]]:
        """The records of one (N, K) after the other: weights are made once for all its M."""
        for (n, k), tokens in by_layer(self.plan.shapes).items():
            weights = Weights(n, k, self.plan.group, self.plan.zeros, self.gpu.device)
            records: list[dict[str, Any]] = []
            for m in tokens:
                records += self._point(m, weights)
            del weights
            self.gpu.forget()
            yield records

    def _point(self, m: int, weights: Weights) -> list[dict[str, Any]]:
        """All that there is to measure of one shape."""
        n, k = weights.n, weights.k
        count = len(weights.matrices("int4")) if m <= GRAPH_M else 1
        tokens = [make_tokens(m, k, self.plan.zeros, self.gpu.device) for _ in range(count)]
        records = []
        for peer in self._peers:
            if peer.takes(m, n, k):
                self.step(f"{peer.title} {m} x {n} x {k}")
                records += self._try(peer.name, lambda p=peer: [self._peer(p, tokens, weights)])
        for name in self.plan.schemes:
            scheme = SCHEMES[name]
            for kind in scheme.kinds():
                if kind in self.plan.kinds:
                    self.step(f"{name} {kind} {m} x {n} x {k}")
                    made = self._try(
                        "", lambda s=scheme, i=kind: self._scheme(s, i, tokens, weights)
                    )
                    if not made:
                        self.failures += 1
                        self._say_once(f"{name}: {kind} failed at {m} x {n} x {k}")
                    records += made
        relate(records)
        return [{**record, **self.facts} for record in records]

    def _try(self, peer: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Records, or none and one line that says why: one failure must not cost all the rest."""
        try:
            return make()
        except Exception as error:
            self._say_once(f"{peer}: not measured, {one_line(error)}" if peer else one_line(error))
            if isinstance(error, torch.OutOfMemoryError):
                self.gpu.forget()
            return []

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _time(self, m: int, call: Callable[[Any], Any], copies: Sequence[Any]) -> Timing:
        if m <= GRAPH_M:
            return self.gpu.time_small(call, copies)
        return self.gpu.time_large(call, copies[0])

    def _peer(self, peer: Peer, tokens: list[Tokens], weights: Weights) -> dict[str, Any]:
        m, n, k = tokens[0].x.shape[0], weights.n, weights.k
        copies = list(zip(peer.prepare(weights), tokens, strict=False))
        out = peer.call(*copies[0])
        activations = bytes_of([getattr(tokens[0], peer.activation)])
        weight_bits = peer.weight_bits + peer.group_bits / weights.group
        moved = activations + int(n * k * weight_bits / 8) + bytes_of([out])
        del out
        timing = self._time(m, lambda pair: peer.call(*pair), copies)
        group = weights.group if peer.group_bits else None
        return {
            **self._record(peer.name, "peer", peer.title, (m, n, k), group, timing),
            **self._rates(timing, (m, n, k), moved, peer.instruction),
            "beside": list(peer.beside),
        }

    def _scheme(
        self, scheme: Scheme, kind: str, tokens: list[Tokens], weights: Weights
    ) -> list[dict[str, Any]]:
        shape = tokens[0].x.shape[0], weights.n, weights.k
        m, n, k = shape
        group = self.plan.group
        copies = [
            {**scheme.activation_operands(token, kind), **weight}
            for token, weight in zip(tokens, weights.operands(scheme), strict=False)
        ]
        moved = bytes_of(copies[0].values()) + bytes_of([scheme.call(kind, copies[0])])
        timing = self._time(m, lambda args: scheme.call(kind, args), copies)
        choice = scheme.explain(m, n, k, group)
        emulated = bool(choice.get("emulated"))
        title = scheme.title.format(g=group) + (" (emulated)" if emulated else "")

        def record(kind: str, timing: Timing, tile: str | None, split: int | None) -> dict:
            return {
                **self._record(scheme.name, kind, title, shape, scheme.group_of(group), timing),
                **self._rates(timing, shape, moved, scheme.instruction),
                "tile": tile,
                "split_k": split,
                "emulated": emulated,
                "tuned": kind != "tile" and bool(choice.get("tuned")),
            }

        records = [record(kind, timing, choice.get("tile"), choice.get("split_k"))]
        if kind == "ideal":
            for tile, split in self._legal(scheme, *shape):
                row = self._time(
                    m,
                    lambda args, t=tile["index"], s=split: scheme.call_row(t, s, args),
                    copies,
                )
                records.append(record("tile", row, tile["name"], split))
        return records

    def _legal(
        self, scheme: Scheme, m: int, n: int, k: int
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """Rows of the tile table, and splits of k, that can run a product."""
        device = torch.cuda.current_device() if self._rows else 0
        group = scheme.group_of(self.plan.group)
        for tile in self._rows:
            for split in SPLITS:
                if tile["op"] == scheme.name and ops._gemm_legal(
                    scheme.name, tile["index"], split, m, n, k, group, device=device
                ):
                    yield tile, split

    def _record(
        self,
        scheme: str,
        kind: str,
        title: str,
        shape: tuple[int, int, int],
        group: int | None,
        timing: Timing,
    ) -> dict[str, Any]:
        return {
            "bench": "gemm",
            "scheme": scheme,
            "kind": kind,
            "title": title,
            **dict(zip("MNK", shape, strict=True)),
            "group": group,
            "zeros": self.plan.zeros,
            "us": timing.us,
            "low_us": timing.low,
            "high_us": timing.high,
            "spread": timing.spread,
            "samples": timing.samples,
        }

    def _rates(
        self,
        timing: Timing,
        shape: tuple[int, int, int],
        moved: int,
        instruction: str | None,
    ) -> dict[str, Any]:
        operations = 2 * math.prod(shape)
        memory = moved / self.facts["copy_GBps"] / 1e3
        rate = self.facts["ceiling_TOPS"].get(instruction)
        arithmetic = operations / rate / 1e6 if rate else 0.0
        # Nobody knows which instructions a peer without one runs, so it has no floor.
        floor = max(memory, arithmetic) if instruction else None
        return {
            "operations": operations,
            "bytes": moved,
            "TOPS": operations / timing.us / 1e6,
            "GBps": moved / timing.us / 1e3,
            "instruction": instruction,
            "floor_us": floor,
            "floor_of": ("arithmetic" if arithmetic > memory else "memory") if floor else None,
            "ceiling_known": rate is not None,
            "of_floor": floor / timing.us if floor else None,
        }
