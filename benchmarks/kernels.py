"""How fast Triton's kernels run on the chip: against torch's own CPU kernels, and against Triton's interpreter.

Run ``python benchmarks/kernels.py``. One thread; medians; the same inputs in the same process. The interpreter runs in
a process of its own, on smaller inputs.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))


def median(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Milliseconds of one run, the device's work included."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "chip":
            torch.chip.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def large(device: str, tutorials: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """The sizes of the table: a kernel on the chip, torch's own on the CPU."""
    torch.manual_seed(0)
    a, b, x = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.randn(4096, 4096)
    w, bias = torch.rand(4096), torch.rand(4096)
    q, k, v = (torch.randn(1, 8, 2048, 64) for _ in range(3))
    A, B, X, W, BIAS, Q, K, V = (t.to(device) for t in (a, b, x, w, bias, q, k, v))
    return {
        "matmul 2048^3": (lambda: tutorials.matmul(A, B, blocks=(128, 256, 64)), lambda: a @ b),
        "softmax 4096^2": (lambda: tutorials.softmax(X), lambda: torch.softmax(x, 1)),
        "layer norm 4096^2": (
            lambda: tutorials.LayerNorm.apply(X, W, BIAS),
            lambda: F.layer_norm(x, (4096,), w, bias),
        ),
        "attention 8x2048x64": (
            lambda: tutorials.attention(Q, K, V, False, (128, 64)),
            lambda: F.scaled_dot_product_attention(q, k, v),
        ),
        "causal attention": (
            lambda: tutorials.attention(Q, K, V, True, (128, 64)),
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
    }


def small(device: str) -> dict[str, float]:
    """Milliseconds of the tutorials on inputs that the interpreter can bear."""
    torch.set_num_threads(1)
    from tests.triton import tutorials

    torch.manual_seed(0)
    x, s, n = torch.rand(1 << 20), torch.randn(1024, 781), torch.randn(1024, 1024)
    a, w = torch.randn(512, 512), torch.rand(1024)
    q = torch.randn(1, 4, 512, 64)
    X, S, N, A, W, Q = (t.to(device) for t in (x, s, n, a, w, q))
    cases = {
        "add 1M": lambda: tutorials.add(X, X),
        "softmax 1024x781": lambda: tutorials.softmax(S),
        "matmul 512^3": lambda: tutorials.matmul(A, A),
        "dropout 1M": lambda: tutorials.dropout(X, 0.5, 1),
        "layer norm 1024^2": lambda: tutorials.LayerNorm.apply(N, W, W),
        "attention 4x512x64": lambda: tutorials.attention(Q, Q, Q, False),
    }
    return {name: median(run, device, 3 if device == "chip" else 1) for name, run in cases.items()}


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TRITON_INTERPRET"] = "1"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        interpreted = pool.apply(small, ("cpu",))
    del os.environ["TRITON_INTERPRET"]
    from tests.triton import tutorials

    print("against torch's CPU kernels, one thread (bar 3)")
    for name, (kernel, native) in large("chip", tutorials).items():
        ours, theirs = median(kernel, "chip", options.repeats), median(native, "cpu", options.repeats)
        print(f"  {name:20} {ours:8.1f} ms {theirs:8.1f} ms  {ours / theirs:5.2f}")
    print("against Triton's interpreter (bar 30)")
    for name, ours in small("chip").items():
        print(f"  {name:20} {ours:8.1f} ms {interpreted[name]:8.1f} ms  {interpreted[name] / ours:5.0f}")
    x = torch.rand(64, device="chip")
    out = torch.empty_like(x)

    def launch() -> None:
        for _ in range(1000):
            tutorials.add_kernel[(1,)](x, x, out, 64, BLOCK=64)

    print(f"a tiny launch {median(launch, 'chip', options.repeats):.0f} us (bar 150)")


if __name__ == "__main__":
    main()
