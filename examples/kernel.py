"""A fused kernel of one's own in Triton: the residual connection and RMS norm of a transformer, checked and timed.

Run ``bringup run --chip a100-sxm-80 examples/kernel.py``. ``--sanitize race,init`` also looks for races and for memory
that nobody wrote; with ``--kernel-debug`` it runs in Triton's interpreter, where ``print`` and ``breakpoint()`` work.
"""

import torch
import triton
import triton.language as tl


@triton.autotune(
    configs=[triton.Config({"ROWS": rows}) for rows in (1, 4, 16)], key=["width"], restore_value=["residual_ptr"]
)
@triton.jit
def add_rms_norm(x_ptr, residual_ptr, weight_ptr, out_ptr, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    mask = (row < rows) & (column < width)
    x = tl.load(x_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(residual_ptr + row * width + column, x, mask=mask)
    scale = tl.rsqrt(tl.sum(x * x, axis=1)[:, None] / width + eps)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0)
    tl.store(out_ptr + row * width + column, x * scale * weight, mask=mask)


def fused(x, residual, weight, eps=1e-6):
    rows, width = x.shape
    out = torch.empty_like(x)

    def grid(meta):
        return (triton.cdiv(rows, meta["ROWS"]),)

    add_rms_norm[grid](x, residual, weight, out, rows, width, eps, WIDTH=triton.next_power_of_2(width))
    return out


def unfused(x, residual, weight, eps=1e-6):
    residual += x
    return residual * torch.rsqrt(residual.pow(2).mean(-1, keepdim=True) + eps) * weight


def main():
    torch.manual_seed(0)
    x, residual, weight = torch.randn(2048, 1000), torch.randn(2048, 1000), torch.rand(1000)
    device = torch.accelerator.current_accelerator()
    found, expected = (run(x.to(device), residual.to(device), weight.to(device)).cpu() for run in (fused, unfused))
    print(f"largest difference {(found - expected).abs().max().item():.1e}")
    given = [t.to(device) for t in (x, residual, weight)]
    times = {run.__name__: triton.testing.do_bench(lambda run=run: run(*given)) for run in (fused, unfused)}
    best = add_rms_norm.best_config.kwargs["ROWS"] if hasattr(add_rms_norm, "best_config") else "-"
    print(f"fused {times['fused'] * 1e3:.1f} us ({best} rows a program), unfused {times['unfused'] * 1e3:.1f} us")


if __name__ == "__main__":
    main()
