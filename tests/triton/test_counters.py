"""What a launch counts is what Triton's interpreter does; its price and the chip's time for tuning."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import bringup
from bringup.kernels import check
from tests.triton.counting import cases, counted

pytest.importorskip("triton", reason="needs bringup[triton]")
import triton
import triton.language as tl

from tests.triton import tutorials


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
        pool.apply(int)
        yield pool
        pool.terminate()


def kernels(trace: bringup.Trace) -> list[dict[str, Any]]:
    """The counters of every launch of a kernel, in order."""
    numbers = trace.columns["signature"][trace.columns["kind"] == 0]
    data = [trace.signature_data[n] for n in numbers if trace.signature_data[n]["op"].startswith("triton::")]
    return [item["args"]["counters"] for item in data]


@pytest.mark.parametrize("name", list(cases(None)))
def test_counters_equal_the_hooked_interpreters(name: str, interpreter: Any) -> None:
    with bringup.record() as trace:
        cases(tutorials)[name]("chip")
    found = kernels(trace)
    try:
        expected = interpreter.apply(counted, (name,))
    except Exception as error:
        if "only 0-dimensional arrays" not in str(error):
            raise
        pytest.skip("the interpreter of this Triton does not know this numpy")
    for key in ("loaded", "stored", "atomics", "special"):
        ours = sum(item[key] for item in found)
        if key == "stored":  # atomics write, too
            ours -= sum(item["atomics"] for item in found) * 4
        assert ours == expected.get(key, 0), key
    flops = sum(2 * m * n * k * count for item in found for m, n, k, _, count in item["products"])
    assert flops == expected.get("flops", 0)


def test_bytes_that_programs_share_are_read_once() -> None:
    a, b = torch.randn(256, 256, device="chip"), torch.randn(256, 256, device="chip")
    with bringup.record() as trace:
        tutorials.matmul(a, b, blocks=(64, 64, 32))
    (found,) = kernels(trace)
    assert found["read_once"] == 2 * 256 * 256 * 4 and found["loaded"] == 4 * found["read_once"]
    assert found["products"] == [[64, 64, 32, "f32", 16 * 8]]


def test_a_kernel_is_one_launch_that_the_chip_runs_and_prices() -> None:
    x = torch.rand(1 << 20, device="chip")
    with bringup.record() as trace:
        tutorials.add(x, x)
    prediction = bringup.price(trace, chip="a100-sxm-80")
    assert not prediction.summary.fallbacks
    read_and_written = 3 * (1 << 20) * 4  # x twice, by two arguments
    assert prediction.summary.device_seconds >= read_and_written / 2.039e12
    assert prediction.summary.device_seconds < 4 * read_and_written / 2.039e12 + 1e-5


def test_dry_run_counts_the_same_and_computes_nothing() -> None:
    x = torch.randn(300, 200, device="chip")
    with bringup.record() as real:
        tutorials.softmax(x)
        tutorials.matmul(x, x.T)
    with bringup.dry(), bringup.record() as dry:
        tutorials.softmax(x)
        tutorials.matmul(x, x.T)
    assert kernels(dry) == kernels(real)


@triton.autotune(
    configs=[triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 1024}), triton.Config({"BLOCK": 64})], key=["n"]
)
@triton.jit
def scaled(x_ptr, out_ptr, runs_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) * 2, mask=mask)
    tl.atomic_add(runs_ptr, 1, mask=tl.program_id(0) == 0)


def test_autotune_runs_each_configuration_once_and_sees_the_chips_time() -> None:
    x, runs = torch.rand(500_000, device="chip"), torch.zeros(1, dtype=torch.int32, device="chip")
    out = torch.empty_like(x)
    with bringup.record() as trace:
        scaled[lambda meta: (triton.cdiv(500_000, meta["BLOCK"]),)](x, out, runs, 500_000)
    assert runs.item() == 4  # three configurations, and the one that the program asked for
    assert len(kernels(trace)) == 1, "trying configurations is not the program's work"
    times = {config.kwargs["BLOCK"]: timing[0] for config, timing in scaled.configs_timings.items()}
    assert 0 < times[64] < times[16] < 1, "tiles of 16 elements do not hide the latency of memory"


def test_do_bench_is_the_chips_time() -> None:
    x = torch.rand(1 << 22, device="chip")
    once, twice = (triton.testing.do_bench(lambda n=n: [tutorials.add(x, x) for _ in range(n)]) for n in (1, 2))
    assert twice == pytest.approx(2 * once, rel=1e-6)
    assert once == triton.testing.do_bench(lambda: tutorials.add(x, x), warmup=1, rep=1)


def test_check_tells_the_error_of_every_output() -> None:
    x = torch.randn(64, 200)
    (error,) = check(tutorials.softmax, lambda x: torch.softmax(x, 1), [x])
    assert error.finite and 0 < error.largest < 1e-6 and error.ulps < 8 and "float32" in str(error)
    (wrong,) = check(tutorials.softmax, lambda x: torch.softmax(x, 1) + (x == x.max()), [x])
    assert wrong.largest == pytest.approx(1) and wrong.where == tuple(int(i) for i in (x == x.max()).nonzero()[0])


def test_check_compares_what_a_kernel_writes_into_its_arguments() -> None:
    def reference(x, y, out, n):
        out.copy_(x + y)

    n = 1000
    x, y, out = torch.randn(n).half(), torch.randn(n).half(), torch.zeros(n).half()
    (error,) = check(tutorials.add_kernel[(1,)], reference, [x, y, out, n], BLOCK=1024)
    assert error.dtype == "float16" and error.ulps <= 0.5
    with pytest.raises(bringup.BringupError, match="the kernel has 0 outputs and the reference 1"):
        check(lambda x: None, lambda x: x, [x])
