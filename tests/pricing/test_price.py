"""Which dtypes a chip supports, and at which rates."""

import math
from dataclasses import replace

import pytest
import torch

import bringup
from bringup import pricing
from bringup.cost import family_of
from bringup.cost.signature import Signature, Tensor
from bringup.cost.work_table import WorkTable
from bringup.machine.vocabulary import ITEM_BYTES
from bringup.pricing.tiles import AT_ONCE

FLOAT8_CHIPS = [name for name in bringup.available_chips() if "float8_e4m3fn" in bringup.load_chip(name).matrix.tflops]
PEAKS = [
    (name, dtype)
    for name in bringup.available_chips()
    for dtype in bringup.load_chip(name).matrix.tflops
    if dtype in ITEM_BYTES  # tf32 is a mode of float32
]


def product(op: str, side: int, dtype: str, result: str) -> Signature:
    first = Tensor(dtype, (side, side), (side, 1), 0)
    second = Tensor(dtype, (side, side), (1, side), 1)
    outputs = (Tensor(result, (side, side), (side, 1), written=True),)
    return Signature(op, (first, second), outputs, {"self": first, "mat2": second})


def cast(op: str, source: str, target: str) -> Signature:
    data = Tensor(source, (1024, 1024), (1024, 1), 0)
    return Signature(op, (data,), (Tensor(target, (1024, 1024), (1024, 1), written=True),), {"self": data})


def prices(chip: bringup.Chip, *signatures: Signature) -> pricing.Prices:
    return pricing.price_table(WorkTable.from_signatures(signatures), signatures, chip)


@pytest.mark.parametrize(("name", "dtype"), PEAKS)
def test_dtype_with_a_matrix_peak_is_supported_in_products_casts_and_copies(name: str, dtype: str) -> None:
    chip = bringup.load_chip(name)
    wide = "int32" if dtype == "int8" else "float32"
    launches = (
        product("aten::mm", 8192, dtype, wide),
        product("aten::_scaled_mm", 8192, dtype, "bfloat16"),
        cast("aten::_to_copy", "float32", dtype),
        cast("aten::_to_copy", dtype, "float32"),
        cast("aten::copy_", dtype, dtype),
        cast("prims::convert_element_type", dtype, "float32"),
    )
    priced = prices(chip, *launches)
    assert priced.supported.tolist() == [True] * len(launches)
    peak = chip.matrix.tflops[dtype] * 1e12
    sustained = chip.library.sustained.get(dtype, pricing.matrix_sustained(chip))
    assert pricing.matrix_rate(chip, dtype) == peak * sustained
    assert priced.engines[pricing.ENGINES.index("matrix"), 0] > 2 * 8192**3 / peak


@pytest.mark.parametrize("name", FLOAT8_CHIPS)
def test_all_float8_formats_share_one_rate(name: str) -> None:
    chip = bringup.load_chip(name)
    formats = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    priced = prices(chip, *(product("aten::_scaled_mm", 4096, dtype, "bfloat16") for dtype in formats))
    assert priced.supported.all()
    assert len(set(priced.seconds.tolist())) == 1


def test_dtype_without_a_peak_falls_back_and_arithmetic_in_float8_does_too() -> None:
    t4, gaudi = bringup.load_chip("t4"), bringup.load_chip("gaudi2")
    assert prices(t4, product("aten::_scaled_mm", 64, "float8_e4m3fn", "bfloat16")).supported.tolist() == [False]
    assert not gaudi.supports("aten::add.Tensor", "pointwise", "float8_e4m3fn")
    assert not gaudi.supports("aten::mm", "matmul", "float8_e8m0fnu")  # the format of scales


def test_group_of_dtypes_decides_alone() -> None:
    chip = bringup.load_chip("gaudi2")
    ops = chip.ops.model_copy(update={"groups": {"matmul": ["bfloat16"]}})
    chip = chip.model_copy(update={"ops": ops})
    assert not chip.supports("aten::_scaled_mm", "matmul", "float8_e4m3fn")
    assert chip.supports("aten::_scaled_mm", "matmul", "bfloat16")


def test_scaled_product_runs_on_a_chip_with_float8() -> None:
    x = torch.randn(32, 64, device="chip")
    w = torch.randn(16, 64, device="chip")
    one = torch.ones((), device="chip")
    with bringup.record() as trace:
        torch._scaled_mm(x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn).t(), one, one, out_dtype=torch.bfloat16)
    assert bringup.price(trace, chip="h100-sxm").summary.fallbacks == []
    assert [item.op for item in bringup.price(trace, chip="t4").summary.fallbacks] == ["aten::_scaled_mm"]


@pytest.mark.parametrize("name", ["and", "or", "xor", "lshift", "rshift"])
def test_operators_of_bits_in_place_are_pointwise(name: str) -> None:
    assert family_of(f"aten::__{name}__.Scalar") == family_of(f"aten::__i{name}__.Tensor") == "pointwise"


def test_unaligned_product_has_the_rate_of_the_chip_file() -> None:
    chip = bringup.load_chip("h100-sxm")
    priced = prices(
        chip, product("aten::mm", 4095, "bfloat16", "bfloat16"), product("aten::mm", 4096, "bfloat16", "bfloat16")
    )
    unaligned, aligned = priced.engines[pricing.ENGINES.index("matrix")]
    assert unaligned == pytest.approx(aligned / chip.library.unaligned["bfloat16"], rel=0.1)
    # A chip file without the rate has none for either.
    unaligned, aligned = prices(
        bringup.load_chip("a100-sxm-80"),
        product("aten::mm", 4095, "bfloat16", "bfloat16"),
        product("aten::mm", 4096, "bfloat16", "bfloat16"),
    ).engines[pricing.ENGINES.index("matrix")]
    assert unaligned == pytest.approx(aligned, rel=0.1)


def test_attention_with_a_mask_does_not_hide_its_softmax() -> None:
    data = Tensor("bfloat16", (1, 16, 4096, 128), (16 * 4096 * 128, 4096 * 128, 128, 1), 0)
    mask = Tensor("bfloat16", (1, 1, 4096, 4096), (4096**2, 4096**2, 4096, 1), 1)
    args = {"query": data, "key": data, "value": data}
    op = "aten::scaled_dot_product_attention"
    plain = Signature(op, (data,), (data,), args)
    masked = Signature(op, (data, mask), (data,), args | {"attn_mask": mask})
    seconds = prices(bringup.load_chip("h100-sxm"), plain, masked).seconds
    assert seconds[1] > 1.2 * seconds[0]


def heads(rows: int, dtype: str = "bfloat16", *, causal: bool = False) -> Signature:
    data = Tensor(dtype, (1, 16, rows, 128), (16 * rows * 128, rows * 128, 128, 1), 0)
    args = {"query": data, "key": data, "value": data, "is_causal": causal}
    return Signature("aten::scaled_dot_product_attention", (data,), (data,), args)


def test_causal_attention_computes_whole_blocks_on_the_diagonal() -> None:
    columns = {rows: heads(rows, causal=True).work.gemms[0].n for rows in (64, 128, 256, 4096)}
    assert columns == {64: 64, 128: 128, 256: 192, 4096: 2112}
    assert heads(4096).work.gemms[0].n == 4096


def test_softmax_runs_beside_the_products_of_attention_where_the_chip_file_says_so() -> None:
    chip = bringup.load_chip("h100-sxm")
    serial = chip.model_copy(update={"library": chip.library.model_copy(update={"softmax_overlap": 1.0})})
    assert prices(serial, heads(8192)).seconds[0] > 1.15 * prices(chip, heads(8192)).seconds[0]
    assert prices(serial, heads(8192, "float32")).seconds[0] == prices(chip, heads(8192, "float32")).seconds[0]


def test_attention_kept_from_cudnn_runs_at_the_rate_of_torchs_own_kernels() -> None:
    chip = bringup.load_chip("h100-sxm")
    chosen, own = heads(8192), replace(heads(8192), cudnn=False)
    flops = 4 * 16 * 8192 * 8192 * 128
    seconds = prices(chip, chosen, own).seconds
    assert seconds[0] < seconds[1]
    assert flops / seconds[1] == pytest.approx(0.35 * 989e12, rel=0.05)


def test_attention_of_many_short_sequences_pays_for_every_wave_of_tiles() -> None:
    chip = bringup.load_chip("a100-sxm-80")
    query = Tensor("bfloat16", (2048, 8, 1, 64), (512, 64, 64, 1), 0)
    op = "aten::scaled_dot_product_attention"
    short = Signature(op, (query,), (query,), {"query": query, "key": query, "value": query})
    waves = math.ceil(2048 * 8 / chip.compute.cores)
    least = waves * pricing.DEFAULT.tile_cycles * 1e-9 / chip.compute.clock_ghz
    assert prices(chip, short).seconds[0] > least


def convolution(channels: int, window: int, stride: int, *, last: bool = True) -> Signature:
    def tensor(shape: tuple[int, int, int, int], storage: int) -> Tensor:
        _, c, h, w = shape
        strides = (c * h * w, 1, w * c, c) if last else (c * h * w, h * w, w, 1)
        return Tensor("bfloat16", shape, strides, storage)

    data, weight = tensor((32, channels, 64, 64), 0), tensor((256, channels, window, window), 1)
    result = tensor((32, 256, 64 // stride, 64 // stride), 2)
    args = {"input": data, "weight": weight, "stride": [stride, stride]}
    return Signature("aten::convolution", (data, weight), (result,), args)


def test_strided_window_of_one_pixel_skips_pixels() -> None:
    assert convolution(256, 1, 1).work.read_bytes == convolution(256, 1, 1).read_bytes
    data = 2 * 32 * 256 * 64 * 64
    strided = convolution(256, 1, 2)
    assert strided.read_bytes - strided.work.read_bytes == data * 3 / 4
    strided = convolution(256, 1, 2, last=False)  # every second pixel of a row lies between others
    assert strided.read_bytes - strided.work.read_bytes == data / 2


def test_convolution_of_few_channels_is_unaligned_and_fills_them_up() -> None:
    image = convolution(3, 7, 2, last=False).work
    assert not image.aligned
    assert convolution(64, 7, 2).work.aligned
    pixels, filters = 2 * 32 * 64 * 64, 2 * 256 * 7 * 7  # bytes of one channel
    result = 2 * 32 * 256 * 32 * 32
    # 3 channels are read, 8 cleared and written.
    assert image.converted_bytes == (3 + 2 * 8) * (pixels + filters) + 2 * result


def test_float32_convolution_of_channels_last_converts_to_channels_first() -> None:
    """Data and result are converted, and filters with windows; a library with both layouts converts nothing."""

    def plain(window: int) -> Signature:
        last = convolution(64, window, 1)
        data, weight, result = (replace(t, dtype="float32") for t in (*last.tensors, *last.results))
        return Signature("aten::convolution", (data, weight), (result,), {**last.args, "weight": weight}, tf32=())

    chip = bringup.load_chip("t4")
    both = chip.model_copy(update={"library": chip.library.model_copy(update={"channels_first": {}})})
    for window, filters in ((1, 0), (3, 1)):
        signature = plain(window)
        data, weight, result = (t.nbytes for t in (*signature.tensors, *signature.results))
        moved = 2 * (data + filters * weight + result)
        assert signature.work.converted_bytes == moved
        converting, other = prices(chip, signature), prices(both, signature)
        assert converting.kernels[0] - other.kernels[0] == 2 + filters
        seconds = converting.seconds[0] - other.seconds[0]
        assert seconds == pytest.approx(moved / pricing.rates.memory_rate(chip), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_librarys_depthwise_kernels_have_the_rate_of_their_dtype(dtype: str) -> None:
    data = Tensor(dtype, (32, 384, 14, 14), (75264, 1, 5376, 384), 0)
    weight = Tensor(dtype, (384, 1, 7, 7), (49, 49, 7, 1), 1)
    signature = Signature(
        "aten::convolution", (data, weight), (replace(data, storage=2),), {"weight": weight, "groups": 384}
    )
    chip = bringup.load_chip("h100-sxm")
    flops = 2 * 49 * data.numel
    (vector,) = prices(chip, signature).engines[pricing.ENGINES.index("vector")]
    assert vector == pytest.approx(flops / (67e12 * chip.library.depthwise_channels_last[dtype]))


def test_gradient_of_a_filter_has_the_rate_of_the_chip_file() -> None:
    chip = bringup.load_chip("h100-sxm")
    forward = convolution(256, 3, 1)
    data, weight = forward.tensors
    (result,) = forward.results
    args = {"stride": [1, 1], "output_mask": [False, True, False]}
    backward = Signature("aten::convolution_backward", (result, data, weight), (weight,), args)
    assert [gemm.gathers for gemm in backward.work.gemms] == [True]
    ahead, back = prices(chip, forward, backward).engines[pricing.ENGINES.index("matrix")]
    assert back == pytest.approx(ahead / chip.library.filter_gradient, rel=0.25)
    assert not convolution(256, 1, 1).work.gemms[0].gathers


def test_small_float32_product_waits_for_every_step_along_k() -> None:
    chip = bringup.load_chip("h100-sxm")
    without = chip.model_copy(update={"library": chip.library.model_copy(update={"vector_step": None})})
    small, large = product("aten::mm", 256, "float32", "float32"), product("aten::mm", 8192, "float32", "float32")
    slow, fast = prices(chip, small, large).seconds, prices(without, small, large).seconds
    assert slow[0] > 1.2 * fast[0]
    assert slow[1] == pytest.approx(fast[1], rel=0.01)


def test_float32_convolution_does_not_divide_k_between_cores() -> None:
    def small(dtype: str) -> Signature:  # 49 pixels and 512 filters: 32 tiles of 32 x 32 for 132 cores
        data = Tensor(dtype, (1, 512, 7, 7), (25088, 49, 7, 1))
        weight = Tensor(dtype, (512, 512, 3, 3), (4608, 9, 3, 1))
        return Signature("aten::convolution", (data, weight), (data,), {"weight": weight, "stride": [1, 1]}, tf32=())

    chip = bringup.load_chip("h100-sxm")
    (seconds,) = prices(chip, small("float32")).seconds
    cycles = 4608 * chip.library.vector_step
    assert seconds > cycles * 1e-9 / chip.compute.clock_ghz  # every tile waits for all steps along k
    assert small("float32").work.gemms[0].whole


def test_float32_product_is_divided_while_few_cores_have_a_tile() -> None:
    chip = bringup.load_chip("h100-sxm")
    wait = chip.library.vector_step * 1e-9 / chip.compute.clock_ghz

    def seconds(rows: int, columns: int, k: int) -> float:
        first, second = Tensor("float32", (rows, k), (k, 1)), Tensor("float32", (k, columns), (columns, 1))
        args = {"self": first, "mat2": second}
        result = Tensor("float32", (rows, columns), (columns, 1))
        return float(prices(chip, Signature("aten::mm", (first, second), (result,), args)).seconds[0])

    assert seconds(64, 6144, 3072) > 3072 * wait  # 96 tiles of 64 x 64 occupy over half of 132 cores
    assert seconds(64, 384, 3072) < 3072 * wait  # 24 tiles do not
    assert seconds(32, 32, 100000) < 100000 * wait / 30  # one tile
    assert seconds(8, 3072, 3072) < 3072 * wait  # 4 warps of a tile divide k


def matrices(m: int, n: int, k: int, *, dtype: str = "bfloat16", outer: bool = False, batch: int = 0) -> Signature:
    first = Tensor(dtype, (m, k), (1, m) if outer else (k, 1), 0)
    second, result = Tensor(dtype, (k, n), (n, 1), 1), Tensor(dtype, (m, n), (n, 1), written=True)
    if batch:
        first, second, result = (
            Tensor(dtype, (batch, *t.shape), (t.shape[0] * t.shape[1], *t.strides), i)
            for i, t in enumerate((first, second, result))
        )
    op = "aten::bmm" if batch else "aten::mm"
    tf32 = ("matmul",) if dtype == "float32" else ()
    return Signature(op, (first, second), (result,), {"self": first, "mat2": second}, tf32=tf32)


def test_tiles_of_a_cluster_load_their_common_operand_once() -> None:
    chip = bringup.load_chip("h100-sxm")
    alone = chip.model_copy(update={"library": chip.library.model_copy(update={"cluster": {}})})
    half = matrices(512, 4096, 4096)  # tiles of 128 x 128 are fed by the cache, not limited by their arithmetic
    assert prices(chip, half).seconds[0] < 0.9 * prices(alone, half).seconds[0]
    single = matrices(512, 4096, 4096, dtype="float32")  # the chip file has no clusters for TF32
    assert prices(chip, single).seconds[0] == prices(alone, single).seconds[0]


def test_product_fills_its_cores_before_it_overlaps_with_memory() -> None:
    chip = bringup.load_chip("h100-sxm")
    (seconds,) = prices(chip, matrices(1, 16384, 4096)).seconds
    streamed = 2 * 16384 * 4096 / pricing.memory_rate(chip) / pricing.DEFAULT.streams_matmul
    assert (
        seconds > streamed + pricing.launch_seconds(chip) + pricing.DEFAULT.tile_cycles * 1e-9 / chip.compute.clock_ghz
    )


def test_tiles_are_chosen_so_that_enough_cores_read_memory() -> None:
    chip = bringup.load_chip("h100-sxm")
    priced = prices(chip, *(matrices(2, n, 4096) for n in (4096, 6144, 14336)))
    assert (priced.share > pricing.DEFAULT.cores_for_bandwidth).all()


def test_products_are_priced_as_alone_however_many_there_are() -> None:
    chip = bringup.load_chip("h100-sxm")
    launches = [product("aten::mm", side, "float32", "float32") for side in range(1, AT_ONCE + 20)]
    together = prices(chip, *launches).seconds
    for place in (0, AT_ONCE - 1, AT_ONCE, AT_ONCE + 18):
        assert together[place] == prices(chip, launches[place]).seconds[0]


def test_short_tiles_fill_while_others_compute() -> None:
    chip = bringup.load_chip("h100-sxm")
    (seconds,) = prices(chip, matrices(32, 32, 64, batch=4096)).seconds
    waves = 4096 / chip.compute.cores
    assert seconds < 0.5 * waves * pricing.DEFAULT.tile_cycles * 1e-9 / chip.compute.clock_ghz


def test_product_over_the_outer_dimension_of_both_factors_is_slower_in_tf32() -> None:
    chip = bringup.load_chip("h100-sxm")
    for dtype, ratio in (("float32", chip.library.outer["tf32"]), ("bfloat16", 1.0)):
        plain, gradient = (matrices(4096, 4096, 4096, dtype=dtype, outer=outer) for outer in (False, True))
        assert not plain.work.gemms[0].outer
        assert gradient.work.gemms[0].outer
        forward, backward = prices(chip, plain, gradient).seconds
        assert forward / backward == pytest.approx(ratio, rel=0.1)
