"""Prices and the replay, with numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch

import bringup
from bringup import pricing
from bringup.analyse import holders as memory
from bringup.analyse.summarize import summarize
from bringup.cost.signature import Signature
from bringup.machine.schema import Chip, Host
from bringup.pricing import COMPUTE, LAUNCH, MEMORY, WorkTable, price_table
from bringup.recording.rows import STEP
from bringup.recording.trace import Trace
from bringup.timeline.replay import LAUNCH_LATENCY, Timeline, replay


def chip(**changes: Any) -> Chip:
    """edge8 with other tables."""
    data = bringup.load_chip("edge8").model_dump()
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(data[key], dict) else value
    return Chip.model_validate(data)


def host() -> Host:
    return bringup.load_host()


def mm(m: int, n: int, k: int, dtype: str = "float32") -> Signature:
    shapes = [[m, k], [k, n]]
    inputs = [[dtype, shape, [shape[1], 1], i, 0] for i, shape in enumerate(shapes)]
    args = {"self": {"tensor": 0}, "mat2": {"tensor": 1}}
    return Signature.parse(
        {"op": "aten::mm", "inputs": inputs, "outputs": [[dtype, [m, n], [n, 1], -1, 1]], "args": args}
    )


def add(n: int) -> Signature:
    tensor = ["float32", [n], [1], 0, 0]
    args = {"self": {"tensor": 0}, "other": {"tensor": 0}}
    data = {"op": "aten::add.Tensor", "inputs": [tensor], "outputs": [tensor], "args": args, "tag": "pointwise"}
    return Signature.parse(data)


def priced(signature: Signature, on: Chip) -> tuple[float, int]:
    prices = price_table(WorkTable.from_signatures([signature]), [signature], on)
    return float(prices.seconds[0]), int(prices.bound[0])


def test_fullest_moment_is_in_the_step_that_was_asked_for() -> None:
    with bringup.record() as trace:
        small = torch.ones(1000, device="chip")
        bringup.step()
        large = torch.ones(100_000, device="chip")
        bringup.step()
    rows = len(trace)
    first_end = int(np.flatnonzero(trace.columns["kind"] == STEP)[0]) + 1
    one, two = (memory.usage(trace, np.asarray(ends)) for ends in ([rows], [first_end, rows]))
    assert one.at is not None and two.at is not None
    assert (one.at.step, two.at.step) == (0, 1)
    assert len(small) + len(large) == 101_000


def test_large_product_runs_at_the_sustained_rate() -> None:
    seconds, bound = priced(mm(4096, 4096, 4096), chip())
    ideal = 2 * 4096**3 / (4e12 * 0.8)
    assert bound == COMPUTE
    assert ideal < seconds < 1.05 * ideal


def test_engines_and_roof_of_a_kernel() -> None:
    device = chip()
    x, y = torch.randn(2, 1024, 1024).to("chip").unbind()
    with bringup.record() as trace:
        for _ in range(3):
            x @ y
        x + y
    found = {item.op: item for item in summarize(replay(trace, device, host())).kernels}
    product, total = found["aten::mm"], found["aten::add.Tensor"]
    assert product.bound == "compute" and product.count == 3 and product.flops == 2 * 1024**3
    ideal = 2 * 1024**3 / pricing.matrix_rate(device, "float32")
    assert product.roof == pytest.approx(ideal / product.seconds)
    assert ideal / product.seconds <= product.engines["matrix"] <= 1 and product.engines["vector"] == 0
    assert total.bound == "memory" and total.bytes == 3 * 4 * 1024**2
    assert total.line.startswith("tests/timeline/test_timeline.py")
    assert total.engines["memory"] > 0.9 > total.engines["vector"] > 0 == total.engines["matrix"]


def test_few_rows_keep_few_cores_busy() -> None:
    x = torch.randn(1, 100).to("chip")
    with bringup.record() as trace:
        x.exp()
    (kernel,) = summarize(replay(trace, bringup.load_chip("a100-sxm-80"), host())).kernels
    assert kernel.bound == "launch" and kernel.cores < 0.02 and kernel.roof < 0.01
    assert 0 < kernel.engines["special"] < kernel.engines["memory"] < 0.1


def test_matrix_times_vector_is_memory_bound() -> None:
    seconds, bound = priced(mm(4096, 1, 4096), chip())
    ideal = 4 * 4096 * 4096 / (120e9 * 0.85)
    assert bound == MEMORY
    assert ideal < seconds < 1.5 * ideal


def test_large_add_streams_at_the_sustained_bandwidth() -> None:
    seconds, bound = priced(add(1 << 24), chip())
    assert bound == MEMORY
    streams = pricing.DEFAULT.streams_pointwise
    assert seconds == pytest.approx(2 * 4 * 2**24 / (120e9 * 0.85 * streams) + 4e-6, rel=0.02)


def test_small_add_costs_its_launch() -> None:
    seconds, bound = priced(add(16), chip())
    assert bound == LAUNCH
    assert seconds == pytest.approx(4e-6 + pricing.DEFAULT.kernel_seconds, rel=0.05)


def test_one_row_more_than_a_wave_costs_another_wave() -> None:
    on = chip()
    full, _ = priced(mm(4096, 4096, 1024), on)
    more, _ = priced(mm(4096 + 16, 4096, 1024), on)
    assert more > full * 4112 / 4096


def test_systolic_array_waits_for_its_rows() -> None:
    array = {"kind": "systolic", "rows": 128, "columns": 128, "arrays": 1}
    on = chip(matrix=array, memory={"bandwidth_gb_s": 1e6})
    few, _ = priced(mm(1, 8192, 8192), on)
    fill, _ = priced(mm(int(128 * pricing.DEFAULT.systolic_fill), 8192, 8192), on)
    many, _ = priced(mm(1024, 8192, 8192), on)
    assert few == pytest.approx(fill, rel=0.01)
    assert many > 10 * few


def test_systolic_array_loads_the_smaller_operand_first() -> None:
    array = {"kind": "systolic", "rows": 128, "columns": 128, "arrays": 1}
    fast, slow = (chip(matrix=array, memory={"bandwidth_gb_s": rate}) for rate in (1e6, 100))
    square = mm(8192, 8192, 8192)
    load = 8192 * 8192 * 4 / (100e9 * 0.85)
    assert priced(square, slow)[0] > priced(square, fast)[0] + load


def test_few_cores_run_faster_than_all_of_them_together() -> None:
    capped = chip(compute={"cores": 64}, matrix={"sustained": 0.5})
    full, _ = priced(mm(4096, 4096, 4096), capped)
    half, _ = priced(mm(2048, 4096, 4096), capped)
    part, _ = priced(mm(512, 1024, 4096), capped)
    assert full == pytest.approx(2 * half, rel=0.05)
    assert part < full * (512 * 1024) / (4096 * 4096) * 2


def test_long_rows_are_read_again_where_the_cache_is_small() -> None:
    def softmax(width: int) -> Signature:
        tensor = ["float32", [1 << 14, width], [width, 1], 0, 0]
        return Signature.parse(
            {
                "op": "aten::_softmax",
                "inputs": [tensor],
                "outputs": [tensor],
                "args": {"self": {"tensor": 0}, "dim": -1},
            }
        )

    small, large = chip(cache={"mib": 1}), chip(cache={"mib": 512})
    assert priced(softmax(4096), small)[0] > 1.8 * priced(softmax(4096), large)[0]
    assert priced(softmax(512), small)[0] == priced(softmax(512), large)[0]


def test_efficiency_of_an_operator_comes_before_that_of_its_family() -> None:
    plain, _ = priced(add(1 << 22), chip())
    launch = 4e-6 + pricing.DEFAULT.kernel_seconds
    for efficiency, factor in (({"pointwise": 0.5}, 2.0), ({"pointwise": 0.5, "add": 0.25}, 4.0)):
        slow, _ = priced(add(1 << 22), chip().model_copy(update={"efficiency": efficiency}))
        assert slow - launch == pytest.approx(factor * (plain - launch))


def test_a_cpu_has_no_queue() -> None:
    def chain() -> None:
        x = torch.ones(256, 256, device="chip")
        for _ in range(50):
            x = x @ x
        bringup.step()

    trace = record(chain)
    queued = replay(trace, chip(), host())
    serial = replay(trace, chip(kind="cpu"), host())
    busy = (serial.end - serial.start)[serial.trace.columns["kind"] == 0].sum()
    assert summarize(serial).step_seconds > busy + 0.9 * host().dispatch.matmul_us * 50e-6
    assert summarize(queued).step_seconds < summarize(serial).step_seconds


def test_memory_from_the_operating_system_costs_its_pages() -> None:
    slow = chip(kind="cpu", memory={"fresh_gb_s": 1.0})
    fast = chip(kind="cpu")
    assert priced(add(1 << 24), slow)[0] - priced(add(1 << 24), fast)[0] == pytest.approx(0.067, rel=0.05)
    assert priced(add(1 << 20), slow)[0] == priced(add(1 << 20), fast)[0]


def test_missing_dtype_of_the_matrix_engine_runs_as_float32() -> None:
    on = chip(matrix={"kind": "tile", "tflops": {"float32": 4.0}})
    assert pricing.matrix_rate(on, "bfloat16") == pricing.matrix_rate(on, "float32")


def record(function: Any) -> Trace:
    torch.chip.synchronize()
    with bringup.record() as trace:
        function()
    return trace


def launches(timeline: Timeline) -> list[int]:
    return np.flatnonzero(timeline.trace.columns["kind"] == 0).tolist()


def test_host_bound_launches_follow_the_host() -> None:
    x = torch.ones(16, device="chip")
    trace = record(lambda: [x + 1 for _ in range(50)])
    timeline = replay(trace, chip(), host())
    starts = timeline.start[launches(timeline)]
    assert np.diff(starts) == pytest.approx(host().dispatch.pointwise_us * 1e-6)
    assert starts[0] == pytest.approx(host().dispatch.pointwise_us * 1e-6 + LAUNCH_LATENCY)


def test_queue_that_is_full_holds_the_host() -> None:
    x = torch.ones(512, 512, device="chip")
    trace = record(lambda: [x @ x for _ in range(20)])
    deep = replay(trace, chip(launch={"queue_depth": 1000}), host())
    shallow = replay(trace, chip(launch={"queue_depth": 2}), host())
    assert deep.waited.sum() == 0
    assert shallow.waited.sum() > 0
    assert shallow.end.max() == pytest.approx(deep.end.max(), rel=0.1)


def test_reading_a_value_waits_for_the_stream() -> None:
    x = torch.ones(1024, 1024, device="chip")
    trace = record(lambda: (x @ x).sum().item())
    timeline = replay(trace, chip(), host())
    product = launches(timeline)[0]
    assert timeline.waited.max() > 0.9 * (timeline.end[product] - timeline.start[product])


def test_streams_overlap_where_the_chip_has_room() -> None:
    x = torch.ones(64, 64, device="chip")

    def two_streams() -> None:
        for stream in (torch.Stream("chip"), torch.Stream("chip")):
            with stream:
                for _ in range(50):
                    x @ x

    trace = record(two_streams)
    fast_host = {"launch": {"eager_us": 400.0}}
    together = replay(trace, chip(**fast_host), host()).end.max()
    alone = replay(trace, chip(**fast_host, compute={"concurrent_kernels": 1}), host()).end.max()
    assert alone > 1.5 * together


def test_event_orders_two_streams() -> None:
    x = torch.ones(1024, 1024, device="chip")

    def ordered() -> None:
        first, second = torch.Stream("chip"), torch.Stream("chip")
        with first:
            x @ x
            event = first.record_event()
        second.wait_event(event)
        with second:
            torch.ones(4, device="chip")

    timeline = replay(record(ordered), chip(), host())
    product, last = launches(timeline)
    assert timeline.start[last] >= timeline.end[product]


def test_pinned_copies_are_faster_than_pageable_ones() -> None:
    size = 1 << 24
    trace = record(lambda: (torch.ones(size).pin_memory().to("chip"), torch.ones(size).to("chip")))
    timeline = replay(trace, chip(link={"h2d_gb_s": 25.0}), host())
    copies = np.flatnonzero(trace.columns["kind"] == 1)
    pinned, pageable = timeline.end[copies] - timeline.start[copies]
    assert pinned == pytest.approx(4 * size / 25e9 + 10e-6)
    assert pageable == pytest.approx(4 * size / 8e9 + 10e-6)


def test_fallback_is_priced_as_copies_host_and_stall() -> None:
    x = torch.ones(1 << 20, device="chip")

    def program() -> None:
        y = x * 2
        y.topk(5)

    trace = record(program)
    whole = chip(ops={"host": ["aten::topk"]})
    timeline = replay(trace, whole, host())
    (ledger,) = summarize(timeline).fallbacks
    assert (ledger.op, ledger.dtype, ledger.count) == ("aten::topk", "float32", 1)
    assert ledger.file.endswith("test_timeline.py")
    assert ledger.d2h_seconds == pytest.approx(10e-6 + 4 * 2**20 / 6e9)
    assert ledger.h2d_seconds == pytest.approx(10e-6 + 5 * 12 / 6e9)
    assert ledger.stall_seconds > 0
    parts = (ledger.d2h_seconds, ledger.host_seconds, ledger.h2d_seconds, ledger.stall_seconds)
    assert ledger.seconds == pytest.approx(sum(parts))


def test_parts_of_a_step_add_up() -> None:
    model = torch.nn.Linear(256, 256).to("chip")

    def program() -> None:
        for _ in range(4):
            model(torch.ones(64, 256).to("chip")).sum().item()

    summary = summarize(replay(record(program), chip(ops={"host": ["aten::sum"]}), host()))
    parts = summary.device_seconds + summary.link_seconds + summary.host_seconds + summary.fallback_seconds
    assert parts == pytest.approx(summary.step_seconds)
    assert (summary.steps, summary.steps_by) == (4, "forward")


def test_steps_are_those_of_the_model_on_the_chip() -> None:
    data = torch.ones(2, 4)
    with bringup.record() as trace:
        for device in ("cpu", "chip"):
            model = torch.nn.Linear(4, 4).to(device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3 if device == "cpu" else 5):
                model(data.to(device)).sum().backward()
                optimizer.step()
    summary = summarize(replay(trace, chip(), host()))
    assert (summary.steps, summary.steps_by) == (5, "optimizer") and summary.launches > 3


def test_steps_are_marked_by_the_program_if_it_does() -> None:
    def program() -> None:
        for _ in range(3):
            torch.ones(4, device="chip")
            bringup.step()

    summary = bringup.price(record(program), "t4").summary
    assert (summary.steps, summary.steps_by, summary.launches) == (3, "program", 1)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (torch.nn.Linear(8, 4), torch.ones(6, 8)),
        (torch.nn.Conv2d(3, 4, 3), torch.ones(6, 3, 8, 8)),
        (torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 4)), torch.zeros(6, 5, dtype=torch.int64)),
    ],
)
def test_batch_is_what_the_first_layer_sees(model: torch.nn.Module, data: torch.Tensor) -> None:
    assert bringup.predict(model, data, chip="t4").samples == 6


def test_memory_peak_is_the_allocators() -> None:
    torch.chip.empty_cache()
    torch.chip.reset_peak_memory_stats()
    kept = torch.ones(1000, device="chip")
    before = kept.numel() * 4

    def program() -> None:
        x = torch.ones(1000, 1000, device="chip")
        y = x + 1
        del x
        y * 2

    trace = record(program)
    assert before > 0  # what was there before counts too
    assert bringup.price(trace, "t4").peak_bytes == torch.chip.max_memory_allocated()


def test_event_times_are_chip_time_while_recording() -> None:
    x = torch.ones(1024, 1024, device="chip")
    with bringup.record() as trace:
        start, end = (torch.Event("chip", enable_timing=True) for _ in range(2))
        start.record()
        x @ x
        end.record()
        end.synchronize()
        first = start.elapsed_time(end)
        start.record()
        x @ x
        end.record()
        end.synchronize()
        second = start.elapsed_time(end)
    seconds = bringup.price(trace, "edge8").timeline.prices.seconds[0]
    assert first * 1e-3 >= seconds
    assert second * 1e-3 == pytest.approx(seconds, rel=0.2)


def test_pricing_again_gives_the_same_numbers() -> None:
    x = torch.ones(64, 64, device="chip")
    trace = record(lambda: [(x @ x).relu().sum().item() for _ in range(5)])
    assert bringup.price(trace, "t4").summary == bringup.price(trace, "t4").summary


def test_predict_runs_once_and_moves_arguments() -> None:
    calls = []

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.device.type)
        return x @ x

    found = bringup.predict(function, torch.ones(128, 128), chip="h200-sxm")
    assert calls == ["chip"]
    assert found.chip == "h200-sxm"
    assert 0 < found.step_seconds < 1e-3
    assert found.trace.launches == found.launches == 1
    assert found.peak_bytes >= 2 * 128 * 128 * 4


def test_predict_of_a_function_that_launches_nothing_is_told() -> None:
    with pytest.raises(bringup.BringupError, match="launched nothing on the chip"):
        bringup.predict(lambda: torch.ones(2), chip="t4")


def test_predictions_are_near_published_measurements() -> None:
    from bringup.validation import error_band, measurements

    bands = {name: error_band(bringup.load_chip(name)) for name in {row.chip for row in measurements()}}
    assert len(bands) >= 12
    shown = [band.error for band in bands.values() if band.error is not None]
    assert len(shown) == len(bands) and np.mean(shown) < 0.2, bands


def test_what_ifs_never_make_a_step_slower() -> None:
    x = torch.ones(1024, 1024, device="chip")
    summary = bringup.price(record(lambda: [(x @ x).relu() for _ in range(10)]), "t4").summary
    assert {item.key for item in summary.what_if} == {"graph", "host", "link", "half", "bandwidth", "matrix"}
    assert {item.key: item.dtype for item in summary.what_if if item.dtype} == {"half": "float16"}
    assert all(item.step_seconds <= summary.step_seconds * 1.001 for item in summary.what_if)


def dispatching(**changes: Any) -> Host:
    """The default host with other times of launches."""
    data = host().model_dump()
    data["dispatch"] = {**data["dispatch"], "pointwise_us": 10.0, "matmul_us": 20.0, "view_us": 1.0, **changes}
    return Host.model_validate({**data, "invented": True})


def issued_us(function: Any, on: Host) -> float:
    """Microseconds until the host has issued what the function launches."""
    return float(replay(record(function), chip(launch={"queue_depth": 1000}), on).issued.max()) * 1e6


def test_launch_between_others_takes_longer_than_one_in_a_loop() -> None:
    x = torch.ones(16, device="chip")
    on = dispatching(launch_us=4.0, program=2.0)
    assert issued_us(lambda: [x + 1 for _ in range(3)], on) == pytest.approx(2 * 14 + 14 + 14)
    assert issued_us(lambda: (x + 1, x * 2, x + 1), on) == pytest.approx(3 * 2 * 14)


def test_further_kernels_of_a_call_take_the_driver_again() -> None:
    tensors = [torch.ones(1 << 20, device="chip") for _ in range(64)]  # 1,024 blocks of 65,536, 320 per kernel
    by_driver = issued_us(lambda: torch._foreach_mul_(tensors, 2.0), dispatching(launch_us=4.0, program=2.0))
    assert by_driver == pytest.approx(2 * 14 + 3 * 4)
    assert issued_us(lambda: torch._foreach_mul_(tensors, 2.0), dispatching()) == pytest.approx(10)


def test_families_have_their_own_times() -> None:
    x = torch.ones(16, 16, device="chip")
    on = dispatching(families={"softmax": 7.0, "reduction": 3.0})
    assert issued_us(lambda: (x.softmax(0), x.sum(), x @ x, x + 1), on) == pytest.approx(7 + 3 + 20 + 10)


def test_backward_launch_takes_its_node_too() -> None:
    x = torch.ones(16, device="chip", requires_grad=True)
    y, gradient = x * 2, torch.ones(16, device="chip")
    on = dispatching(backward=1.0, node_us=8.0, launch_us=4.0)
    assert issued_us(lambda: torch.autograd.grad(y, x, gradient), on) == pytest.approx(10 + 4 + 8)


def test_backward_of_a_family_has_its_own_time() -> None:
    x = torch.ones(1, 1, 8, 8, device="chip", requires_grad=True)
    y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device="chip"))
    gradient = torch.ones_like(y)
    on = dispatching(backward=1.0, node_us=8.0, backward_families={"convolution": 145.0})
    assert issued_us(lambda: torch.autograd.grad(y, x, gradient), on) == pytest.approx(145 + 8)


def test_optimizer_takes_time_for_every_tensor() -> None:
    tensors = [torch.ones(16, device="chip") for _ in range(5)]
    on = dispatching(tensor_us=0.5)
    assert issued_us(lambda: torch._foreach_mul_(tensors, 2.0), on) == pytest.approx(10 + 5 * 0.5)


def test_event_takes_the_host_time() -> None:
    def three_events() -> None:
        for _ in range(3):
            torch.Event("chip").record()

    assert issued_us(three_events, dispatching(event_us=8.0)) == pytest.approx(3 * 8)


def test_loop_of_an_optimizer_is_slow_in_its_first_round_only() -> None:
    def issued(tensors: int, program: float) -> float:
        parameters = [torch.nn.Parameter(torch.ones(4, device="chip")) for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        trace = record(torch.optim.SGD(parameters, momentum=0.9, foreach=False).step)
        dispatch = host().dispatch.model_copy(update={"program": program})
        machine = host().model_copy(update={"dispatch": dispatch})
        return float(replay(trace, bringup.load_chip("t4"), machine).issued.max())

    first = issued(1, 2.0) - issued(1, 1.0)
    assert first > 0
    assert issued(9, 2.0) - issued(9, 1.0) == pytest.approx(first)
