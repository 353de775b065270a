"""Record the programs and operators that were measured on an H100, for `bringup validate --data FOLDER`.

    python benchmarks/record_measured.py FOLDER [recorded.json.gz [PART]]

FOLDER holds programs.py and ops.py, which define them (set h100_bringup); they are executed. Needs torchvision and the
measured release of transformers, 5.17. Nothing is computed: 97 programs, 1,394 operators and 60 host calls take a few
minutes, and the 15 programs that torch.compile compiles a minute each. PART is program, compiled, operator or host:
only these are recorded, the others stay as they are in the table.
"""

from __future__ import annotations

import gc
import gzip
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import bringup
from bringup.validation.recorded import TABLE, pack

CHIP = "h100-sxm"


def part_of(name: str) -> str:
    """Return the part of the table that has a recording."""
    return "compiled" if "/compile=" in name else name.split("/")[0]


class Table:
    """The recordings so far, and their distinct signatures."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.recordings: dict[str, Any] = {}

    def keep(self, path: Path, part: str) -> None:
        """Copy the recordings of other parts from a table."""
        table = json.loads(gzip.decompress(path.read_bytes()))
        texts = [json.dumps(data, sort_keys=True) for data in table["signatures"]]
        for name, item in table["recordings"].items():
            if part_of(name) != part:
                self._renumber(item["columns"], texts)
                self.recordings[name] = item

    def _renumber(self, columns: dict[str, Any], texts: list[str]) -> None:
        """Replace the numbers of signatures by those of this table."""
        codes = columns["signature"]
        numbers = [
            self.numbers.setdefault(texts[code], len(self.numbers)) if code >= 0 else -1
            for code in ([codes] if isinstance(codes, int) else codes)
        ]
        columns["signature"] = numbers[0] if isinstance(codes, int) else numbers

    def add(self, name: str, call: Callable[[], Any], *, warm_ups: int, reset: Callable[[], Any] | None = None) -> None:
        """Record one call after others have warmed it up."""
        for _ in range(warm_ups):
            call()
        torch.chip.synchronize()
        torch.chip.reset_peak_memory_stats()
        if reset is not None:  # a cache of keys and values grows in every step
            reset()
            call()
        torch.chip.synchronize()
        with bringup.record() as trace:
            call()
            torch.chip.synchronize()
            bringup.step()
        packed = pack(trace)
        self._renumber(packed, [json.dumps(data, sort_keys=True) for data in trace.signature_data])
        for _ in range(2):  # the allocator's memory is steady after three calls
            call()
        self.recordings[name] = {
            "columns": packed,
            "peak_allocated": torch.chip.max_memory_allocated(),
            "peak_reserved": torch.chip.max_memory_reserved(),
        }

    def write(self, path: Path) -> None:
        """Write the table; equal recordings give equal bytes."""
        signatures = [json.loads(text) for text in self.numbers]
        text = json.dumps(
            {"chip": CHIP, "signatures": signatures, "recordings": self.recordings}, separators=(",", ":")
        )
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def two_threads() -> None:
    """Launch products from this thread and autograd's, whose workspaces the measured process held, too."""
    weight = torch.zeros(16, 16, device="chip", requires_grad=True)
    F.linear(weight, weight, weight[0]).sum().backward()


def clean() -> None:
    """Free what the last program left."""
    gc.collect()
    torch.chip.empty_cache()


def record_programs(configurations: list[dict[str, Any]], programs: Any, table: Table) -> None:
    """Record programs; compiled ones are called more often before, since graphs are recorded in their third call."""
    for config in configurations:
        step = None
        clean()
        torch._dynamo.reset()
        with bringup.dry():
            step = programs.build(config, "chip")
            warm_ups = 5 if config["compile"] else 3
            table.add(f"program/{config['id']}", step, warm_ups=warm_ups, reset=getattr(step, "reset", None))
        print(config["id"], flush=True)


def record_operators(ops: Any, table: Table) -> None:
    """Record every operator."""
    for row in ops.ROWS:
        clean()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = row["dtype"] == "tf32"
        call = None
        try:
            with bringup.dry():
                call = row["make"](ops.R("chip", row["dtype"]))
                table.add(f"operator/{row['id']}", call, warm_ups=2)
        except RuntimeError as error:  # such as a size that depends on data
            print(f"{row['id']}: {error}", flush=True)
    print(len(ops.ROWS), "operators", flush=True)


def record_host(table: Table) -> None:
    """Record the calls whose issue time was measured: operators on 16 x 16 elements, and optimizers."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with bringup.dry(), torch.device("chip"):
        a, b, c, v = torch.randn(16, 16), torch.randn(16, 16), torch.zeros(16, 16), torch.randn(16)
        half, index, table_of = a.bfloat16(), torch.arange(16), torch.randn(100, 16)
        image, kernel, q = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.randn(1, 2, 16, 16)
        columns, mask, q_half = index.unsqueeze(1).expand(16, 16).contiguous(), a > 0, q.bfloat16()
        calls: dict[str, Callable[[], Any]] = {
            "add": lambda: a + b,
            "add_": lambda: c.add_(b),
            "mul": lambda: a * b,
            "add_scalar": lambda: a + 1,
            "div": lambda: a / b,
            "relu": lambda: F.relu(a),
            "gelu": lambda: F.gelu(a),
            "exp": lambda: torch.exp(a),
            "neg": lambda: -a,
            "where": lambda: torch.where(mask, a, b),
            "cast": lambda: a.bfloat16(),
            "mm": lambda: a @ b,
            "mm_bf16": lambda: half @ half,
            "addmm": lambda: torch.addmm(v, a, b),
            "linear": lambda: F.linear(a, b, v),
            "bmm": lambda: torch.bmm(q[0], q[0]),
            "matmul4d": lambda: q @ q,
            "sum": lambda: a.sum(),
            "sum_dim": lambda: a.sum(-1),
            "mean": lambda: a.mean(),
            "max_dim": lambda: a.max(-1),
            "argmax": lambda: a.argmax(-1),
            "softmax": lambda: a.softmax(-1),
            "layer_norm": lambda: F.layer_norm(a, (16,), v, v),
            "rms_norm": lambda: F.rms_norm(a, (16,), v),
            "embedding": lambda: F.embedding(index, table_of),
            "index_select": lambda: a.index_select(0, index),
            "getitem_tensor": lambda: a[index],
            "gather": lambda: a.gather(0, columns),
            "index_add_": lambda: c.index_add_(0, index, a),
            "scatter_add_": lambda: c.scatter_add_(0, columns, a),
            "cat": lambda: torch.cat([a, b]),
            "stack": lambda: torch.stack([a, b]),
            "clone": lambda: a.clone(),
            "t_contiguous": lambda: a.t().contiguous(),
            "copy_": lambda: c.copy_(a),
            "zeros": lambda: torch.zeros(16, 16),
            "zero_": lambda: c.zero_(),
            "fill_": lambda: c.fill_(1.0),
            "arange": lambda: torch.arange(16),
            "randn": lambda: torch.randn(16, 16),
            "dropout": lambda: F.dropout(a, 0.1, True),
            "conv2d": lambda: F.conv2d(image, kernel),
            "max_pool2d": lambda: F.max_pool2d(image, 2),
            "sdpa_fp32": lambda: F.scaled_dot_product_attention(q, q, q),
            "sdpa_bf16": lambda: F.scaled_dot_product_attention(q_half, q_half, q_half),
            "cross_entropy": lambda: F.cross_entropy(a, index),
            "sort": lambda: v.sort(),
            "topk": lambda: v.topk(4),
            "cumsum": lambda: a.cumsum(0),
        }
        with torch.no_grad():
            for name, call in calls.items():
                table.add(f"host/tiny/{name}", call, warm_ups=1)
        for name, make in {
            "sgd": lambda p: torch.optim.SGD(p, 1e-3),
            "sgd_momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
            "adamw": torch.optim.AdamW,
            "adamw_fused": lambda p: torch.optim.AdamW(p, fused=True),
            "adamw_loop": lambda p: torch.optim.AdamW(p, foreach=False),
        }.items():
            for count in (10, 148):
                parameters = [torch.nn.Parameter(torch.randn(16, 16)) for _ in range(count)]
                for parameter in parameters:
                    parameter.grad = torch.randn_like(parameter)
                table.add(f"host/optimizer/{name}/{count}", make(parameters).step, warm_ups=2)


def main() -> None:
    warnings.simplefilter("ignore")
    folder, out = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else TABLE
    part = sys.argv[3] if len(sys.argv) > 3 else ""
    sys.path.insert(0, str(folder))
    for name in ("nms", "qnms"):  # torchvision's meta kernels are for operators of its library, which may be missing
        try:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # the library is there
            break
    programs, ops = importlib.import_module("programs"), importlib.import_module("ops")
    bringup.use(CHIP, past_capacity=True)
    table = Table()
    if part:
        table.keep(out, part)
    with bringup.dry():
        two_threads()
    if part in ("", "program"):
        record_programs(programs.configurations(), programs, table)
    if part in ("", "compiled"):
        record_programs(programs.compiled_configurations(), programs, table)
    if part in ("", "operator"):
        record_operators(ops, table)
    if part in ("", "host"):
        record_host(table)
    table.write(out)
    print(f"{out}: {out.stat().st_size:,} bytes, {len(table.recordings)} recordings, {len(table.numbers)} signatures")


if __name__ == "__main__":
    main()
