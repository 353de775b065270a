"""What PyTorch programs do with a device, each feature once."""

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import bringup


def both(function: Callable[..., Any], *tensors: torch.Tensor, **tolerances: float) -> None:
    """Run on the CPU and on chip from the same seed; compare."""
    torch.manual_seed(0)
    expected = function(*tensors)
    torch.manual_seed(0)
    found = function(*[tensor.to("chip") for tensor in tensors])
    assert found.device.type == "chip"
    torch.testing.assert_close(found.cpu(), expected, **tolerances)


def test_transforms_of_functions() -> None:
    x = torch.arange(6.0).view(2, 3)
    both(torch.vmap(lambda row: (row * row).sum()), x)
    both(torch.func.jacrev(lambda v: v.sin().sum(0)), x)
    both(torch.func.hessian(lambda v: (v**3).sum()), x)
    both(lambda v: torch.func.jvp(torch.sin, (v,), (torch.ones_like(v),))[1], x)
    both(torch.vmap(torch.func.grad(lambda row: row.tanh().sum())), x)


def test_forward_mode_and_double_backward() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones(3, device="chip"), torch.ones(3, device="chip"))
        assert torch.autograd.forward_ad.unpack_dual(dual @ dual).tangent.item() == 6
    x = torch.tensor([2.0], device="chip", requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.item() == 12


def test_autocast_policies() -> None:
    linear, x = nn.Linear(4, 4).to("chip"), torch.randn(2, 4, device="chip")
    with torch.autocast("chip", dtype=torch.bfloat16):
        y = linear(x)
        assert y.dtype == torch.bfloat16
        assert functional.softmax(y, -1).dtype == torch.float32
        assert y.sum().dtype == torch.float32
        assert torch.addcmul(x, y, y).dtype == torch.float32
        assert torch.relu(y).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="unsafe under autocast"):
            functional.binary_cross_entropy(y.sigmoid(), y.sigmoid())
    y.float().sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.dtype == torch.float32
    with torch.autocast("chip"):
        assert linear(x).dtype == torch.get_autocast_dtype("chip") == torch.float16


def test_gradient_scaler_skips_an_overflow() -> None:
    parameter = nn.Parameter(torch.ones(2, device="chip"))
    optimizer, scaler = torch.optim.SGD([parameter], lr=1.0), torch.amp.GradScaler("chip", init_scale=4.0)
    scaler.scale((parameter * torch.tensor([1.0, float("inf")], device="chip")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert parameter.tolist() == [1, 1]


def test_random_numbers_are_seeded_and_equal_the_cpus() -> None:
    for draw in (torch.randn, torch.rand):
        torch.manual_seed(3)
        on_chip = draw(50, device="chip")
        torch.manual_seed(3)
        assert torch.equal(on_chip.cpu(), draw(50))
    state = torch.chip.get_rng_state()
    first = torch.randperm(10, device="chip")
    torch.chip.set_rng_state(state)
    assert torch.equal(first, torch.randperm(10, device="chip"))
    torch.chip.manual_seed(5)
    assert torch.chip.initial_seed() == 5
    assert len(torch.chip.get_rng_state_all()) == 2
    with torch.random.fork_rng(devices=[0], device_type="chip"):
        torch.manual_seed(1)
    assert torch.chip.initial_seed() == 5


def test_generator_objects() -> None:
    generator = torch.Generator(device="chip").manual_seed(1)
    assert generator.device == torch.device("chip:0")
    first = torch.randn(3, generator=generator, device="chip")
    state = generator.get_state()
    second = torch.randn(3, generator=generator, device="chip")
    generator.set_state(state)
    assert torch.equal(second, torch.randn(3, generator=generator, device="chip"))
    assert torch.equal(first, torch.randn(3, generator=generator.manual_seed(1), device="chip"))
    with pytest.raises(RuntimeError, match="Expected a 'chip' device type for generator but found 'cpu'"):
        torch.randn(3, device="chip", generator=torch.Generator())


def test_random_numbers_follow_the_order_of_launches_over_streams() -> None:
    def draws() -> list[float]:
        torch.manual_seed(0)
        streams = [torch.chip.Stream() for _ in range(3)]
        found = []
        for number in range(30):
            with torch.chip.stream(streams[number % 3]):
                found.append(torch.rand(1000, device="chip").sum())
        torch.chip.synchronize()
        return [value.item() for value in found]

    assert draws() == draws()


def test_dropout_uses_the_chips_generator() -> None:
    x = torch.ones(1000, device="chip")
    torch.manual_seed(0)
    first = functional.dropout(x, 0.3)
    torch.rand(3)  # the CPU's generator does not matter
    torch.chip.manual_seed(0)
    assert torch.equal(first, functional.dropout(x, 0.3))
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]


def test_save_and_load_across_devices(tmp_path: Path) -> None:
    model = nn.Linear(3, 3).to("chip:1")
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    assert torch.load(path)["weight"].device == torch.device("chip:1")
    assert torch.load(path, map_location="cpu")["weight"].device.type == "cpu"
    assert torch.load(path, map_location="chip:0")["weight"].device == torch.device("chip:0")
    assert torch.load(path, map_location={"chip:1": "chip:0"})["weight"].device == torch.device("chip:0")
    torch.save(torch.ones(2), path)
    assert torch.load(path, map_location="chip").device.type == "chip"
    assert torch.load(path, mmap=True, map_location="chip").tolist() == [1, 1]
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=False)
    assert torch.load(path, map_location="chip").tolist() == [1, 1]


def test_copies_of_tensors_and_modules() -> None:
    model = nn.Linear(3, 3).to("chip")
    twin = copy.deepcopy(model)
    assert twin.weight.device.type == "chip" and torch.equal(twin.weight, model.weight)
    again = pickle.loads(pickle.dumps(model.weight))
    assert isinstance(again, nn.Parameter) and torch.equal(again, model.weight)
    buffer = io.BytesIO()
    torch.save(copy.copy(model), buffer)
    shared = torch.arange(4, device="chip")
    pair = copy.deepcopy([shared, shared[1:]])
    pair[0].fill_(9)
    assert pair[1].tolist() == [9, 9, 9]


def test_module_to_chip_keeps_its_parameters() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.to("chip")
    before = model.weight.clone()
    model(torch.ones(1, 2, device="chip")).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)
    assert model.cpu().weight.device.type == "cpu"


def test_memory_is_shared_within_the_process_only() -> None:
    x, model = torch.ones(3, device="chip"), nn.Linear(2, 2).to("chip")
    assert x.share_memory_() is x and x.is_shared()  # as on CUDA, it does nothing
    model.share_memory()
    for tensor in (x, model.weight):
        with pytest.raises(bringup.BringupError, match="cannot be sent to another process"):
            ForkingPickler.dumps(tensor)


def test_dlpack_stays_inside_torch() -> None:
    x = torch.arange(3.0, device="chip")
    assert torch.from_dlpack(x).tolist() == [0, 1, 2]
    with pytest.raises((RuntimeError, BufferError), match=r"[Uu]nsupported device"):
        numpy.from_dlpack(x)
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        numpy.asarray(x)


def test_custom_operator_with_autograd() -> None:
    @torch.library.custom_op("bringup_tests::twice", mutates_args=(), device_types="cpu")
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    twice.register_autograd(lambda context, gradient: gradient * 2)
    x = torch.ones(3, device="chip", requires_grad=True)
    y = twice(x)
    y.sum().backward()
    assert y.tolist() == [2, 2, 2] and x.grad is not None and x.grad.tolist() == [2, 2, 2]


def test_custom_operator_without_fake_kernel_and_with_own_kernel_for_chip() -> None:
    @torch.library.custom_op("bringup_tests::plus", mutates_args=(), device_types="cpu")
    def plus(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    assert plus(torch.zeros(2, device="chip")).tolist() == [1, 1]

    @plus.register_kernel("chip")
    def _(x: torch.Tensor) -> torch.Tensor:
        return x + 100

    assert plus(torch.zeros(2, device="chip")).tolist() == [100, 100]


def test_custom_operator_that_mutates() -> None:
    @torch.library.custom_op("bringup_tests::bump", mutates_args={"x"}, device_types="cpu")
    def bump(x: torch.Tensor) -> None:
        x.numpy()[:] += 1

    x = torch.zeros(2, device="chip")
    bump(x)
    bump(x)
    assert x.tolist() == [2, 2]


def test_fake_and_meta_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(), torch.device("chip"):
        y = nn.Linear(3, 5)(torch.empty(2, 3))
        assert (y.device.type, y.shape) == ("chip", (2, 5))
    assert nn.Linear(3, 3, device="meta").to_empty(device="chip").weight.device.type == "chip"


def test_default_device() -> None:
    with torch.device("chip"):
        assert torch.randn(3).device.type == torch.arange(3).device.type == nn.Linear(1, 1).weight.device.type == "chip"
        assert (torch.randn(4) * torch.arange(4)).softmax(0).device.type == "chip"
    torch.set_default_device("chip")
    try:
        assert torch.ones(2).device.type == "chip"
    finally:
        torch.set_default_device(None)


def test_hooks_and_checkpointing() -> None:
    seen: list[torch.Tensor] = []
    x = torch.ones(3, device="chip", requires_grad=True)
    x.register_hook(seen.append)
    (x * 3).sum().backward()
    assert seen[0].tolist() == [3, 3, 3]
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).to("chip")
    x = torch.randn(3, 4, device="chip", requires_grad=True)
    gradients = []
    for reentrant in (True, False, None):
        model.zero_grad()
        torch.manual_seed(0)
        y = model(x) if reentrant is None else torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        y.sum().backward()
        gradients.append(model[0].weight.grad)
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[2])


def test_two_devices() -> None:
    a = torch.arange(6.0, device="chip:0").view(2, 3)
    b = a.t().to("chip:1", torch.float64)
    assert b.device.index == 1 and torch.equal(b.cpu(), a.cpu().t().double())
    a.copy_(b.t())
    with torch.chip.device(1):
        assert torch.ones(1, device="chip").device.index == torch.chip.current_device() == 1
    assert torch.chip.current_device() == 0
    first, second = nn.Linear(3, 3).to("chip:0"), nn.Linear(3, 3).to("chip:1")
    second(first(torch.randn(2, 3, device="chip:0")).to("chip:1")).sum().backward()
    assert first.weight.grad is not None and first.weight.grad.device.index == 0


def test_copies_between_devices_follow_the_work_before() -> None:
    for _ in range(20):
        a = torch.full((200, 200), 1.0, device="chip:0")
        b = (a @ a).to("chip:1")
        del a
        torch.zeros(200, 200, device="chip:0")  # may take the memory that the copy reads
        assert b.min().item() == b.max().item() == 200


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules(cell: Any) -> None:
    torch.manual_seed(0)
    model = cell(4, 5, 2, batch_first=True, bidirectional=True)
    twin = copy.deepcopy(model).to("chip")
    x = torch.randn(3, 6, 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 2]), batch_first=True)
    for on_cpu, on_chip in ((x, x.to("chip")), (packed, packed.to("chip"))):
        expected, found = model(on_cpu)[0], twin(on_chip)[0]
        expected, found = (getattr(y, "data", y) if not isinstance(y, torch.Tensor) else y for y in (expected, found))
        torch.testing.assert_close(found.cpu(), expected)
        expected.sum().backward()
        found.sum().backward()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_fused_kernel_takes_masks_whose_rows_are_not_dense(compiled: bool) -> None:
    """As in transformers' bidirectional masks: the rows of a padding mask, expanded over keys, have stride 0."""

    def attend(q: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, q, q, attn_mask=allowed)

    q, allowed = torch.randn(2, 2, 33, 16), torch.ones(2, 1, 33, 1, dtype=torch.bool).expand(2, 1, 33, 33)
    expected, run = attend(q, allowed), torch.compile(attend) if compiled else attend
    q, allowed = q.to("chip"), torch.ones(2, 1, 33, 1, dtype=torch.bool, device="chip").expand(2, 1, 33, 33)
    for mask, is_fused in ((allowed, False), (allowed.contiguous(), True)):
        run(q, mask)
        with bringup.record() as trace:
            found = run(q, mask)
        torch.testing.assert_close(found.cpu(), expected)
        named = str(trace.signature_data)
        assert ("_scaled_dot_product" in named) == is_fused and ("bmm" in named) != is_fused


def test_attention_takes_the_fused_kernel() -> None:
    q = torch.randn(2, 2, 64, 16)
    both(lambda q: functional.scaled_dot_product_attention(q, q, q, is_causal=True), q)
    both(lambda q: functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(64, 64, device=q.device)), q)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).to("chip").eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 8, device="chip")).shape == (2, 3, 8)
        attention = nn.MultiheadAttention(128, 4, batch_first=True).to("chip").eval()
        for rows in (8, 32, 64):  # torch's meta kernel promises weights that were not asked for
            data = torch.randn(4, rows, 128, device="chip")
            result, weights = attention(data, data, data, need_weights=False)
            assert result.sum().isfinite() and weights is None


def test_indexing_and_printing() -> None:
    x = torch.arange(12.0, device="chip").view(3, 4)
    assert x[x > 9].tolist() == [10, 11]
    assert x[:, [0, 1]].shape == (3, 2)
    assert x[torch.tensor([0, 2]), 1].tolist() == [1, 9]  # indices on the CPU are legal
    x[x > 9] = 0
    x[torch.tensor([0, 1])] = torch.ones(2, 4, device="chip")
    assert x.sum().item() == 8 + 8 + 9
    assert f"{x[0, 0]:.1f}" == "1.0" and bool(x[0, 0]) and int(x[2, 1]) == 9
    assert "device='chip:0'" in repr(x)
    assert (x.is_chip, x.chip().device.type, nn.Linear(1, 1).chip().weight.device.type) == (True, "chip", "chip")


def test_complex_and_conjugate_views() -> None:
    z = torch.randn(3, 4, dtype=torch.complex64)
    both(lambda z: z.conj() @ z.t(), z)
    both(lambda z: torch.view_as_real(z).sum(-1), z)
    both(lambda z: z.conj().imag, z)
    assert torch.equal(z.to("chip").conj().cpu(), z.conj())
    target = torch.empty(4, 3, dtype=torch.complex64, device="chip")
    target.copy_(z.t().conj())
    assert torch.equal(target.cpu(), z.t().conj())


def test_sparse_tensors() -> None:
    dense = torch.eye(4)
    coo = dense.to_sparse().to("chip")
    assert coo.is_sparse and coo.device.type == "chip"
    assert torch.equal((coo @ torch.ones(4, 4, device="chip")).cpu(), torch.ones(4, 4))
    assert torch.equal(coo.to_dense().cpu(), dense)
    assert torch.equal(torch.eye(3, device="chip").to_sparse().coalesce().indices().cpu(), torch.arange(3).repeat(2, 1))
    csr = dense.to("chip").to_sparse_csr()
    assert csr.layout == torch.sparse_csr and csr.crow_indices().device.type == "chip"
    assert torch.equal((csr @ torch.ones(4, device="chip")).cpu(), torch.ones(4))


@pytest.mark.filterwarnings("ignore:Sparse.*beta state")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr])
def test_products_of_sparse_and_dense_tensors_are_dense(layout: torch.layout) -> None:
    sparse = (
        torch.randn(4, 4).relu().to_sparse(layout=layout, **({"blocksize": (2, 2)} if "bsr" in str(layout) else {}))
    )
    dense = torch.randn(4, 3)
    calls: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
        lambda a, b: a @ b,
        lambda a, b: torch.addmm(b, a, b),
        lambda a, b: torch.sparse.mm(a, b),
        lambda a, b: (a * 2).to_dense(),
    ]
    for call in calls:
        computed = call(sparse.to("chip"), dense.to("chip"))
        assert computed.layout == torch.strided and computed.device.type == "chip"
        torch.testing.assert_close(computed.cpu(), call(sparse, dense))


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_quantized_tensors() -> None:
    x = torch.tensor([1.0, 2.0, -0.5])
    q = torch.quantize_per_tensor(x.to("chip"), 0.1, 0, torch.qint8)
    assert q.device.type == "chip" and q.q_scale() == 0.1
    torch.testing.assert_close(q.dequantize().cpu(), x)
    assert q.int_repr().tolist() == [10, 20, -5]
    assert q.cpu().int_repr().tolist() == [10, 20, -5]


def test_inference_mode_and_functional_call() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("chip").eval()
    with torch.inference_mode():
        y = model(torch.randn(1, 3, 5, 5, device="chip"))
        assert y.view(-1).add_(1).is_inference()
    parameters = dict(model[0].named_parameters())
    gradients = torch.func.grad(lambda p, x: torch.func.functional_call(model[0], p, (x,)).sum())(
        parameters, torch.ones(1, 3, 5, 5, device="chip")
    )
    assert gradients["bias"].tolist() == [9, 9, 9, 9]


def test_dispatch_modes_see_the_programs_own_calls_only() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    seen: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = torch.randn(7, 3, device="chip")
    with Log():
        functional.gelu(x) + 1.5
    assert seen == ["aten.gelu.default", "aten.add.Tensor"]
    with FlopCounterMode(display=False) as counter:
        x @ x.t()
    assert counter.get_total_flops() == 2 * 7 * 3 * 7


def test_scalars_may_change_with_every_step() -> None:
    x = torch.zeros(4, device="chip")
    before = bringup.launch_stats()["signatures"]
    for step in range(50):
        x.add_(torch.ones_like(x), alpha=0.1 * step)
    assert bringup.launch_stats()["signatures"] - before <= 3
    assert x[0].item() == pytest.approx(0.1 * sum(range(50)), rel=1e-5)


def test_ever_new_shapes_stay_right() -> None:
    """More signatures than are kept: the first ones are forgotten, learned again, and right."""
    for size in [*range(1, 10_000), 1, 2, 3]:
        x = torch.ones(size, device="chip")
        assert x.neg().shape == (size,)
    assert x.neg().tolist() == [-1, -1, -1]


def test_histc_counts_integers_as_other_accelerators_do() -> None:
    x = torch.tensor([0, 1, 1, 3], dtype=torch.int32, device="chip")
    counts = torch.histc(x, bins=4, min=0, max=3)
    assert counts.dtype == torch.int32 and counts.tolist() == [1, 2, 0, 1]


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # torch 2.10 and 2.12
def test_profiler_shows_the_kernels() -> None:
    a = torch.randn(64, 64, device="chip")
    torch.chip.synchronize()  # or its kernel may run inside the window
    with torch.profiler.profile() as profile:
        for _ in range(3):
            a = a @ a
        torch.chip.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.PrivateUse1]
    assert [event.name for event in kernels] == ["aten::mm"] * 3
    assert all(event.device_time_total > 0 for event in kernels)
    rows = {row.key: row for row in profile.key_averages()}
    assert rows["aten::mm"].count == 3
    assert "Self CHIP" in profile.key_averages().table()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_with_simple_backends(backend: str) -> None:
    compiled = torch.compile(lambda x: torch.sin(x) + 1, backend=backend)
    assert compiled(torch.zeros(2, device="chip")).tolist() == [1, 1]


def test_training_reaches_the_cpus_loss() -> None:
    def train(device: str) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 3)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        x, y = torch.randn(64, 10).to(device), torch.randint(3, (64,)).to(device)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    assert train("chip") == pytest.approx(train("cpu"), rel=1e-5)
