"""Measures a device of this machine, and makes a chip file and a host file with the measured numbers.

A suite of single operators is timed with torch's own benchmark timer. The best rates become the numbers of the chip.
The remaining ratio between model and measurement, by family, becomes the ``efficiency`` of the chip. The shapes of the
suite are regular ladders of sizes, not those of any model.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bringup import pricing
from bringup.cost import FAMILIES
from bringup.errors import BringupError
from bringup.pricing.errors import Group, grouped
from bringup.pricing.measurements import OPERATORS, Measurement

if TYPE_CHECKING:
    import torch

    from bringup.machine.schema import Chip

# Working sets that are far larger than any cache, and ones that fit in it.
STREAM_ELEMENTS = 1 << 26
LADDER = (1 << 14, 1 << 16, 1 << 18, 1 << 19, 1 << 20, 1 << 21)
WIDTHS = (512, 1024, 2048)
SECONDS = 0.05  # per operator and pass
PASSES = 5  # over the suite; the median of the passes is used
LONGEST = 100.0  # seconds after which no further pass begins; a device's graphs repeat within some percent
CALLS = 50  # in a graph, so that starting it takes no notable part
PARAMETER_BYTES = 128 << 20  # larger than the caches of most machines
# Their weights are read from memory, as a model reads its own: they are priced as in a program, and not as if warm.
FROM_MEMORY = ("linear", "convolution")
# Shares of the bandwidth that are tried for families whose kernels reorder their operands.
SHARES = tuple(0.02 * 1.35**i for i in range(14))
# A family or operator with fewer measurements than this gets no efficiency.
FEWEST = 3
FAR = 4.0  # a larger factor is specific to one operator, so its family gets no efficiency
SHARED = set(FAMILIES) - {"convolution", "depthwise"}  # families with several operators


@dataclass(frozen=True)
class Machine:
    """The data of the operating system about this machine."""

    name: str
    cores: int
    clock_ghz: float
    cache_mib: float
    memory_gib: float

    @classmethod
    def current(cls) -> Machine:
        """Read the data from Linux; unknown values are assumed: 2.5 GHz, 8 MiB of cache, 8 GiB of memory."""
        cpu: dict[str, str] = {}
        for line in _lines("/proc/cpuinfo"):
            key, _, value = line.partition(":")
            cpu.setdefault(key.strip(), value.strip())
        caches = [
            _kib(Path(folder, "size").read_text()) / 1024
            for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
            if Path(folder, "size").is_file()
        ]
        memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "8388608")
        return cls(
            cpu.get("model name") or platform.processor() or platform.machine(),
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            round(float(cpu.get("cpu MHz") or 2500) / 1000, 3),
            max(caches, default=8.0),
            round(int(memory) / 2**20, 2),
        )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _kib(text: str) -> float:
    number = float(text.strip().rstrip("KMG") or 0)
    return number * {"M": 1024, "G": 2**20}.get(text.strip()[-1:], 1)


def suite(dtype: str) -> list[Measurement]:
    """List the single operators to time, a ladder of sizes per family. Their seconds are not measured yet."""
    cases: list[tuple[str, tuple[int, ...]]] = []
    cases += [("mm", (n, n, n)) for n in (128, 256, 512, 1024)]
    cases += [("linear", (m, n, k)) for m in (48, 192) for n, k in _LAYERS]
    cases += [("linear", (768, n, k)) for n, k in _LAYERS[:5]]
    cases += [("bmm", (b, m, n, k)) for b in (8, 24) for m, n, k in ((96, 96, 64), (96, 64, 96), (192, 192, 64))]
    cases += [("attention", (b, 8, 8, rows, rows, 64, 0)) for b in (1, 3) for rows in (96, 192)]
    cases += [
        ("convolution", (batch, inner, outer, window, size, stride, window // 2))
        for batch in (1, 3)
        for inner, outer, window, size, stride in (
            *((48, 48, 3, 64, 1), (96, 96, 3, 32, 1), (192, 192, 3, 16, 1), (48, 192, 1, 64, 1), (192, 48, 1, 32, 1)),
            *((96, 192, 3, 32, 2), (384, 96, 1, 16, 1), (3, 48, 7, 192, 2), (384, 384, 3, 8, 1), (384, 1536, 1, 8, 1)),
            *((576, 576, 3, 8, 1), (768, 768, 3, 8, 1), (768, 384, 1, 16, 1), (1536, 384, 1, 8, 1)),
        )
    ]
    cases += [("depthwise", (batch, c, 3, size, step)) for batch in (1, 3) for c, size, step in _DEPTHWISE]
    for op in ("add", "mul_scalar", "relu", "gelu", "tanh"):
        cases += [(op, (elements // 512, 512)) for elements in LADDER]
    cases += [("softmax", (rows, width)) for rows in (96, 768) for width in (96, 384, 1024)]
    cases += [("layer_norm", (rows, width)) for rows in (32, 384) for width in WIDTHS]
    cases += [("batch_norm", (batch, c, size, size)) for batch in (1, 3) for c, size in ((48, 64), (96, 32), (192, 16))]
    cases += [("max_pool", (batch, c, size)) for batch in (1, 3) for c, size in ((48, 96), (96, 48))]
    cases += [("sum", (elements // 512, 512)) for elements in LADDER[1:]]
    return [Measurement("", op, dtype, dims, 1.0, "") for op, dims in cases]


_LAYERS = ((512, 512), (1024, 1024), (1536, 512), (2048, 512), (512, 2048), (4096, 1024), (1024, 4096), (16384, 1024))
_DEPTHWISE = ((48, 96, 1), (96, 48, 1), (192, 24, 1), (96, 48, 2))


def _from_memory(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield copies of a parameter in turn, so that each is read from memory, as in a model, and not from the cache."""
    copies = min(max(PARAMETER_BYTES // weight.nbytes, 1), 64)
    return itertools.cycle([weight, *(weight.clone() for _ in range(copies - 1))])


def _runner(row: Measurement, device: torch.device) -> Callable[[], Any]:
    """Return a function that calls an operator as a program would."""
    import torch
    from torch.nn import functional

    _, shapes, _, _ = OPERATORS[row.op](row.dims)
    dtype = getattr(torch, row.dtype)
    data = [torch.randn(shape, device=device).to(dtype) for shape in shapes.values()]
    if row.op == "linear":
        bias, first, second = data
        weights = _from_memory(second.t().contiguous())
        return lambda: functional.linear(first, next(weights), bias)
    if row.op in ("convolution", "depthwise"):
        stride, padding = (row.dims[-2], row.dims[-1]) if row.op == "convolution" else (row.dims[-1], row.dims[2] // 2)
        groups = 1 if row.op == "convolution" else row.dims[1]
        weights = _from_memory(data[1])
        return lambda: functional.conv2d(data[0], next(weights), None, stride, padding, 1, groups)
    if row.op == "batch_norm":
        mean, variance = torch.zeros_like(data[1]), torch.ones_like(data[1])
        return lambda: functional.batch_norm(data[0], mean, variance, data[1], data[2])
    if row.op == "max_pool":
        return lambda: functional.max_pool2d(data[0], 3, 2, 1)
    if row.op == "attention":
        return lambda: functional.scaled_dot_product_attention(data[0], data[1], data[2])
    if row.op == "softmax":
        return lambda: data[0].softmax(-1)
    if row.op == "layer_norm":
        width = [row.dims[-1]]
        weight, bias = torch.ones(width, device=device, dtype=dtype), torch.zeros(width, device=device, dtype=dtype)
        return lambda: functional.layer_norm(data[0], width, weight, bias)
    if row.op.endswith("_scalar"):
        function = getattr(torch, row.op.removesuffix("_scalar"))
        return lambda: function(data[0], 1.5)
    if row.op in ("gelu", "relu"):
        activation = getattr(functional, row.op)
        return lambda: activation(data[0])
    function = getattr(torch, row.op)
    return lambda: function(*data)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, because returning and mapping pages takes longer than many operators on them.

    PyTorch has no caching allocator for the CPU. Which pages glibc returns depends on the order of allocations, and
    the description of an operator does not contain that.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, set to its largest value
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def timed(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call by torch's benchmark timer, which synchronises with an accelerator."""
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)


def replayed(call: Callable[[], Any], device: torch.device) -> float | None:
    """Return the median seconds of a call replayed in a CUDA graph, so without the host; None if that is impossible."""
    import torch

    if device.type != "cuda":
        return None
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        try:
            torch.cuda.synchronize()  # the inputs were written on another stream
            for _ in range(3):  # libraries choose kernels and allocate at first
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                for _ in range(CALLS):
                    call()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            seconds: list[float] = []
            while len(seconds) < 3 or (sum(seconds) * CALLS < SECONDS and len(seconds) < 100):
                graph.replay()  # the second replay waits in the queue, so the host's launch is hidden
                first.record()
                graph.replay()
                last.record()
                last.synchronize()
                seconds.append(first.elapsed_time(last) / 1e3 / CALLS)
        except RuntimeError:
            return None
    return statistics.median(seconds)


def measure(
    rows: Sequence[Measurement], device: torch.device, chip: str, progress: Callable[[], None]
) -> list[Measurement]:
    """Time every row of a suite in several passes, as graphs where the device has them.

    Rows that the device cannot run, for want of memory or of the operator, are left out.
    """
    from dataclasses import replace

    import torch

    seconds: dict[tuple[Measurement, bool], list[float]] = defaultdict(list)
    begun = time.perf_counter()
    with torch.no_grad():
        for _ in range(PASSES):
            in_time = time.perf_counter() - begun < LONGEST
            for row in rows:
                if in_time:
                    try:
                        call = _runner(row, device)
                        in_graph = replayed(call, device)
                        value = timed(call) if in_graph is None else in_graph
                        seconds[row, in_graph is not None].append(value)
                    except RuntimeError as error:
                        if device.type == "cpu":
                            raise BringupError(f"{row.op} of {row.dims} failed: {error}") from None
                progress()
    return [
        replace(
            row,
            chip=chip,
            seconds=statistics.median(values),
            source="this machine",
            warm=row.op not in FROM_MEMORY,
            graph=in_graph,
        )
        for (row, in_graph), values in seconds.items()
    ]


def fitted(chip: Chip, rows: Iterable[Measurement]) -> Chip:
    """Return a chip with the efficiency (median of model over measured) of families with enough measurements.

    The ratio is taken of the times without the launch, so that small operators have no influence. Families of products
    also get the share of the bandwidth with the smallest error.
    """
    groups = grouped(rows)
    chip = chip.model_copy(update={"efficiency": {}})
    for family in ("matmul", "convolution"):
        tried = [chip.model_copy(update={"streams": {**chip.streams, family: share}}) for share in SHARES]
        spreads = [_spread(_ratios(trial, groups).get(family, [])) for trial in tried]
        if chip.kind == "cpu" and min(spreads) < math.inf:
            chip = tried[int(np.argmin(spreads))]
    streams = {name: float(f"{share:.3g}") for name, share in chip.streams.items()}
    efficiency = {
        name: float(f"{np.median(values):.3g}")
        for name, values in sorted(_ratios(chip, groups).items())
        if len(values) >= FEWEST and (name not in SHARED or 1 / FAR < np.median(values) < FAR)
    }
    return chip.model_copy(update={"efficiency": efficiency, "streams": streams})


def _spread(ratios: list[float]) -> float:
    """Return the mean distance of the logarithms from their median."""
    if len(ratios) < FEWEST:
        return math.inf
    logs = np.log(ratios)
    return float(np.mean(np.abs(logs - np.median(logs))))


def _ratios(chip: Chip, groups: Sequence[Group]) -> dict[str, list[float]]:
    """Return ratios of model over measured time, both without the launch, by family and by operator."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        launch = pricing.launch_seconds(chip, graph=group.graph) + pricing.DEFAULT.kernel_seconds
        body = group.predicted(chip) - launch
        measured = group.measured - launch
        for signature, model, real in zip(group.signatures, body, measured, strict=True):
            if real > launch:
                names = pricing.efficiency_names(signature, signature.work)
                for name in names if names[0] != "convolution_1x1" else names[:1]:
                    ratios[name].append(float(model / real))
    return ratios


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration: the contents of the two files, and the measurements of the suite."""

    chip: dict[str, Any]
    host: dict[str, Any]
    rows: tuple[Measurement, ...]


def calibrate(device: str, name: str, progress: Callable[[int, str], Callable[[], None]]) -> Calibration:
    """Measure a device and its host.

    Args:
        device: a torch device: ``cpu``, ``cuda``, ``cuda:1``, ...
        name: name of the chip in its file.
        progress: called with the number of measurements and a description; returns a function to call after each.

    Raises:
        BringupError: torch cannot use the device on this machine.
    """
    import torch

    try:
        torch_device = torch.device(device)
        torch.zeros(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise BringupError(f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}") from None
    if torch_device.type == "chip":
        raise BringupError("chip is the virtual chip itself: calibrate a real device, such as cpu or cuda")
    keep_freed_memory()
    machine = Machine.current()
    source = f"measured by bringup calibrate on {datetime.date.today()}: {_device_name(torch_device, machine)}"
    rows = suite("float32") + ([] if torch_device.type == "cpu" else _half_products())
    tick = progress(PASSES * len(rows) + 1, f"measuring {_device_name(torch_device, machine)}")
    base = _Base.measured(torch_device)
    tick()
    measured = measure(rows, torch_device, name, tick)
    chip = _chip_file(name, torch_device, machine, base, measured, source)
    return Calibration(chip, _host_file(machine, base, source), tuple(measured))


def _half_products() -> list[Measurement]:
    return [
        Measurement("", "mm", dtype, (n, n, n), 1.0, "")
        for dtype in ("bfloat16", "float16")
        for n in (1024, 4096, 8192)
    ]


def _device_name(device: torch.device, machine: Machine) -> str:
    import torch

    if device.type == "cpu":
        return f"{machine.name}, {machine.cores} cores, torch {torch.__version__}"
    return f"{torch.get_device_module(device).get_device_name(device)}, torch {torch.__version__}"


@dataclass(frozen=True)
class _Base:
    """Rates that are the same for all operators."""

    stream: float  # bytes/s beyond the cache
    cached: float  # bytes/s within it
    special: float  # exponentials/s
    launch: float  # seconds of the smallest operator
    views: float
    pointwise: float  # seconds of the smallest layers, with what nn.Module does in Python
    norm: float
    product: float
    upload: float
    download: float
    host_stream: float
    host_launch: float
    of_host: dict[str, float]  # further seconds of the host of an accelerator, by key of `HostDispatch`
    node: float | None  # seconds of the smallest operator in a graph
    fresh: float | None  # bytes/s of writing a result into pages that the operating system maps on first use

    @classmethod
    def measured(cls, device: torch.device) -> _Base:
        """Time them in several passes."""
        import torch
        from torch import nn

        def typical(call: Callable[[], Any]) -> float:
            return statistics.median(timed(call) for _ in range(PASSES))

        def stream(where: torch.device, elements: int) -> float:
            a = torch.randn(elements, device=where)
            out = torch.empty_like(a)
            return 8 * elements / kernel(lambda: torch.mul(a, 1.5, out=out), where)

        def kernel(call: Callable[[], Any], where: torch.device) -> float:
            return replayed(call, where) or typical(call)

        cpu, is_cpu = torch.device("cpu"), device.type == "cpu"
        small, image = torch.randn(16, device=device), torch.randn(1, 4, 4, 4, device=device)
        layers = nn.ReLU(), nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 4, 1)
        pointwise, norm, product = (layer.to(device) for layer in layers)
        exponents = torch.randn(1 << 16 if is_cpu else 1 << 24, device=device)
        out = torch.empty_like(exponents)
        beyond, within = stream(device, STREAM_ELEMENTS), stream(device, 1 << 18 if is_cpu else 1 << 20)
        rates = (beyond, within, exponents.numel() / kernel(lambda: torch.exp(exponents, out=out), device))
        smallest = (
            typical(lambda: torch.add(small, small)),
            typical(lambda: small.view(4, 4)),
            typical(lambda: pointwise(image)),
            typical(lambda: norm(image)),
            typical(lambda: product(image)),
        )
        if is_cpu:
            large = torch.zeros(1 << 24)  # 64 MiB
            fresh = large.nbytes / max(typical(lambda: torch.neg(large)) - 2 * large.nbytes / beyond, 1e-9)
            return cls(*rates, *smallest, within, within, beyond, smallest[0], {}, None, fresh)
        pinned = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
        on_device = torch.empty_like(pinned, device=device)
        upload = pinned.numel() / typical(lambda: on_device.copy_(pinned))
        download = pinned.numel() / typical(lambda: pinned.copy_(on_device))
        host = torch.randn(16)
        launch = typical(lambda: torch.add(host, host))
        of_host = _of_host(device, small, image, product, typical)
        node = replayed(lambda: torch.add(small, small), device)
        return cls(*rates, *smallest, upload, download, stream(cpu, STREAM_ELEMENTS), launch, of_host, node, None)


def _of_host(
    device: torch.device,
    small: torch.Tensor,
    image: torch.Tensor,
    product: torch.nn.Module,
    typical: Callable[[Callable[[], Any]], float],
) -> dict[str, float]:
    """Time what the host of an accelerator does beside launches of forward passes."""
    import torch

    module = torch.get_device_module(device)
    on_host, event = torch.ones(16), torch.Event(device.type)
    chain = start = small.clone().requires_grad_()
    for _ in range(100):
        chain = chain + small  # its gradient is passed on, so a node launches nothing
    one, gradient, wide = start + small, torch.ones_like(small), image.clone().requires_grad_()
    result = product(wide)
    whole = torch.ones_like(result)

    def backward(output: torch.Tensor, inputs: Sequence[torch.Tensor], gradient: torch.Tensor) -> float:
        return typical(lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True))

    single = backward(one, [start], gradient)
    node = max((backward(chain, [start], gradient) - single) / 99, 1e-7)
    product_backward = backward(result, [wide, *product.parameters()], whole) - single
    return {
        "copy_us": typical(lambda: small.copy_(on_host)),
        "synchronize_us": typical(module.synchronize),
        "event_us": typical(event.record),
        "node_us": node,
        "convolution": max(product_backward, node),
    }


def _rate(rows: Iterable[Measurement], dtype: str) -> float:
    """Best flop/s over the products of a dtype."""
    products = [row for row in rows if row.op in ("mm", "linear") and row.dtype == dtype]
    return max((2 * math.prod(row.dims) / row.seconds for row in products), default=0.0)


def _chip_file(
    name: str, device: torch.device, machine: Machine, base: _Base, rows: list[Measurement], source: str
) -> dict[str, Any]:
    from bringup.machine.schema import Chip  # imports pydantic

    is_cpu = device.type == "cpu"
    rates = {dtype: _rate(rows, dtype) for dtype in ("float32", "bfloat16", "float16")}
    rates = {dtype: _round(rate / 1e12) for dtype, rate in rates.items() if rate}
    cores, clock, cache, memory = _properties(device, machine)
    dtypes = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    data: dict[str, Any] = {
        "vendor": "this machine",
        "description": _device_name(device, machine),
        "kind": "cpu" if is_cpu else "gpu",
        "modes": ["eager"],
        "compute": {"cores": cores, "clock_ghz": clock},
        "matrix": {"kind": "tile", "sustained": 1.0, "tflops": rates},
        "vector": {"special_tops": _round(base.special / 1e12), "tflops": {"float32": rates["float32"]}},
        "cache": {"mib": cache, "bandwidth_tb_s": _round(max(base.cached, base.stream) / 1e12)},
        "memory": {"device_gib": memory, "bandwidth_gb_s": _round(base.stream / 1e9), "sustained": 1.0},
        "link": {
            "kind": "shared" if is_cpu else "pcie",
            "h2d_gb_s": _round(base.upload / 1e9),
            "d2h_gb_s": _round(base.download / 1e9),
            "latency_us": 0.0 if is_cpu else _round(base.launch * 1e6),
        },
        "launch": {"eager_us": _round(max(base.launch - pricing.DEFAULT.kernel_seconds, 1e-7) * 1e6)},
        "ops": {"dtypes": [*dtypes, "complex64", "complex128"]},
        "numerics": {"matmul_input": "as given", "accumulate": "float32"},
    }
    tables = [key for key, value in data.items() if isinstance(value, dict) and key not in ("ops", "numerics")]
    if base.node is not None:
        data["launch"] = {"graph_us": _round(max(base.node - pricing.DEFAULT.kernel_seconds, 1e-7) * 1e6)}
    if base.fresh is not None:
        data["memory"]["fresh_gb_s"] = _round(base.fresh / 1e9)
    described_by = "the operating system (2.5 GHz and 8 MiB of cache where it is silent)" if is_cpu else "torch"
    data["sources"] = {**dict.fromkeys(tables, source), "compute": f"{described_by}: {_device_name(device, machine)}"}
    if not is_cpu and base.node is not None:
        data["sources"]["launch"] = f"{source}; nodes of a graph"
    elif not is_cpu:
        data["sources"]["launch"] = f"{source}; as fast as this host issues them, so an upper bound"
    described = Chip.model_validate({"name": name, **data})
    tuned = fitted(described, rows)
    for key, values in (("efficiency", tuned.efficiency), ("streams", tuned.streams)):
        if values:
            data[key] = dict(values)
            data["sources"][key] = source
    return data


def _properties(device: torch.device, machine: Machine) -> tuple[int, float, float, float]:
    """Cores, GHz, MiB of the last cache, GiB of memory."""
    import torch

    if device.type == "cpu":
        return machine.cores, machine.clock_ghz, machine.cache_mib, machine.memory_gib
    about = torch.get_device_module(device).get_device_properties(device)
    clock = getattr(about, "clock_rate", 1_500_000) / 1e6
    cache = getattr(about, "L2_cache_size", 8 << 20) / 2**20
    return about.multi_processor_count, round(clock, 3), round(cache, 2), round(about.total_memory / 2**30, 2)


def _host_file(machine: Machine, base: _Base, source: str) -> dict[str, Any]:
    micro = 1e6
    data: dict[str, Any] = {
        "vendor": "this machine",
        "description": f"{machine.name}, {machine.cores} cores",
        "compute": {
            "cores": machine.cores,
            "clock_ghz": machine.clock_ghz,
            "vector_tflops": _round(machine.cores * machine.clock_ghz * 32 / 1e3),
            "memory_gb_s": _round(base.host_stream / 1e9),
            "cache_mib": machine.cache_mib,
            "kernel_us": _round(base.host_launch * micro),
            "pageable_gb_s": _round(base.host_stream / 1e9 / 2),
        },
        "dispatch": {
            "pointwise_us": _round(base.pointwise * micro),
            "norm_us": _round(base.norm * micro),
            "matmul_us": _round(base.product * micro),
            "view_us": _round(base.views * micro),
            "copy_us": _round(base.launch * micro),
            "synchronize_us": _round(base.launch * micro),
            "backward": 0.5,
        },
        "sources": {
            "compute": source,
            "compute.vector_tflops": "32 float32 operations per core and clock (AVX2)",
            "compute.pageable_gb_s": "half of the measured stream: a copy reads and writes",
            "dispatch": f"{source}; time of the smallest layers (ReLU, batch norm, convolution) on this device",
            "dispatch.copy_us": "as a pointwise operator",
            "dispatch.synchronize_us": "as a pointwise operator",
            "dispatch.backward": "assumed: autograd launches from C++, without Python",
        },
    }
    if base.of_host:
        further = {name: _round(value * micro) for name, value in base.of_host.items()}
        convolution = further.pop("convolution")
        data["dispatch"] |= {**further, "backward": 1.0, "backward_families": {"convolution": convolution}}
        for name in ("copy_us", "synchronize_us", "backward"):
            del data["sources"][f"dispatch.{name}"]
    return data


def _round(value: float) -> float:
    return float(f"{value:.4g}")
