"""The kit's random numbers: they are those of Philox as torch draws on CUDA."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.core.test_drivers import skip_without_device

Run = Callable[..., "subprocess.CompletedProcess[str]"]

REFERENCE = '''
import json, math
import numpy as np, torch

THREADS = 132 * 2048  # of an H100

def philox(seed, low, high):
    """Four words for each counter, by Salmon et al. 2011."""
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    w = [np.asarray(value, np.uint64) & mask for value in (low, low >> half, high, high >> half)]
    for _ in range(10):
        p, q = w[0] * np.uint64(0xD2511F53), w[2] * np.uint64(0xCD9E8D57)
        w = [(q >> half) ^ w[1] ^ k[0], q & mask, (p >> half) ^ w[3] ^ k[1], p & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(w, -1)

def words(n, seed, offset, per_call=4, width=1, threads=None):
    """The words of each element, and which of the numbers that they give is the element's."""
    i = np.arange(n)
    threads = threads or 256 * min(THREADS // 256, -(-n // 256))
    number, thread = i // (threads * width) * width + i % width, i // width % threads
    calls = np.asarray(offset // 4 + number // per_call, np.uint64)
    return philox(seed, calls, thread.astype(np.uint64)), number % per_call

def chosen(values, which):
    return np.take_along_axis(values, which[:, None], 1)[:, 0]

def uniform(n, seed, offset, **how):
    w, which = words(n, seed, offset, **how)
    return chosen(w.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33), which)

def normal(n, seed, offset):
    w, which = words(n, seed, offset)
    u = w.astype(np.float64) * 2.0**-32 + 2.0**-33
    radius = np.sqrt(-2 * np.log(u[:, [0, 0, 2, 2]]))
    angle = 2 * np.pi * u[:, [1, 1, 3, 3]]
    return chosen(np.where([True, False, True, False], np.sin(angle), np.cos(angle)) * radius, which)

def doubles(n, seed, offset):
    w, which = words(n, seed, offset, per_call=2)
    z = w[:, [0, 2]] ^ (w[:, [1, 3]] << np.uint64(21))
    return z.astype(np.float64) * 2.0**-53 + 2.0**-54, which

def offset_of(n, per_call=4):
    return 4 * ((n - 1) // (256 * min(THREADS // 256, -(-n // 256)) * per_call) + 1)

def on_device():
    return not json.loads(torch.ops.bringup.driver_ledger())["on_host"]
'''


def run(python: Run, opencl: str, program: str) -> None:
    done = python(REFERENCE + program, BRINGUP_DRIVER=opencl, timeout=300)
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


def test_reference_has_the_published_words(tmp_path: Path, python: Run) -> None:
    """The known answers of Random123 (kat_vectors, philox4x32 with 10 rounds)."""
    program = """
def words_of(low, high, seed):
    return [hex(int(word)) for word in philox(seed, np.uint64(low), np.uint64(high))]
assert words_of(0, 0, 0) == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
most = 2**64 - 1
assert words_of(most, most, most) == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
pi = words_of(0x85A308D3_243F6A88, 0x03707344_13198A2E, 0x299F31D0_A4093822)
assert pi == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]
"""
    done = python(REFERENCE + program)
    assert done.returncode == 0, done.stderr


def test_a_seed_gives_the_numbers_that_it_gives_on_cuda(python: Run, opencl: str) -> None:
    """What torch prints on NVIDIA GPUs for rand and randn with seed 0, in public documents and tests."""
    program = """
def seeded(function, *arguments):
    torch.manual_seed(0)
    return function(*arguments, device="chip").cpu()
first = [0.3990, 0.5167, 0.0249, 0.9401, 0.9459, 0.7967, 0.4150, 0.8203, 0.2290, 0.9096]
assert torch.allclose(seeded(torch.rand, 10), torch.tensor(first), atol=5e-5, rtol=0)
second = [0.9722, 0.7910, 0.4690, 0.3300, 0.3345, 0.3783, 0.7640, 0.6405, 0.1103, 0.3594]
assert torch.allclose(torch.rand(10, device="chip").cpu(), torch.tensor(second), atol=5e-5, rtol=0)
normal = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564,
          -0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]
assert torch.allclose(seeded(torch.randn, 3, 4).flatten(), torch.tensor(normal), atol=1e-5, rtol=0)
assert on_device()
"""
    run(python, opencl, program)


def test_distributions_are_those_of_the_documented_stream(python: Run, opencl: str) -> None:
    program = """
def close(tensor, expected, tolerance=2e-6):
    expected = torch.from_numpy(np.ascontiguousarray(expected)).double()
    error = (tensor.cpu().double().flatten() - expected).abs() / (1 + expected.abs())
    assert error.max() < tolerance, (error.max(), error.argmax())

seed, offset = 1234567890123456789, 0
torch.manual_seed(seed)

def at(count, per_call=4):
    global offset
    before, offset = offset, offset + offset_of(count, per_call)
    return before

big = 3 * THREADS + 77  # threads draw several numbers
for n in (1, 255, 1000, big):
    close(torch.rand(n, device="chip"), uniform(n, seed, at(n)) % 1)
    close(torch.randn(n, device="chip"), normal(n, seed, at(n)), 1e-5)
n = 1000
u = lambda: uniform(n, seed, at(n))
close(torch.empty(n, device="chip").uniform_(-2, 3), u() * 5 - 2)
close(torch.empty(n, device="chip").normal_(1, 0.5), normal(n, seed, at(n)) * 0.5 + 1, 1e-5)
close(torch.empty(n, device="chip").exponential_(0.5), -2 * np.log(u()), 1e-5)
close(torch.empty(n, device="chip").log_normal_(0.1, 0.3), np.exp(normal(n, seed, at(n)) * 0.3 + 0.1), 1e-5)
close(torch.empty(n, device="chip").cauchy_(1, 2), 1 + 2 * np.tan(np.pi * (u().astype(np.float64) - 0.5)), 1e-3)
close(torch.empty(n, device="chip").geometric_(0.3), np.ceil(np.log(u()) / np.log1p(-0.3)))
close(torch.empty(n, device="chip", dtype=torch.bool).bernoulli_(0.3), u() < 0.3)
close(torch.empty(n, device="chip", dtype=torch.int64).bernoulli_(0.3), u() < 0.3)
for dtype in (torch.float16, torch.bfloat16):
    close(torch.rand(n, device="chip", dtype=dtype), torch.from_numpy(u()).to(dtype).double().numpy() % 1)
z, which = doubles(n, seed, at(n, 2))
close(torch.rand(n, device="chip", dtype=torch.float64), chosen(z, which), 1e-15)
z, which = doubles(n, seed, at(n, 2))
normals = np.sqrt(-2 * np.log(z[:, 0])) * np.where(which == 0, np.sin(2 * np.pi * z[:, 1]), np.cos(2 * np.pi * z[:, 1]))
close(torch.randn(n, device="chip", dtype=torch.float64), normals, 1e-12)

def integers(low, high):
    w, which = words(n, seed, at(n))
    return chosen(w, which) % np.uint64(high - low) + np.int64(low)

close(torch.randint(-5, 100, (n,), device="chip"), integers(-5, 100).astype(np.int64))
close(torch.randint(7, (n,), device="chip", dtype=torch.uint8), integers(0, 7).astype(np.int64))
w, which = words(n, seed, at(n, 2), per_call=2)
pairs = chosen(w[:, [0, 2]] << np.uint64(32) | w[:, [1, 3]], which)
whole = torch.from_numpy((pairs % np.uint64(2**40)).astype(np.int64))
assert torch.equal(torch.randint(2**40, (n,), device="chip").cpu(), whole)
w, which = words(n, seed, at(n, 2), per_call=2)
pairs = chosen(w[:, [0, 2]] << np.uint64(32) | w[:, [1, 3]], which)
whole = torch.from_numpy((pairs % np.uint64(2**63)).astype(np.int64))
assert torch.equal(torch.empty(n, device="chip", dtype=torch.int64).random_().cpu(), whole)

p = torch.linspace(0, 1, n)
offset, before = offset + 12, offset
close(p.to("chip").bernoulli(), uniform(n, seed, before, width=4, threads=-(-n // 4)) <= p.numpy())

for dtype, width in ((torch.float32, 4), (torch.float16, 8), (torch.float64, 2)):
    for n in (1000, 1002, 1001):
        while n % width:
            width //= 2
        x = torch.linspace(-1, 1, n).to(dtype)
        kept = uniform(n, seed, at(n), width=width) < np.float32(0.75)
        expected = (x.double() / 0.75).to(dtype).double().numpy() * kept
        close(torch.nn.functional.dropout(x.to("chip"), 0.25), expected, 1e-3)
assert on_device(), torch.ops.bringup.driver_ledger()
"""
    run(python, opencl, program)


def test_random_numbers_fill_strided_memory_in_its_order(python: Run, opencl: str) -> None:
    program = """
torch.manual_seed(3)
columns = torch.empty(40, 30, device="chip").t().uniform_()
assert np.allclose(columns.cpu().t().flatten(), uniform(1200, 3, 0), atol=1e-6)
gaps = torch.zeros(50, 2, device="chip")
gaps[:, 0].uniform_()
assert np.allclose(gaps.cpu()[:, 0], uniform(50, 3, 4), atol=1e-6)
assert (gaps.cpu()[:, 1] == 0).all()
x = torch.ones(40, 32, device="chip").t()
dropped = torch.nn.functional.dropout(x, 0.5)
assert np.array_equal(dropped.cpu().t().flatten() > 0, uniform(1280, 3, 8, width=4) < 0.5)
"""
    run(python, opencl, program)


def test_state_of_the_generator_has_the_offset(python: Run, opencl: str) -> None:
    program = """
from torch.utils.checkpoint import checkpoint
torch.manual_seed(5)
torch.rand(3, device="chip")
state = torch.chip.get_rng_state()
a = torch.rand(3, device="chip")
torch.chip.set_rng_state(state)
assert torch.equal(a.cpu(), torch.rand(3, device="chip").cpu())
own = torch.Generator("chip")
own.set_state(state)
assert torch.equal(a.cpu(), torch.rand(3, device="chip", generator=own).cpu())

torch.manual_seed(5)
x = torch.ones(64, device="chip", requires_grad=True)
torch.rand(3, device="chip")
results = []
for through in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
    torch.manual_seed(5)
    y = through(lambda x: torch.nn.functional.dropout(x * 2, 0.5), x)
    results.append((y.detach().cpu(), torch.autograd.grad(y.sum(), x)[0].cpu()))
assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
assert torch.equal(results[0][0], results[0][1])

graph = torch.chip.CUDAGraph()
with torch.chip.graph(graph):
    captured = torch.rand(7, device="chip")
torch.manual_seed(9)
for offset in (0, 4, 8):  # each replay draws further numbers
    graph.replay()
    assert np.allclose(captured.cpu(), uniform(7, 9, offset) % 1, atol=1e-6)
"""
    run(python, opencl, program)


def test_arguments_of_distributions_are_checked(python: Run, opencl: str) -> None:
    program = """
for draw in (lambda x: x.normal_(0, -1), lambda x: x.uniform_(2, 1), lambda x: x.bernoulli_(1.5),
             lambda x: x.exponential_(-1), lambda x: x.geometric_(0.0), lambda x: x.random_(3, 3),
             lambda x: torch.nn.functional.dropout(x, 1.5)):
    try:
        draw(torch.empty(4, device="chip"))
        torch.chip.synchronize()
    except (RuntimeError, ValueError):
        continue
    raise AssertionError(draw)
"""
    run(python, opencl, program)
