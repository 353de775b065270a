"""A planted bug for every diagnostic of kernels. Each is caught and printed; the program goes on.

Run ``bringup run examples/kernel_bugs.py``: bounds, assertions, locks that are never free and tensors of the host are
always checked. With ``--sanitize race,init`` the last two are found as well, and the exit code is 1.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def copy(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets))  # bug: no mask for the last block


@triton.jit
def checked(x_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0)
    tl.device_assert(x < 90, "a value is too large")  # bug: the last ones are


@triton.jit
def locked(lock_ptr, out_ptr):
    while tl.atomic_cas(lock_ptr, 1, 2) != 1:  # bug: the lock is 0, nobody ever makes it 1
        pass
    tl.store(out_ptr, 1.0)


@triton.jit
def total(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0)
    tl.store(out_ptr, tl.load(out_ptr) + tl.sum(x))  # bug: every program, without an atomic


@triton.jit
def accumulate(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.atomic_add(out_ptr + offsets, tl.load(x_ptr + offsets, mask=mask), mask=mask)


def out_of_bounds(x):
    copy[(4,)](x, torch.zeros_like(x), 100, BLOCK=32)


def failed_assertion(x):
    checked[(4,)](x, 100, BLOCK=32, debug=True)


def endless_lock(x):
    locked[(2,)](torch.zeros(1, dtype=torch.int32, device=x.device), torch.zeros(1, device=x.device))


def tensor_of_the_host(x):
    copy[(3,)](x.cpu(), torch.zeros_like(x), 96, BLOCK=32)


def race(x):
    total[(4,)](x, torch.zeros(1, device=x.device), 100, BLOCK=32)


def uninitialised(x):
    accumulate[(4,)](x, torch.empty_like(x), 100, BLOCK=32)  # bug: empty is not zeros


def main():
    device = torch.accelerator.current_accelerator()
    x = torch.arange(100, dtype=torch.float32).to(device)
    for bug in (out_of_bounds, failed_assertion, endless_lock, tensor_of_the_host, race, uninitialised):
        try:
            bug(x)
            torch.accelerator.synchronize()
            print(f"{bug.__name__}: silent unless it is looked for (--sanitize race,init)")
        except (RuntimeError, ValueError) as error:
            print(f"{bug.__name__}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
