"""Programs that say cuda: every use of the name means the chip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
BEGIN = "import bringup\nbringup.redirect_cuda()\nimport torch\nfrom torch import nn\n"

PROGRAMS = {
    "libraries that torch lacks": """
import warnings
warnings.simplefilter("error")
for layer in (nn.LSTM(4, 4, 2), nn.GRU(4, 4), nn.RNN(4, 4, bidirectional=True)):
    layer = layer.cuda()
    layer.flatten_parameters()
    layer(torch.ones(3, 2, 4, device="cuda"))[0].sum().backward()
    assert layer.weight_hh_l0.grad.is_cuda
assert not torch.cuda.nccl.is_available([torch.ones(1, device="cuda")])
""",
    "devices": """
x = torch.randn(4, 4, device="cuda")
assert x.is_cuda and x.device == torch.device("cuda:0") and "device='cuda:0'" in repr(x), x
y = torch.ones(4).cuda()
assert y.to("cuda") is y and y.to(x.device) is y and y.cuda(0) is y and y.to("cuda:0", torch.float32) is y
assert torch.empty_like(y).is_cuda and y.new_zeros(2).is_cuda and y.cpu().device.type == "cpu"
assert torch.tensor([1, 2], device="cuda").is_cuda and torch.arange(3, device=torch.device("cuda", 0)).is_cuda
with torch.device("cuda"):
    assert torch.zeros(2).is_cuda
torch.set_default_device("cuda")
assert torch.zeros(2).is_cuda and torch.get_default_device().type == "cuda"
torch.set_default_device("cpu")
assert torch.accelerator.current_accelerator() == torch.device("cuda")
g = torch.Generator(device="cuda").manual_seed(1)
assert torch.randn(2, device="cuda", generator=g).is_cuda and isinstance(g, torch.Generator)
assert torch.zeros(2).type() == "torch.FloatTensor" and y.type() == "torch.cuda.FloatTensor"
assert torch.zeros(2).type("torch.cuda.HalfTensor").dtype == torch.half
assert torch.zeros(2).type(torch.cuda.HalfTensor).is_cuda and y.type(torch.FloatTensor).device.type == "cpu"
a = torch.zeros(2, dtype=torch.float64).numpy()
assert torch.cuda.FloatTensor(a).dtype == torch.float and torch.cuda.FloatTensor(a).is_cuda
t = torch.cuda.FloatTensor(2, 3)
assert isinstance(t, torch.cuda.FloatTensor) and not isinstance(t, torch.cuda.HalfTensor)
try:
    torch.zeros(1, device="cuda:3")
except RuntimeError as error:
    assert "does not exist" in str(error)
else:
    raise AssertionError
""",
    "module": """
m = nn.Linear(4, 4).cuda()
assert m.weight.is_cuda and nn.Linear(4, 4, device="cuda").weight.is_cuda and nn.Linear(4, 4).to("cuda:0").bias.is_cuda
x = torch.randn(2, 4, device="cuda")
assert torch.nn.DataParallel(m)(x).is_cuda and torch.jit.script(nn.Linear(4, 4)).to("cuda")(x).is_cuda
assert nn.LazyLinear(3).to("cuda")(x).is_cuda and nn.LazyConv1d(3, 1).cuda()(x[:, :, None]).is_cuda
import copy
assert copy.deepcopy(m).weight.is_cuda
from torch.utils.checkpoint import checkpoint
x.requires_grad_()
checkpoint(lambda x: nn.functional.dropout(m(x)), x, use_reentrant=False).sum().backward()
assert x.grad.is_cuda
""",
    "functions of torch.cuda": """
c = torch.cuda
assert c.is_available() and c.device_count() == 1 and c.current_device() == 0
p = c.get_device_properties("cuda:0")
assert p.name == "a100-sxm-80" and p.multi_processor_count == 108 and p.total_memory == int(79.15 * 2**30)
assert c.get_device_capability() == (8, 0) == (p.major, p.minor) and c.is_bf16_supported()
assert c.get_device_name(0).startswith("a100-sxm-80")
x = torch.ones(1024, device="cuda")
assert c.is_initialized()
assert c.memory_allocated() >= 4096 and c.max_memory_allocated(0) >= 4096 and c.mem_get_info()[1] == p.total_memory
c.reset_peak_memory_stats(), c.empty_cache(), c.manual_seed_all(1), c.set_device("cuda:0"), c.ipc_collect()
assert "Allocated" in c.memory_summary() and c.memory.memory_allocated() == c.memory_allocated()
s = c.Stream()
with c.stream(s):
    y = x * 2
    assert c.current_stream() == s
c.current_stream().wait_stream(s)
a, b = c.Event(enable_timing=True), c.Event(enable_timing=True)
with bringup.record():
    a.record(), (y + x), b.record()
    c.synchronize()
    assert a.elapsed_time(b) > 0
state = c.get_rng_state()
assert torch.equal(torch.randn(2, device="cuda"), (c.set_rng_state(state), torch.randn(2, device="cuda"))[1])
with c.nvtx.range("part"):
    c.nvtx.range_push("inner"), c.nvtx.range_pop()
assert not c.is_current_stream_capturing()
kinds = torch.profiler.ProfilerActivity
with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]):
    x + 1
    c.synchronize()
""",
    "what is not there says so": """
kernel = "template <typename T> T twice(T x) { return x + x; }"
jitted = torch.cuda.jiterator._create_jit_fn(kernel)  # as torch's own tests do when they are imported
assert torch.version.cuda
missing = {name: getattr(torch.cuda, name) for name in ("cudart", "utilization", "MemPool")}
for name, call in {**missing, "jiterator": lambda: jitted(torch.ones(3, device="cuda"))}.items():
    try:
        call()
    except bringup.BringupError as error:
        assert name in str(error), error
    else:
        raise AssertionError(name)
""",
    "mixed precision": """
m = nn.Linear(4, 4).cuda()
x = torch.randn(2, 4, device="cuda")
with torch.autocast("cuda", torch.bfloat16):
    assert m(x).dtype == torch.bfloat16 and torch.is_autocast_enabled() and torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("cuda") == torch.bfloat16 == torch.get_autocast_gpu_dtype()
with torch.amp.autocast(device_type="cuda"):
    assert m(x).dtype == torch.float16
optimizer, scaler = torch.optim.AdamW(m.parameters(), fused=True), torch.amp.GradScaler("cuda")
before = m.weight.detach().clone()
scaler.scale(m(x).sum()).backward()
scaler.unscale_(optimizer)
nn.utils.clip_grad_norm_(m.parameters(), 1.0)
scaler.step(optimizer), scaler.update()
assert scaler.get_scale() == 65536 and not torch.equal(before, m.weight)

class Square(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x
    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]

with torch.autocast("cuda"):
    assert Square.apply(x.half().requires_grad_()).dtype == torch.float32
""",
    "files": """
import io, zipfile
m, file = nn.Linear(4, 4).cuda(), io.BytesIO()
torch.save(m.state_dict(), file)
assert b"cuda:0" in zipfile.ZipFile(file).read("archive/data.pkl")  # for machines that have it
for where, kind in ((None, "cuda"), ("cuda", "cuda"), (torch.device("cuda:0"), "cuda"), ("cpu", "cpu")):
    file.seek(0)
    assert torch.load(file, map_location=where)["weight"].device.type == kind, where
""",
    "loader": """
loader = torch.utils.data.DataLoader(torch.arange(8.0), batch_size=4, pin_memory=True, num_workers=1)
for batch in loader:
    assert batch.is_pinned() and batch.to("cuda", non_blocking=True).is_cuda
""",
    "compiled": """
import warnings
warnings.simplefilter("error", UserWarning)

@torch.compile
def function(x):
    return x.to("cuda").relu() + torch.zeros(4, device="cuda") + torch.ones(4, 4).cuda()

x = torch.randn(4, 4, device="cuda")
assert torch.allclose(function(x).cpu(), x.cpu().relu() + 1)
from bringup.compile.lines import breaks_since
assert not breaks_since(0), breaks_since(0)
""",
    "compiled to a graph": """
model = nn.Sequential(nn.Linear(8, 8), nn.GELU()).cuda().eval()
compiled = torch.compile(model, mode="reduce-overhead")
x = torch.randn(4, 8, device="cuda")
with torch.no_grad():
    for _ in range(4):
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
""",
    "compiled with views": """
buffer = torch.zeros(16, dtype=torch.long, device="cuda")
model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2)).cuda()
for backend in ("eager", "inductor"):
    torch.compiler.reset()
    compiled = torch.compile(model, dynamic=False, backend=backend)
    with torch.no_grad():
        assert torch.allclose(compiled(buffer[:8].view(2, 4)), model(buffer[:8].view(2, 4)))
    assert compiled(buffer[4:8]).shape == (4, 2)
""",
    "scripted": """
block = nn.MultiheadAttention(8, 2, batch_first=True).cuda().eval()
x = torch.ones(3, 1, 8, device="cuda")
assert torch.allclose(torch.jit.script(block)(x, x, x)[0], block(x, x, x)[0])
""",
    "shared memory": """
model = nn.Linear(4, 4).cuda()
model.share_memory()
assert model.weight.is_shared() and model(torch.ones(1, 4, device="cuda")).is_cuda
from multiprocessing.reduction import ForkingPickler
try:
    ForkingPickler.dumps(model.weight)
except bringup.BringupError as error:
    assert "cannot be sent to another process" in str(error)
else:
    raise AssertionError
""",
    "warnings and errors": """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("error")
    with torch.autocast("cuda", torch.float32):  # CUDA takes every dtype
        assert torch.is_autocast_enabled("cuda")
try:
    torch.ones(2, device="cuda").numpy()
except TypeError as error:
    assert "cuda:0" in str(error) and "chip" not in str(error)
else:
    raise AssertionError
""",
    "deterministic algorithms": """
from torch.nn import functional as F
x, where = torch.rand(1, 2, 4, 4, device="cuda", requires_grad=True), torch.tensor([0, 0], device="cuda")
labels = torch.zeros(1, 4, 4, dtype=torch.long, device="cuda")
NONDETERMINISTIC = {
    "_histc_cuda with floating point input": lambda: torch.histc(torch.rand(5, device="cuda"), 3),
    "median CUDA with indices output": lambda: x.median(0),
    "upsample_bicubic2d_backward_out_cuda": lambda: torch._C._nn.upsample_bicubic2d(x, (8, 8), False).sum().backward(),
    "adaptive_avg_pool2d_backward_cuda": lambda: F.adaptive_avg_pool2d(x, 2).sum().backward(),
    "reflection_pad2d_backward_out_cuda": lambda: F.pad(x, (1, 1, 1, 1), mode="reflect").sum().backward(),
    "nll_loss2d_forward_out_cuda_template": lambda: F.nll_loss(x, labels),
    "_bincount_cuda": lambda: torch.bincount(where, torch.ones(2, device="cuda")),
    "scatter_reduce_cuda": lambda: torch.zeros(5, device="cuda").scatter_reduce(0, where, torch.ones(2).cuda(), "prod"),
}
DETERMINISTIC = [
    lambda: torch.histc(where, 3),
    lambda: x.median(),
    lambda: x.cumsum(0),
    lambda: F.interpolate(x, scale_factor=2, mode="bilinear").sum().backward(),  # torch then takes another algorithm
    lambda: F.pad(x, (1, 1, 1, 1), mode="replicate").sum().backward(),
    lambda: F.conv2d(x, torch.rand(2, 2, 3, 3, device="cuda")).sum().backward(),
    lambda: F.nll_loss(x, labels, reduction="none"),
    lambda: torch.bincount(where),
    lambda: torch.zeros(5, device="cuda").scatter_add(0, where, torch.ones(2, device="cuda")),
    lambda: torch.zeros(5, device="cuda").scatter_reduce(0, where, torch.ones(2, device="cuda"), "sum"),
    lambda: torch.zeros(5, device="cuda").index_add(0, where, torch.ones(2, device="cuda")),
]
import warnings
for call in NONDETERMINISTIC.values():
    call()
torch.use_deterministic_algorithms(True)
for kernel, call in NONDETERMINISTIC.items():
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith(f"{kernel} does not have a deterministic implementation"), error
    else:
        raise AssertionError(kernel)
torch.use_deterministic_algorithms(True, warn_only=True)
for kernel, call in NONDETERMINISTIC.items():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    assert kernel in str(seen[0].message), kernel
torch.use_deterministic_algorithms(True)
for call in DETERMINISTIC:
    call()
torch.histc(torch.rand(5), 3)  # on the CPU
""",
    "synchronising operations": """
import warnings
from torch.nn import functional as F
x, where = torch.rand(4, device="cuda"), torch.tensor([0, 1], device="cuda")
pinned, repeats = torch.ones(4).pin_memory(), torch.full((1,), 2, device="cuda")
WAIT = [
    lambda: x[0].item(), lambda: x.cpu(), lambda: torch.ones(3).to("cuda"), lambda: torch.tensor(3, device="cuda"),
    lambda: x.nonzero(), lambda: x[x > 0], lambda: x[torch.tensor([0, 1])], lambda: F.one_hot(where),
    lambda: torch.repeat_interleave(x, repeats), lambda: torch.cuda.current_stream().synchronize(),
]
DO_NOT = [
    lambda: x + 1, lambda: pinned.to("cuda", non_blocking=True), lambda: x[where], lambda: F.one_hot(where, 4),
    lambda: x[torch.tensor([True] * 4)], lambda: torch.repeat_interleave(x, repeats, output_size=8),
    lambda: torch.full((), 3, device="cuda"), lambda: torch.cuda.synchronize(), lambda: torch.zeros(2, device="cuda"),
]
def warned(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(item.message)[:38] for item in seen]
assert torch.cuda.get_sync_debug_mode() == 0 and not any(warned(call) for call in WAIT)
torch.cuda.set_sync_debug_mode("warn")
assert torch.cuda.get_sync_debug_mode() == 1
for call in WAIT:
    assert set(warned(call)) == {"called a synchronizing CUDA operation "}, warned(call)
assert not any(warned(call) for call in DO_NOT), [warned(call) for call in DO_NOT]
torch.cuda.set_sync_debug_mode("error")
for call in WAIT:
    try:
        call()
    except RuntimeError as error:
        assert "called a synchronizing CUDA operation" in str(error)
    else:
        raise AssertionError
for call in DO_NOT:
    call()
torch.cuda.set_sync_debug_mode(0)
try:
    torch.cuda.set_sync_debug_mode("sometimes")
except RuntimeError as error:
    assert "sometimes" in str(error)
else:
    raise AssertionError
""",
    "tensors on two devices": """
def error_of(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError
where = torch.tensor([0, 2], device="cuda")
assert "different from other tensors on cuda:0" in error_of(lambda: nn.Linear(4, 4)(torch.ones(2, 4, device="cuda")))
assert "Expected a 'cuda' device type" in error_of(lambda: torch.rand(2, device="cuda", generator=torch.Generator()))
assert "indices should be either on cpu or on the same device" in error_of(lambda: torch.ones(3)[where])
""",
    "history of the allocator": """
import pickle
from torch.cuda import _memory_viz, memory
memory._record_memory_history(max_entries=100, stacks="python")
memory._set_memory_metadata("first")
def make():
    return torch.empty(1 << 20, device="cuda")
x = make()
observed = []
torch._C._cuda_attach_out_of_memory_observer(lambda *numbers: observed.append(numbers))
try:
    torch.empty(1 << 44, device="cuda")
except torch.cuda.OutOfMemoryError:
    pass
total = torch.cuda.get_device_properties(0).total_memory
((device, wanted, there, free),) = observed
assert (device, wanted, there) == (0, 1 << 46, total) and free < total - torch.cuda.memory_reserved(), observed
memory._dump_snapshot("memory.pickle")
with open("memory.pickle", "rb") as file:
    data = pickle.load(file)
assert [event["action"] for event in data["device_traces"][0]] == ["segment_alloc", "alloc", "oom", "snapshot"]
assert data["device_traces"][0][1]["frames"][0]["name"] == "make"
segment, = data["segments"]
assert (segment["total_size"], segment["allocated_size"], segment["segment_type"]) == (20 << 20, 4 << 20, "large")
assert segment["blocks"][0]["user_metadata"] == "first" and segment["blocks"][1]["state"] == "inactive"
for page in (_memory_viz.trace_plot, _memory_viz.segment_plot, _memory_viz.segsum, _memory_viz.trace):
    assert page(data)
assert len(torch.cuda.memory_snapshot()) == 1
if hasattr(memory, "_allocation_traceback"):  # since torch 2.12
    assert memory._allocation_traceback(x.data_ptr())[0]["name"] == "make"
memory._record_memory_history(enabled=None)
make()
actions = [event["action"] for event in memory._snapshot()["device_traces"][0]]
assert [action for action in actions if action != "snapshot"] == ["segment_alloc", "alloc", "oom"]
""",
    "a group of one": """
import os
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import socket
free = socket.socket()
free.bind(("127.0.0.1", 0))
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
os.environ["MASTER_PORT"] = str(free.getsockname()[1])
free.close()
dist.init_process_group("nccl", device_id=torch.device("cuda:0"))
assert dist.is_nccl_available() and dist.get_backend() == "nccl"
x = torch.ones(4, device="cuda")
dist.all_reduce(x), dist.barrier(), dist.broadcast(x, 0, group=dist.new_group([0]))
assert x.tolist() == [1.0] * 4
flat = torch.empty(6, device="cuda")
dist.all_gather_into_tensor(flat, torch.ones(2, 3, device="cuda"))  # NCCL compares numbers of elements
assert flat.tolist() == [1.0] * 6
try:
    dist.all_reduce(torch.ones(2))
except RuntimeError as error:
    assert "cpu" in str(error)  # as with NCCL
else:
    raise AssertionError
with bringup.record() as trace:
    for wrap in (
        lambda model: nn.parallel.DistributedDataParallel(model.cuda(), device_ids=[0]),
        lambda model: fully_shard(model.cuda()),
        lambda model: FullyShardedDataParallel(model, device_id=torch.cuda.current_device()),
    ):
        model = wrap(nn.Linear(4, 4))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4, device="cuda")).sum().backward()
        optimizer.step()
dist.destroy_process_group()
assert trace.launches > 0
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_cuda_means_the_chip(python: Run, name: str) -> None:
    done = python(BEGIN + PROGRAMS[name] + "\nprint('done')\n", BRINGUP_CHIP="a100-sxm-80")
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


def test_nothing_is_patched_without_it(python: Run) -> None:
    done = python(
        """
import torch
names = ("device", "is_cuda", "to", "cuda", "type")
def now():
    return [getattr(torch.Tensor, name) for name in names] + [torch.cuda.is_available, torch.Generator]
before, available = now(), torch.cuda.is_available()
torch.ones(2, device="chip")
assert before == now()
assert torch.cuda.is_available() == available
import sys
assert "bringup.device.cuda" not in sys.modules
print("done")
"""
    )
    assert done.stdout == "done\n", done.stderr


def test_report_says_what_was_redirected(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import torch
torch.backends.cuda.matmul.allow_tf32 = True
if torch.cuda.is_available():
    x = torch.randn(8, 8, device="cuda") @ torch.randn(8, 8).cuda()
"""
    )
    done = bringup_run("--cuda", "program.py")
    assert "cuda meant the chip:" in done.stdout, done.stderr
    found = json.loads((tmp_path / "bringup-program" / "summary.json").read_text())["redirected"]
    assert found["Tensor.cuda"] == 1 and found["torch.cuda.is_available"] == 1 and found['device="cuda"'] == 1
    assert found["backends.cuda.matmul.allow_tf32 = True"] == 1
    assert "backends.cuda.matmul.allow_tf32" in (tmp_path / "bringup-program" / "report.html").read_text()
    done = bringup_run("program.py")
    assert "use --cuda if the program uses the device cuda" in done.stderr


def test_new_names_of_tf32_leave_a_report(bringup_run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import torch
torch.backends.cuda.matmul.fp32_precision = "tf32"
x = torch.randn(64, 64, device="cuda")
for _ in range(4):
    x @ x
"""
    )
    done = bringup_run("--cuda", "--chip", "a100-sxm-80", "program.py")
    assert "the tf32 peak" in done.stdout, done.stderr


PRETENDED = """
import os, torch
from bringup.device import load
load.visible_gpus = lambda: 1
{before}
import bringup
bringup.redirect_cuda()
print(repr(os.environ["CUDA_VISIBLE_DEVICES"]), torch.ones(2, device="cuda").device)
"""


def test_gpus_of_the_machine_are_hidden(python: Run) -> None:
    done = python(PRETENDED.format(before=""), BRINGUP_CHIP="edge8")
    assert done.stdout == "'' cuda:0\n", done.stderr


def test_the_cuda_driver_keeps_its_gpu(python: Run) -> None:
    done = python(PRETENDED.format(before=""), BRINGUP_CHIP="edge8", BRINGUP_DRIVER="cuda")
    assert "cuda cannot mean the chip if the driver is cuda" in done.stderr


def test_gpus_that_the_process_uses_already_are_refused(python: Run) -> None:
    program = PRETENDED.format(before="torch.cuda.is_available = lambda: True") + "assert False"
    done = python(program, BRINGUP_CHIP="edge8", CUDA_VISIBLE_DEVICES="0")
    assert "in a process that uses this machine's CUDA device already: call bringup.redirect_cuda()" in done.stderr
