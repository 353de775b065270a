"""Work of launches: against torch's own flop formulas, and over torch's own operator database."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils.flop_counter import FlopCounterMode

import bringup
from bringup import pricing
from bringup.cost import family_of, work_of
from bringup.cost.normalization import BATCH_OFFSET, STEP_WAITS, STEP_WAITS_RMS
from bringup.cost.rules import rule
from bringup.recording.rows import LAUNCH


def matrix_flops(trace: bringup.Trace) -> float:
    works = [work_of(signature) for signature in trace.signatures]
    rows = trace.columns["signature"][trace.columns["kind"] == LAUNCH]
    return sum(sum(gemm.flops for gemm in works[i].gemms) for i in rows)


def training(device: str, *shapes: tuple[int, ...], function: object) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    function(*tensors).sum().backward()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.mm, [(5, 7), (7, 3)]),
        (torch.bmm, [(2, 5, 7), (2, 7, 3)]),
        (functional.linear, [(4, 5, 7), (3, 7), (3,)]),
        (torch.baddbmm, [(2, 5, 3), (2, 5, 7), (2, 7, 3)]),
        (functional.conv2d, [(2, 4, 9, 9), (6, 4, 3, 3)]),
        (lambda x, w: functional.conv_transpose2d(x, w, stride=2), [(2, 4, 5, 5), (4, 6, 3, 3)]),
        (functional.conv1d, [(2, 4, 9), (6, 4, 3)]),
    ],
)
def test_matrix_flops_are_those_of_torchs_flop_counter(function: object, shapes: list[tuple[int, ...]]) -> None:
    with bringup.record() as trace:
        training("chip", *shapes, function=function)
    with FlopCounterMode(display=False) as counter:
        training("cpu", *shapes, function=function)
    assert matrix_flops(trace) == counter.get_total_flops()


def test_grouped_convolution_counts_every_group_once() -> None:
    # torch's counter takes the filter's gradient of grouped convolutions as many times as there are groups.
    with bringup.record() as trace:
        training("chip", (2, 4, 9, 9), (6, 2, 3, 3), function=lambda x, w: functional.conv2d(x, w, groups=2))
    assert matrix_flops(trace) == 3 * (2 * 2 * 7 * 7 * 6 * 2 * 3 * 3)


def test_group_norm_reads_its_groups_in_sequence() -> None:
    norm = torch.nn.GroupNorm(4, 16, device="chip")
    x = torch.ones(2, 16, 32, 32, device="chip")
    with bringup.record() as trace:
        norm(x)
    work = work_of(trace.signatures[0])
    assert (work.kernels, work.chain) == (3, 4 * 32 * 32 / 512)  # four channels per group, 512 threads


@pytest.mark.parametrize(
    ("depthwise", "last", "apart"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_bias_of_a_convolution_is_apart_but_in_torchs_depthwise_kernel(
    depthwise: bool, last: bool, apart: bool
) -> None:
    layer = torch.nn.Conv2d(16, 16, 3, groups=16 if depthwise else 1, device="chip")
    x = torch.ones(2, 16, 34, 34, device="chip")
    with bringup.record() as trace:
        layer(x.to(memory_format=torch.channels_last) if last else x)
    (work,) = (work_of(item) for item in trace.signatures if "convolution" in item.op)
    assert work.bias_bytes == apart * 2 * 4 * 2 * 16 * 32 * 32  # result read and written
    prices = {}
    for name in ("t4", "tpu-v3"):
        (signature,) = (item for item in trace.signatures if "convolution" in item.op)
        table = pricing.WorkTable.from_signatures([signature])
        prices[name] = pricing.price_table(table, [signature], bringup.load_chip(name)).kernels[0]
    assert prices["t4"] - prices["tpu-v3"] == apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_layer_norms_parameters_step_through_rows(dtype: torch.dtype) -> None:
    """256 rows a step, whatever they hold; RMS norm has no mean to wait for."""
    with bringup.dry(), bringup.record() as trace:
        for norm in (nn.LayerNorm(8), nn.RMSNorm(8)):
            norm.to("chip", dtype)(torch.ones(513, 8, device="chip", dtype=dtype, requires_grad=True)).sum().backward()
    chains = {signature.base: work_of(signature).chain for signature in trace.signatures if "norm" in signature.base}
    assert chains["native_layer_norm_backward"] == pytest.approx(3 * STEP_WAITS)
    assert chains["_fused_rms_norm_backward"] == pytest.approx(3 * STEP_WAITS_RMS)


def test_batch_norm_in_inference_finds_each_element() -> None:
    x = torch.ones(2, 3, 4, 4, device="chip")
    with bringup.record() as trace:
        nn.BatchNorm2d(3).to("chip").eval()(x)
    assert [work_of(s).offsets for s in trace.signatures if "batch_norm" in s.base] == [BATCH_OFFSET * 96]


@pytest.mark.parametrize("fill", ["normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_"])
def test_random_fills_read_nothing(fill: str) -> None:
    x = torch.empty(64, device="chip")
    with bringup.record() as trace:
        getattr(x, fill)(*[0.5] if fill in ("bernoulli_", "geometric_") else [])
    works = [work_of(signature) for signature in trace.signatures]
    assert [(work.read_bytes, work.written_bytes) for work in works] == [(0, 256)]


def test_attention_counts_two_products_forward_and_five_backward() -> None:
    with bringup.record() as trace:
        training("chip", *[(2, 3, 16, 8)] * 3, function=functional.scaled_dot_product_attention)
    one = 2 * 2 * 3 * 16 * 16 * 8
    assert matrix_flops(trace) == 7 * one


def test_pointwise_reads_and_writes_once() -> None:
    x = torch.ones(100, device="chip")
    with bringup.record() as trace:
        x + x
    work = work_of(trace.signatures[0])
    assert (work.family, work.read_bytes, work.written_bytes, work.flops) == ("pointwise", 800, 400, 100)


def test_second_rule_for_an_operator_is_refused() -> None:
    assert family_of("aten::topk") == "sort"
    with pytest.raises(bringup.BringupError, match="topk already has a cost rule, in family sort"):
        rule("sort", "topk")(work_of)


def test_expanded_tensor_is_read_once() -> None:
    x, y = torch.ones(100, 1, device="chip").expand(100, 50), torch.ones(100, 50, device="chip")
    with bringup.record() as trace:
        y + x
    assert work_of(trace.signatures[0]).read_bytes == 4 * (100 * 50 + 100)


def test_embedding_reads_rows_not_the_table() -> None:
    table, ids = torch.ones(10000, 16, device="chip"), torch.zeros(5, dtype=torch.int64, device="chip")
    with bringup.record() as trace:
        functional.embedding(ids, table)
    work = work_of(trace.signatures[0])
    assert (work.family, work.read_bytes) == ("gather", 5 * 16 * 4 + 5 * 8)


def test_optimizer_step_is_one_launch_per_list() -> None:
    parameters = [torch.nn.Parameter(torch.ones(10, device="chip")) for _ in range(30)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with bringup.record() as trace:
        optimizer.step()
    assert trace.launches == 1
    work = work_of(trace.signatures[0])
    assert (work.family, work.written_bytes) == ("optimizer", 30 * 10 * 4)


@pytest.mark.filterwarnings("ignore")
def test_nearly_every_operator_of_torchs_database_has_a_rule() -> None:
    launches: Counter[str] = Counter()
    with bringup.record() as trace:
        for op in op_db:
            if (
                torch.float32 not in op.dtypes
                or "sparse" in op.name
                or op.name.startswith("jiterator")
                or op.name.startswith("_refs")
            ):
                continue
            sample = next(iter(op.sample_inputs("cpu", torch.float32)), None)
            if sample is None:
                continue
            moved = sample.transform(lambda x: x.to("chip") if isinstance(x, torch.Tensor) else x)
            try:
                op(moved.input, *moved.args, **moved.kwargs)
            except (RuntimeError, NotImplementedError, TypeError):
                continue  # what an operator refuses is the conformance suite's business
    for i in trace.columns["signature"][trace.columns["kind"] == LAUNCH]:
        signature = trace.signatures[i]
        launches[signature.op.split(".")[0] if work_of(signature).family == "other" else ""] += 1
    total, known = sum(launches.values()), launches.pop("")
    assert total > 1000
    assert known / total >= 0.98, launches.most_common(30)


def test_every_work_is_finite() -> None:
    x = torch.ones(3, 4, device="chip")
    with bringup.record() as trace:
        x.sort(), x.topk(2), x.cumsum(0), x.softmax(1), torch.fft.fft(x), torch.linalg.svd(x), x[:0].sum(), x.flip(0)
    for signature in trace.signatures:
        work = work_of(signature)
        assert all(math.isfinite(value) and value >= 0 for value in (work.flops, work.bytes, work.items)), signature.op


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_product_has_a_product_per_group_except_in_bfloat16(dtype: torch.dtype) -> None:
    with bringup.dry(), bringup.record() as trace:
        rows, weights = (
            torch.empty(64, 32, dtype=dtype, device="chip"),
            torch.empty(4, 32, 16, dtype=dtype, device="chip"),
        )
        ends = torch.arange(16, 65, 16, dtype=torch.int32, device="chip")
        torch._grouped_mm(rows, weights, offs=ends)
    (work,) = (work_of(item) for item in trace.signatures if "_grouped_mm" in item.op)
    sizes = [(gemm.batch, gemm.m, gemm.n, gemm.k) for gemm in work.gemms]
    assert sizes == ([(4, 16, 16, 32)] if dtype == torch.bfloat16 else 4 * [(1, 16, 16, 32)])
    assert work.kernels == (2 if dtype == torch.bfloat16 else 4)
