"""Counts what kernels do in Triton's interpreter, by hooking it. Run in a process with TRITON_INTERPRET=1."""

from collections import Counter
from typing import Any

import torch


def counted(name: str) -> dict[str, int]:
    """Run one of the tutorials' cases on the CPU; return what its kernels did."""
    from triton.runtime.interpreter import InterpreterBuilder

    from tests.triton import tutorials

    found: Counter[str] = Counter()

    def hook(method: str, count: Any) -> None:
        inner = getattr(InterpreterBuilder, method)

        def wrapper(self: Any, *args: Any) -> Any:
            count(*args)
            return inner(self, *args)

        setattr(InterpreterBuilder, method, wrapper)

    def load(pointer: Any, mask: Any, *_: Any) -> None:
        found["loaded"] += int(mask.data.sum()) * pointer.get_element_ty().primitive_bitwidth // 8

    def store(pointer: Any, value: Any, mask: Any, *_: Any) -> None:
        found["stored"] += int(mask.data.sum()) * pointer.get_element_ty().primitive_bitwidth // 8

    def dot(a: Any, b: Any, *_: Any) -> None:
        found["flops"] += 2 * a.data.shape[-1] * a.data.size // a.data.shape[-1] * b.data.shape[-1]

    def atomic(kind: Any, pointer: Any, value: Any, mask: Any, *_: Any) -> None:
        found["atomics"] += int(mask.data.sum())

    def swap(pointer: Any, *_: Any) -> None:
        found["atomics"] += pointer.data.size

    def special(value: Any, *_: Any) -> None:
        found["special"] += value.data.size

    hook("create_masked_load", load)
    hook("create_masked_store", store)
    hook("create_dot", dot)
    hook("create_atomic_rmw", atomic)
    hook("create_atomic_cas", swap)
    for method in ("create_exp", "create_exp2", "create_log", "create_sqrt", "create_precise_sqrt", "create_fdiv"):
        hook(method, special)
    cases(tutorials)[name]("cpu")
    return dict(found)


def cases(tutorials: Any) -> dict[str, Any]:
    """What the tutorials launch, small enough for the interpreter."""
    torch.manual_seed(0)

    def norm(device: str) -> None:
        x, w, b = (t.to(device) for t in (torch.randn(5, 60), torch.rand(60), torch.rand(60)))
        x.requires_grad_()
        y = tutorials.LayerNorm.apply(x, w.requires_grad_(), b.requires_grad_())
        y.backward(torch.ones(5, 60, device=device))

    def grouped(device: str) -> None:
        pairs = [(torch.randn(m, 32), torch.randn(32, n)) for m, n in ((32, 64), (64, 32))]
        tutorials.grouped_gemm([(a.to(device), b.to(device)) for a, b in pairs])

    def attend(device: str, causal: bool) -> None:
        tutorials.attention(*(torch.randn(1, 2, 50, 16).to(device) for _ in range(3)), causal, (16, 16))

    return {
        "add": lambda d: tutorials.add(torch.rand(3000).to(d), torch.rand(3000).to(d)),
        "softmax": lambda d: tutorials.softmax(torch.randn(9, 77).to(d)),
        "persistent softmax": lambda d: tutorials.softmax(torch.randn(9, 77).to(d), 4),
        "matmul": lambda d: tutorials.matmul(torch.randn(70, 50).to(d), torch.randn(50, 90).to(d)),
        "dropout": lambda d: tutorials.dropout(torch.randn(3000).to(d), 0.5, 7),
        "layer norm": norm,
        "attention": lambda d: attend(d, False),
        "causal attention": lambda d: attend(d, True),
        "grouped gemm": grouped,
    }
