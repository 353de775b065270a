"""Programs that say cuda: every use of the name means the chip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
BEGIN = "import bringup\nbringup.redirect_cuda()\nimport torch\nfrom torch import nn\n"

PROGRAMS = {
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
assert p.name == "a100-sxm-80" and p.multi_processor_count == 108 and p.total_memory == 80 * 2**30
assert c.get_device_capability() == (8, 0) == (p.major, p.minor) and c.is_bf16_supported()
assert c.get_device_name(0).startswith("a100-sxm-80")
x = torch.ones(1024, device="cuda")
assert c.is_initialized()
assert c.memory_allocated() >= 4096 and c.max_memory_allocated(0) >= 4096 and c.mem_get_info()[1] == 80 * 2**30
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
before = now()
torch.ones(2, device="chip")
assert before == now()
assert not torch.cuda.is_available()
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
