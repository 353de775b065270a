"""Reads published measurement sets in their original formats.

There is one reader per format. A reader yields `Measurement`s and leaves out rows that it cannot express (mixtures
of experts, quantised products with scales); `collectives` reads those of several chips. A row that is too short or has
invalid numbers raises an error that names the file and the row.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bringup.errors import BringupError
from bringup.files import read_text
from bringup.machine.files import available_chips
from bringup.pricing.measurements import Measurement
from bringup.text import short
from bringup.validation.collectives import PATTERNS
from bringup.validation.measured import MACHINES

Row = dict[str, str]


class Source:
    """A file that is being read: its path and the current line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0

    def _cells(self) -> Iterator[list[str]]:
        text = read_text(self.path, "measurement file")
        reader = csv.reader(io.StringIO(text, newline=""))
        for number, cells in enumerate(reader):
            self.line = reader.line_num
            if number > MOST_ROWS:
                raise ValueError(f"there are more than {MOST_ROWS:,} rows")
            if cells:
                yield cells

    def table(self) -> Iterator[Row]:
        """Yield the rows below the line with the column names."""
        rows = self._cells()
        names = next(rows, [])
        for cells in rows:
            if len(cells) < len(names):
                raise ValueError(f"{len(cells)} cells for {len(names)} columns")
            yield dict(zip(names, cells, strict=False))

    def lines(self) -> Iterator[list[str]]:
        """Yield the rows of a file without column names."""
        yield from ([cell.strip() for cell in cells] for cells in self._cells())


Reader = Callable[[Source], Iterator[Measurement]]
MOST_ROWS = 1_000_000  # in one file and in all of them; the sets of seven publishers together have 67,000


@dataclass(frozen=True)
class MeasurementSet:
    """The rows of one or more publishers.

    Attributes:
        rows: the measurements.
        unread: files without a reader or without a chip file.
        skipped: a sentence for every file that is not in the format of its publisher.
    """

    rows: tuple[Measurement, ...]
    unread: tuple[str, ...]
    skipped: tuple[str, ...] = ()


_readers: list[tuple[str, str, Reader]] = []


def reader(publisher: str, pattern: str) -> Callable[[Reader], Reader]:
    """Register a reader for files that match a pattern below a folder with the publisher's name."""

    def register(function: Reader) -> Reader:
        _readers.append((publisher, pattern, function))
        return function

    return register


def read_folder(folder: Path, *, may_be_empty: bool = False) -> MeasurementSet:
    """Read every known file below a folder. A file that is not in its publisher's format is skipped.

    Args:
        folder: the folder.
        may_be_empty: return an empty set if nothing can be read.

    Raises:
        BringupError: the folder is missing, or nothing below it can be read.
    """
    if not os.path.isdir(folder):
        raise BringupError(f"{folder} is not a directory: give one with measurement sets, see docs/validation.md")
    chips = set(available_chips())
    rows: list[Measurement] = []
    skipped: list[str] = []
    unread = {path.relative_to(folder) for path in folder.rglob("*.csv") if path.resolve().parent.name not in MACHINES}
    unread -= {path.relative_to(folder) for pattern in PATTERNS for path in folder.rglob(pattern)}
    for publisher, pattern, function in _readers:
        for path in sorted(folder.rglob(f"{publisher}/{pattern}")):
            try:
                file_rows = _read(path, publisher, function)
            except BringupError as error:
                skipped.append(f"{error}; it is skipped")
                unread.discard(path.relative_to(folder))
                continue
            rows += (row for row in file_rows if row.chip in chips)
            if len(rows) > MOST_ROWS:
                raise BringupError(f"{folder} has more than {MOST_ROWS:,} measurements: give a folder with fewer sets")
            if any(row.chip in chips for row in file_rows):
                unread.discard(path.relative_to(folder))
    if not rows and not may_be_empty:
        if skipped:
            raise BringupError(skipped[0])
        publishers = ", ".join(sorted({publisher for publisher, _, _ in _readers}))
        raise BringupError(f"{folder} has no measurement set that bringup can read: it reads those of {publishers}")
    return MeasurementSet(tuple(rows), tuple(sorted(map(str, unread))), tuple(skipped))


def _read(path: Path, publisher: str, function: Reader) -> list[Measurement]:
    source = Source(path)
    try:
        return list(function(source))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
        at = f" at line {source.line}" if source.line else ""
        raise BringupError(f"{path} is not in the format of {publisher}{at}: {short(str(error), 200)}") from error


def _above_floor(rows: Iterable[Measurement]) -> Iterator[Measurement]:
    """Set the floor of rows timed by a host's clock: the smallest time of the chip and operator.

    The row with that time is left out.
    """
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for row in rows:
        groups[row.chip, row.op].append(row)
    for group in groups.values():
        lowest = min(group, key=lambda row: row.seconds)
        yield from (replace(row, floor=lowest.seconds) for row in group if row is not lowest)


AICONFIGURATOR = "github.com/ai-dynamo/aiconfigurator at 095f58a (device time)"
_AICONFIGURATOR_CHIPS = {
    "a100_sxm": "a100-sxm-80",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "l40s": "l40s",
    "a30": "a30",
    "rtx_pro_6000_server": "rtx-pro-6000",
    "b300_sxm": "b300-sxm",
    "b60": "arc-b60",
}
# Measured without clearing the caches, which are large on these cards: small products read faster than DRAM allows.
_AICONFIGURATOR_WARM = {"l40s", "rtx-pro-6000", "arc-b60"}


def _aiconfigurator(source: Source) -> Iterator[tuple[str, Row]]:
    path = source.path
    system, _, _ = path.name.partition("__")
    constant: Row = {}
    about = path.parent / "FILES.json"
    if about.is_file():
        files = json.loads(read_text(about, "measurement file"))
        constant = next((file["constant_columns"] for file in files if file["file"] == path.name), {})
    for row in source.table():
        yield _AICONFIGURATOR_CHIPS.get(system, system), {**constant, **row}


@reader("aiconfigurator", "*__gemm_perf.csv")
def aiconfigurator_gemm(source: Source) -> Iterator[Measurement]:
    """Read products in 16 bits; the times of products in narrower formats include quantising their input."""
    for chip, row in _aiconfigurator(source):
        dtype = row["gemm_dtype"]
        if dtype in ("bfloat16", "float16"):
            dims = int(row["m"]), int(row["n"]), int(row["k"])
            seconds = float(row["latency"]) * 1e-3
            yield Measurement(
                chip, "mm", dtype, dims, seconds, AICONFIGURATOR, warm=chip in _AICONFIGURATOR_WARM, graph=True
            )


@reader("aiconfigurator", "*_attention_perf.csv")
def aiconfigurator_attention(source: Source) -> Iterator[Measurement]:
    """Read attention in 16 bits without a window: prefill is causal, generation has one query against the cache.

    The times include kernels that write the cache and plan the work, which take some 10 us: a floor.
    """
    yield from _above_floor(_aiconfigurator_attention(source))


def _aiconfigurator_attention(source: Source) -> Iterator[Measurement]:
    for chip, row in _aiconfigurator(source):
        if row["kv_cache_dtype"] != "bfloat16" or int(row.get("window_size") or 0) != 0:
            continue
        batch, heads = int(row["batch_size"]), int(row["num_heads"])
        kv_heads = int(row["num_key_value_heads"]) or heads
        rows = int(row["isl"])
        columns = rows + int(row.get("step") or 0)
        dims = batch, heads, kv_heads, rows, columns, int(row["head_dim"]), int(rows > 1)
        seconds = float(row["latency"]) * 1e-3
        warm = chip in _AICONFIGURATOR_WARM
        yield Measurement(chip, "attention", "bfloat16", dims, seconds, AICONFIGURATOR, warm=warm, graph=True)


NEUSIGHT = "github.com/sitar-lab/NeuSight at 6945927 (asplos data)"
_NEUSIGHT_CHIPS = {
    "Tesla P4": "p4",
    "Tesla P100-PCIE-16GB": "p100-pcie",
    "Tesla V100-PCIE-32GB": "v100-pcie",
    "Tesla T4": "t4",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80",
    "NVIDIA L4": "l4",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "AMD Instinct MI100": "mi100",
    "AMD Instinct MI210": "mi210",
}
_NEUSIGHT_OPS = {
    **{f"{name}u": f"{name}_scalar" for name in ("add", "mul", "div", "pow")},
    **{name: name for name in ("add", "mul", "div", "pow", "relu", "gelu", "tanh", "bmm", "softmax")},
    **{"ln": "layer_norm", "linear": "mm", "conv": "convolution"},
}


@reader("neusight", "test_*.csv")
@reader("neusight", "*_sub*.csv")
def neusight(source: Source) -> Iterator[Measurement]:
    """Read float32 operators (tf32 is off): products, convolutions, pointwise, layer norm, softmax."""
    for row in source.table():
        op, chip = _NEUSIGHT_OPS[row["OPName"]], _NEUSIGHT_CHIPS[row["Device"]]
        if op == "mm":
            names: tuple[str, ...] = ("M", "N", "K")
        elif op == "bmm":
            names = ("B", "M", "N", "K")
        elif op == "convolution":
            names = ("B", "Input_Channel", "Output_Channel", "Kernel_Szie", "Input_Size", "Stride", "Padding")
        else:
            names = ("B", "H")
        dims = tuple(int(float(row[name])) for name in names)
        yield Measurement(chip, op, "float32", dims, float(row["Latency"]) * 1e-3, NEUSIGHT)


LLMCOMPASS = "github.com/PrincetonUniversity/LLMCompass at 2e015fd (host wall clock)"


@reader("llmcompass", "*_A100.csv")
@reader("llmcompass", "*_MI210.csv")
def llmcompass(source: Source) -> Iterator[Measurement]:
    """Read float16 operators, timed by the host's clock, above their floor."""
    name, _, device = source.path.stem.partition("_")
    op = {"matmul": "mm", "layernorm": "layer_norm"}.get(name, name)
    chip = {"A100": "a100-sxm-80", "MI210": "mi210"}[device]
    if name not in ("matmul", "softmax", "layernorm", "gelu"):
        return

    def rows() -> Iterator[Measurement]:
        for cells in source.lines():
            if op == "mm":
                m, n, k = (int(cell) for cell in cells[:3])
                yield Measurement(chip, op, "float16", (m, n, k), float(cells[3].removesuffix("ms")) * 1e-3, LLMCOMPASS)
            else:
                *dims, rate = cells
                shape = tuple(int(cell) for cell in dims)
                elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
                yield Measurement(chip, op, "float16", shape, elements / (float(rate) * 1e9), LLMCOMPASS)

    yield from _above_floor(rows())


VIDUR = "github.com/microsoft/vidur at 7d47513 (device time)"


@reader("vidur", "mlp_median*.csv")
def vidur(source: Source) -> Iterator[Measurement]:
    """Read the float16 layers of language models, one shard of a tensor-parallel group."""
    for row in source.table():
        chip = {"a100": "a100-pcie-80", "a40": "a40", "h100": "h100-sxm"}[row["device"]]
        width, inner, heads, kv_heads = (
            int(row[name]) for name in ("n_embd", "n_expanded_embd", "n_head", "n_kv_head")
        )
        tokens, shards = int(row["num_tokens"]), int(row["num_tensor_parallel_workers"])
        depth = width // heads
        gated = 2 if row["use_gated_mlp"] == "True" else 1
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "attn_pre_proj": ("mm", (tokens, (heads + 2 * kv_heads) * depth // shards, width)),
            "attn_post_proj": ("mm", (tokens, width, width // shards)),
            "mlp_up_proj": ("mm", (tokens, gated * inner // shards, width)),
            "mlp_down_proj": ("mm", (tokens, width, inner // shards)),
            "add": ("add", (tokens, width)),
        }
        for column, (op, dims) in shapes.items():
            milliseconds = float(row[f"{column}_ms"] or 0)
            if milliseconds > 0:
                yield Measurement(chip, op, "float16", dims, milliseconds * 1e-3, VIDUR)


PYTORCHSIM = "github.com/PSAL-POSTECH/PyTorchSim at 2405399 (device time)"


def _parse_workload(workload: str) -> tuple[str, tuple[int, ...]] | None:
    """Parse a workload's name, ``gemm_1x384x1536`` (m, k, n) or ``attn_enc_12x512x64``."""
    kind, _, text = workload.rpartition("_")
    if not re.fullmatch(r"\d+(x\d+)*", text):
        return None
    dims = tuple(int(part) for part in text.split("x"))
    if kind == "gemm":
        return "mm", (dims[0], dims[2], dims[1])
    if kind in ("attn_enc", "attention"):
        heads, rows, depth = dims
        return "attention", (1, heads, heads, rows, rows, depth, 0)
    if kind == "conv":
        batch, height, _, inner, outer, window, stride, padding = dims
        return "convolution", (batch, inner, outer, window, height, stride, padding)
    if kind in ("layernorm", "softmax"):
        return {"layernorm": "layer_norm"}.get(kind, kind), dims
    return None


@reader("pytorchsim_tpuv6e", "*.csv")
def tpu_v6e(source: Source) -> Iterator[Measurement]:
    """Read products and attention on one TPU v6e."""
    for row in source.table():
        parsed = _parse_workload(row["workload"])
        if parsed is not None:
            yield Measurement(
                "tpu-v6e", parsed[0], "bfloat16", parsed[1], float(row["latency_ns"]) * 1e-9, PYTORCHSIM, graph=True
            )


@reader("pytorchsim_tpuv3", "baseline_cycle.csv")
def tpu_v3(source: Source) -> Iterator[Measurement]:
    """Read operators on one core of a TPU v3, in cycles of 940 MHz."""
    for row in source.table():
        parsed = _parse_workload(row["Workload"])
        if parsed is not None:
            op, dims = parsed
            yield Measurement("tpu-v3", op, "bfloat16", dims, float(row["TPUv3"]) / 940e6, PYTORCHSIM, graph=True)


TENSTORRENT = "github.com/tenstorrent/tt-metal at 06bd373, tech_reports/GEMM_FLOPS (replayed trace)"


@reader("tenstorrent", "gemm_oob.csv")
def tenstorrent(source: Source) -> Iterator[Measurement]:
    """Read bfloat16 products that were replayed from a recorded command stream."""
    for row in source.table():
        chip = {"n150": "wormhole-n150", "p150": "blackhole-p150"}[row["board"]]
        if row["use_trace"] == "True" and row["dtype"] == "BFLOAT16":
            dims = int(row["M"]), int(row["N"]), int(row["K"])
            yield Measurement(chip, "mm", "bfloat16", dims, float(row["time_avg_ns"]) * 1e-9, TENSTORRENT, graph=True)


LLMSERVINGSIM = "github.com/casys-kaist/LLMServingSim at 5daddb2 (eager, host included)"
_LLAMA = {  # width, inner, query width, key width, vocabulary: the models' config.json
    "Llama-3.1-8B": (4096, 14336, 4096, 1024, 128256),
    "Llama-3.1-70B": (8192, 28672, 8192, 1024, 128256),
}


@reader("llmservingsim", "*__layers.csv")
def llmservingsim(source: Source) -> Iterator[Measurement]:
    """Read the bfloat16 products of language models, above the host's floor."""
    device, model, _ = source.path.stem.split("__")
    chip = {"H100": "h100-sxm", "RTX3090": "rtx-3090", "A6000": "a6000"}[device]
    if model not in _LLAMA:
        return
    width, inner, query, key, vocabulary = _LLAMA[model]
    shapes = {
        **{"q_proj": (query, width), "k_proj": (key, width), "v_proj": (key, width), "o_proj": (width, query)},
        **{"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)},
        "lm_head": (vocabulary, width),
    }

    def rows() -> Iterator[Measurement]:
        for row in source.table():
            if row["layer_name"] in shapes and row["tp_size"] == "1":
                dims = (int(row["input"]), *shapes[row["layer_name"]])
                yield Measurement(chip, "mm", "bfloat16", dims, float(row["latency(ns)"]) * 1e-9, LLMSERVINGSIM)

    yield from _above_floor(rows())
