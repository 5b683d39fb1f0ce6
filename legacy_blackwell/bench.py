# SPDX-License-Identifier: Apache-2.0
"""Time the integer operators on the shapes of the legacy benchmarks, under their provider names.

python -m legacy_blackwell.bench --layer Qwen3-32B --batch 1 16 2048
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import qutlass

# (K, N) of each layer that the legacy scripts ran, and those they listed but had switched off.
LAYERS = {
    "Qwen3-32B": [(5120, 5120), (5120, 51200), (25600, 5120)],
    "Llama-3.1-70B": [(8192, 8192), (8192, 57344), (28672, 8192)],
    "Qwen3-14B": [(5120, 5120), (5120, 34816), (17408, 5120)],
    "Qwen3-8B": [(4096, 4096), (4096, 24576), (12288, 4096)],
    "Llama7B": [(4096, 12288), (4096, 4096), (4096, 21504), (10752, 4096)],
}
BATCHES = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
GROUP = 128

Run = Callable[[], Tensor]


def torch_bf16(a: Tensor, b: Tensor) -> tuple[Run, Run]:
    def run() -> Tensor:
        return torch.nn.functional.linear(a, b)

    return run, run


def w4a16(a: Tensor, b: Tensor) -> tuple[Run, Run]:
    b_q, scales, zeros = qutlass.quantize_int4(b, symmetric=False, group_size=GROUP)

    def run() -> Tensor:
        return qutlass.matmul_int4_bf16_tn(a, b_q, scales, zeros)

    return run, run


def w4a8(a: Tensor, b: Tensor) -> tuple[Run, Run]:
    a_q, a_scale, _ = qutlass.quantize_int8(a)
    b_q, b_scale, _ = qutlass.quantize_int4(b, group_size=GROUP)

    def actual() -> Tensor:
        a_q, a_scale, _ = qutlass.quantize_int8(a)
        return qutlass.matmul_w4a8_bf16_tn(a_q, b_q, a_scale, b_scale)

    return actual, lambda: qutlass.matmul_w4a8_bf16_tn(a_q, b_q, a_scale, b_scale)


def w4a4(a: Tensor, b: Tensor) -> tuple[Run, Run]:
    a_q, a_scale, _ = qutlass.quantize_int4(a)
    b_q, b_scale, _ = qutlass.quantize_int4(b)

    def actual() -> Tensor:
        a_q, a_scale, _ = qutlass.quantize_int4(a)
        return qutlass.matmul_w4a4_bf16_tn(a_q, b_q, a_scale, b_scale)

    return actual, lambda: qutlass.matmul_w4a4_bf16_tn(a_q, b_q, a_scale, b_scale)


def w8a8(a: Tensor, b: Tensor) -> tuple[Run, Run]:
    a_q, a_scale, _ = qutlass.quantize_int8(a)
    b_q, b_scale, _ = qutlass.quantize_int8(b)

    def actual() -> Tensor:
        a_q, a_scale, _ = qutlass.quantize_int8(a)
        return qutlass.matmul_int8_bf16_tn(a_q, b_q, a_scale, b_scale)

    return actual, lambda: qutlass.matmul_int8_bf16_tn(a_q, b_q, a_scale, b_scale)


PROVIDERS = {"torch-bf16": torch_bf16, "w4a16": w4a16, "w4a8": w4a8, "w4a4": w4a4, "w8a8": w8a8}


def tflops(run: Run, m: int, n: int, k: int, seconds: float) -> float:
    measured = Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=seconds)
    return 2 * m * n * k / measured.median / 1e12


def measure(m: int, n: int, k: int, device: str, seconds: float) -> dict[str, float]:
    """TFLOP/s of each provider at one shape.

    Args:
        m: batch. n: output features. k: input features.
        device: "cuda" or "cpu".
        seconds: least time to measure each provider for.
    Returns:
        provider -> TFLOP/s; "-noquant" leaves the activations' quantization out.
    """
    a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
    result = {}
    for name, build in PROVIDERS.items():
        actual, ideal = build(a, b)
        result[name] = tflops(actual, m, n, k, seconds)
        if ideal is not actual:
            result[f"{name}-noquant"] = tflops(ideal, m, n, k, seconds)
    return result


def main(argv: list[str] | None = None) -> int:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", choices=LAYERS, default="Qwen3-32B")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, metavar="M")
    parser.add_argument("--device", default=default)
    parser.add_argument("--seconds", type=float, default=0.2, help="least time for each number")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    for k, n in LAYERS[args.layer]:
        print(f"{args.layer}, N={n} K={k}, TFLOP/s on {name}")
        for index, m in enumerate(args.batch):
            row = measure(m, n, k, args.device, args.seconds)
            if index == 0:
                print("  batch" + "".join(f"{column:>14}" for column in row))
            print(f"{m:>7}" + "".join(f"{value:>14.2f}" for value in row.values()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
