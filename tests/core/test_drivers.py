"""The drivers of real devices, as far as this machine has them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import bringup
from bringup import core_build
from bringup.recording.rows import LAUNCH
from tests.conftest import ROOT, built_driver, slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]

IMPORT = f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nimport drivers\n"

# Each operator once in each dtype: results are not compared.
COMPILED = """
import torch
for operator in drivers.OPERATORS.values():
    for dtype in drivers.TOLERANCES:
        drivers._result(operator, "contiguous", dtype, "chip")
for dtype in (*drivers.TOLERANCES, torch.float64):
    x = torch.nn.functional.dropout(torch.rand(8, device="chip", dtype=dtype), 0.1).bernoulli()
    x.normal_().log_normal_().cauchy_().exponential_().geometric_(0.5).bernoulli_(0.5)
    x.random_().random_(10)
torch.randint(-(2**40), 5, (8,), device="chip")
for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    parameter = torch.ones(3, device="chip").requires_grad_()
    parameter.grad = torch.ones(3, device="chip")
    optimizer([parameter], lr=0.1, fused=True).step()
"""


def skip_without_device(done: "subprocess.CompletedProcess[str]") -> None:
    if "there are 0 OpenCL devices" in done.stderr:
        pytest.skip("this machine has no OpenCL device")


def test_cuda_driver_compiles_without_cuda(tmp_path: Path) -> None:
    assert core_build.compile_library(core_build.driver_library("cuda"), tmp_path).exists()


@pytest.mark.slow
def test_kernels_compile_for_an_h100_without_a_gpu(tmp_path: Path, python: Run) -> None:
    library, log = built_driver("ptx", tmp_path), tmp_path / "log"
    libraries = {key: os.environ[key] for key in ("BRINGUP_CUDA_LIBRARIES",) if key in os.environ}
    done = python(IMPORT + COMPILED, timeout=900, BRINGUP_DRIVER=library, PTX_LOG=str(log), **libraries)
    if "libnvrtc is missing" in done.stderr:
        pytest.skip("NVIDIA's run-time compiler is not installed (nvidia-cuda-nvrtc, BRINGUP_CUDA_LIBRARIES)")
    assert done.returncode == 0, done.stderr
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    assert sum(line.startswith("compiled ") for line in lines) > 100
    assert not [line for line in lines if line.startswith("FAILED ")], "\n".join(lines)


def test_cuda_without_an_nvidia_driver_says_so(python: Run) -> None:
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER="cuda")
    if done.returncode == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    assert "the cuda driver says: " in done.stderr.splitlines()[-1]
    assert "is missing" in done.stderr.splitlines()[-1]


def compare(python: Run, driver: str, *arguments: str) -> str:
    program = f"{IMPORT}sys.argv[1:] = {list(arguments)!r}\nsys.exit(drivers.main())\n"
    done = python(program, timeout=900, BRINGUP_DRIVER=driver)
    skip_without_device(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not compile" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_operators_on_opencl_equal_the_cpus(python: Run, opencl: str) -> None:
    assert " 0 wrong" in compare(python, opencl, "operators")


def test_some_operators_on_opencl_equal_the_cpus(python: Run, opencl: str) -> None:
    assert " 0 wrong" in compare(python, opencl, "operators", "where", "softmax", "linear", "scatter")


def test_a_transformer_trains_on_opencl_as_on_the_cpu(python: Run, opencl: str) -> None:
    assert " host 0 " in compare(python, opencl, "losses", "gpt/fused")


@pytest.mark.slow
def test_programs_train_on_opencl_as_on_the_cpu(python: Run, opencl: str) -> None:
    compare(python, opencl, "losses", "mlp", "gpt", "bert", "lstm", "unet", "resnet/slow")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "int64", "bool"])
def test_operators_without_kernels_equal_the_cpus(python: Run, opencl: str, dtype: str) -> None:
    """Every fourth operator of torch's database by copies alone: at most one in a hundred may differ."""
    done = python(
        f"""
import sys, warnings
sys.path.insert(0, {str(ROOT)!r})
warnings.simplefilter("ignore")
import torch
from tests.conformance import opinfo
ops, wrong = opinfo.ops(torch.{dtype})[::4], []
for op in ops:
    try:
        opinfo.check_forward(op, torch.{dtype}, most=2)
    except Exception as error:
        wrong.append((opinfo.full_name(op), str(error)[:200]))
assert len(wrong) <= max(len(ops) // 100, 1), wrong
""",
        timeout=900,
        BRINGUP_DRIVER=opencl,
        BRINGUP_OPENCL_OPERATORS="none",
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


def test_results_of_calls_in_two_steps_do_not_mix(python: Run, opencl: str) -> None:
    """Strided inputs are copied to a workspace of the stream, which the next call uses again."""
    done = python(
        """
import torch
x = torch.arange(8192.0).view(64, 128).to("chip")
side = torch.chip.Stream()
torch.chip.synchronize()
results = []
for i in range(20):
    with torch.chip.stream(side if i % 2 else torch.chip.current_stream()):
        results.append(torch.cumsum((x + i).t(), 0))
torch.chip.synchronize()
expected = torch.arange(8192.0).view(64, 128)
assert all(torch.equal(r.cpu(), torch.cumsum((expected + i).t(), 0)) for i, r in enumerate(results))
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


def test_index_out_of_range_is_raised_though_another_stream_begins(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
table, at = torch.ones(4, 2).to("chip"), torch.tensor([1, 9]).to("chip")
torch.nn.functional.embedding(at, table)
with torch.chip.stream(torch.chip.Stream()):
    torch.ones(1, device="chip")
torch.chip.synchronize()
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert "an index is out of range" in done.stderr.splitlines()[-1]


def test_numbers_beside_tensors_keep_their_precision_on_opencl(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
whole = torch.tensor([0, 1, 2**40 + 1])
assert torch.equal((whole.to("chip") >= 0.5).cpu(), whole >= 0.5)
assert torch.equal((whole.to("chip") == 2**40).cpu(), whole == 2**40)
x = torch.linspace(-3, 3, 50, dtype=torch.float64)
for function in (torch.nn.functional.gelu, torch.nn.functional.elu, lambda t: t + 0.1):
    torch.testing.assert_close(function(x.to("chip")).cpu(), function(x), rtol=1e-14, atol=1e-14)
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_casts_between_all_dtypes_on_opencl_equal_the_cpus(python: Run, opencl: str) -> None:
    done = python(
        """
import json, torch
floating = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
dtypes = [*floating, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
values = torch.tensor([0.0, 1.0, 2.5, 100.3, 1e-3, 65.5])
for source in dtypes:
    x = values.to(source)
    for target in dtypes:
        assert torch.equal(x.to("chip").to(target).cpu(), x.to(target)), (source, target)
halves = torch.tensor([1 + 2**-9, 1 + 3 * 2**-9, float("inf"), -float("inf"), 3.4e38, 1e-40])  # ties go to even
assert torch.equal(halves.to("chip").to(torch.bfloat16).cpu(), halves.to(torch.bfloat16))
assert torch.equal(halves.to("chip").to(torch.float16).cpu(), halves.to(torch.float16))
assert torch.tensor(float("nan")).to("chip").to(torch.bfloat16).cpu().isnan()
assert not json.loads(torch.ops.bringup.driver_ledger())["on_host"]
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


def test_forms_that_driver_check_has_corrected(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
F, x = torch.nn.functional, torch.tensor([[1.0, -float("inf"), -4.0], [2.0, 5.0, 0.5]])
def results(device):
    a = x.to(device)
    kinds = ((2,), x.dtype), ((2,), torch.bool), ((2, 3), x.dtype)
    outs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds]
    torch.mean(a, 1, out=outs[0]), torch.any(a > 1, 1, out=outs[1]), torch.max(a, -a, out=outs[2])
    loss, weight = torch.ops.aten.nll_loss_forward(a[1], torch.tensor(2, device=device), None, 0, -100)
    wide = torch.ops.aten.upsample_linear1d(a[None, 1:], [3], False, 2.5)
    twice, mask = torch.tensor([0, 0], device=device), torch.ones(2, dtype=torch.bool, device=device)
    outs += [mask.index_add(0, twice, mask), mask.scatter_add(0, twice, mask), mask.index_put((twice,), mask, True)]
    outs = [out.byte() if out.dtype == torch.bool else out for out in outs]
    return [t.cpu() for t in (*outs, F.hardswish(a), loss, weight, wide)]
for expected, computed in zip(results("cpu"), results("chip")):
    torch.testing.assert_close(computed, expected, equal_nan=True)
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


def test_index_out_of_range_on_opencl_names_its_line(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
table, at = torch.ones(4, 2).to("chip"), torch.tensor([1, 9]).to("chip")
rows = torch.nn.functional.embedding(at, table)
torch.chip.synchronize()
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    last = done.stderr.splitlines()[-1]
    assert "an index is out of range, in aten::embedding(float32[4, 2], int64[2]) on chip:0" in last
    assert "program.py:4" in last


@pytest.mark.slow
def test_reductions_of_columns_on_opencl_equal_the_cpus(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
torch.manual_seed(0)
wide, deep, cube = torch.randn(300, 20), torch.randn(4000, 3), torch.randn(6, 70, 33)
expanded, empty = torch.randn(1, 20).expand(300, 20), torch.ones(0, 20)
tensors = [wide, deep, cube, wide.t(), cube.transpose(0, 2), wide[::3, ::2], expanded, empty]
for x in tensors:
    for dims in ((0,), (1,), (0, 1), (x.dim() - 1, 0)):
        for f in (torch.sum, torch.mean, torch.linalg.vector_norm, lambda t, dim: torch.any(t > 1, dim)):
            computed, expected = f(x.to("chip"), dim=dims).cpu(), f(x, dim=dims)
            torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-4, equal_nan=True)
        if x.numel():
            torch.testing.assert_close(torch.amax(x.to("chip"), dims).cpu(), torch.amax(x, dims))
            whole = (x * 100).long()
            assert torch.equal(whole.to("chip").sum(dims).cpu(), whole.sum(dims))
            half = x.half()
            torch.testing.assert_close(half.to("chip").sum(dims).cpu(), half.sum(dims), rtol=1e-3, atol=1e-1)
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr


# Of the two passes: each on the device or on the host.
BOTH = ["", "_backward"]
PASSES = [BOTH, BOTH[:1], BOTH[1:], []]


@pytest.mark.parametrize("on_device", [BOTH, *slow(*PASSES[1:])])
def test_attention_with_dropout_draws_the_same_in_both_passes(python: Run, opencl: str, on_device: list[str]) -> None:
    names = [f"aten::_scaled_dot_product_flash_attention{end}" for end in on_device]
    done = python(
        """
import json, torch
torch.manual_seed(0)
p, values = 0.3, torch.eye(40).expand(1, 2, 40, 40)  # so the result is the weights that are kept
inputs = [torch.randn(1, 2, 40, 40), torch.randn(1, 2, 40, 40), values.contiguous()]
ours = [x.to("chip").requires_grad_() for x in inputs]
gradient = torch.randn(1, 2, 40, 40)
result = torch.nn.functional.scaled_dot_product_attention(*ours, dropout_p=p)
result.backward(gradient.to("chip"))
kept = result.detach().cpu() != 0
assert abs(kept.float().mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
q, k, v = theirs = [x.clone().requires_grad_() for x in inputs]
expected = ((q @ k.transpose(-2, -1) / 40**0.5).softmax(-1) * kept / (1 - p)) @ v
expected.backward(gradient)
torch.testing.assert_close(result.cpu(), expected)
for a, b in zip(ours, theirs):
    torch.testing.assert_close(a.grad.cpu(), b.grad)
again = torch.nn.functional.scaled_dot_product_attention(*ours, dropout_p=p)
assert not torch.equal(again != 0, result != 0)
print([op for op in json.loads(torch.ops.bringup.driver_ledger())["on_device"] if "attention" in op])
""",
        BRINGUP_DRIVER=opencl,
        BRINGUP_OPENCL_OPERATORS=",".join(names) or "none",
    )
    skip_without_device(done)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(names))


def run_on_separate_memory(bringup_run: Run, folder: Path, program: str) -> str:
    """Run a program on the driver with separate memory; return what is printed."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    done = bringup_run("--driver", built_driver("separate", folder), "program.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_on_a_driver_shows_the_measured_step(bringup_run: Run, tmp_path: Path) -> None:
    printed = run_on_separate_memory(
        bringup_run,
        tmp_path,
        """
import torch
model = torch.nn.Linear(4, 4).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.ones(4, 4).to("chip")
for _ in range(4):
    optimizer.zero_grad()
    (model(x) * x).sum().backward()
    optimizer.step()
""",
    )
    assert "measured on separate: " in printed
    assert "a step   predicted: " in printed
    assert "on the device 4 launches, on the host " in printed
    assert "(the driver has no kernel for it)" in printed
    columns = bringup.Trace.load(tmp_path / "bringup-program" / "trace.npz").columns
    launches = columns["kind"] == LAUNCH
    assert (columns["measured_ns"][launches] > 0).all() and not columns["measured_ns"][~launches].any()


def test_run_of_inference_on_a_driver_measures_calls_of_the_outermost_module(bringup_run: Run, tmp_path: Path) -> None:
    printed = run_on_separate_memory(
        bringup_run,
        tmp_path,
        """
import torch
model, x = torch.nn.Linear(4, 4).to("chip"), torch.ones(4, 4).to("chip")
with torch.no_grad():
    for _ in range(4):
        model(x).sum().item()
""",
    )
    assert "a step   predicted: " in printed
