"""Triton's tutorials on the chip, against torch on the CPU."""

import pytest
import torch

pytest.importorskip("triton", reason="needs bringup[triton]")

from tests.triton import tutorials


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("n", [1, 1024, 98_432])
def test_vector_add_equals_torch(n: int) -> None:
    x, y = torch.rand(n), torch.rand(n)
    assert torch.equal(tutorials.add(x.to("chip"), y.to("chip")).cpu(), x + y)


@pytest.mark.parametrize("programs", [None, 37])
def test_softmax_equals_torch(programs: int | None) -> None:
    x = torch.randn(1823, 781)
    close(tutorials.softmax(x.to("chip"), programs), torch.softmax(x, 1))


@pytest.mark.parametrize(("m", "n", "k"), [(256, 256, 256), (500, 300, 70), (33, 17, 129)])
@pytest.mark.parametrize("activation", ["", "leaky_relu"])
def test_matmul_equals_torch(m: int, n: int, k: int, activation: str) -> None:
    a, b = torch.randn(m, k), torch.randn(k, n)
    expected = torch.nn.functional.leaky_relu(a @ b) if activation else a @ b
    close(tutorials.matmul(a.to("chip"), b.to("chip"), activation), expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matmul_in_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(128, 512).to(dtype), torch.randn(512, 128).to(dtype)
    close(tutorials.matmul(a.to("chip"), b.to("chip")), (a.float() @ b.float()).to(dtype), 1e-2)


def test_dropout_keeps_what_the_seed_says() -> None:
    x = torch.randn(10_000, device="chip")
    first, again, other = (tutorials.dropout(x, 0.4, seed).cpu() for seed in (123, 123, 512))
    assert torch.equal(first, again) and not torch.equal(first, other)
    kept = first != 0
    assert 0.57 < kept.float().mean() < 0.63
    torch.testing.assert_close(first[kept], (x.cpu() / 0.6)[kept])


def test_layer_norm_forward_and_backward_equal_torch() -> None:
    x, w, b = torch.randn(151, 320), torch.rand(320), torch.rand(320)
    given = [t.clone().requires_grad_() for t in (x, w, b)]
    on_chip = [t.to("chip").requires_grad_() for t in (x, w, b)]
    expected = torch.nn.functional.layer_norm(given[0], (320,), given[1], given[2])
    found = tutorials.LayerNorm.apply(*on_chip)
    close(found.detach(), expected.detach(), 1e-4)
    grad = torch.randn(151, 320)
    expected.backward(grad)
    found.backward(grad.to("chip"))
    for one, other in zip(on_chip, given, strict=True):
        close(one.grad, other.grad, 1e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [128, 200])
def test_attention_equals_torch(causal: bool, length: int) -> None:
    q, k, v = (torch.randn(2, 3, length, 64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    close(tutorials.attention(*(t.to("chip") for t in (q, k, v)), causal), expected, 1e-4)


def test_grouped_gemm_follows_addresses_in_memory() -> None:
    pairs = [(torch.randn(m, 64), torch.randn(64, n)) for m, n in ((64, 96), (128, 32), (32, 160))]
    found = tutorials.grouped_gemm([(a.to("chip"), b.to("chip")) for a, b in pairs])
    for (a, b), c in zip(pairs, found, strict=True):
        close(c, a @ b, 1e-4)


def test_memory_freed_after_the_launch_is_still_the_kernels() -> None:
    pairs = [(torch.randn(64, 64), torch.randn(64, 64))]
    torch.chip.synchronize()
    wait = torch.randn(1200, 1200).to("chip")
    for _ in range(10):  # so that the kernel has not run when its operands are freed
        wait = wait @ wait
    (found,) = tutorials.grouped_gemm([(a.to("chip"), b.to("chip")) for a, b in pairs])
    close(found, pairs[0][0] @ pairs[0][1], 1e-4)


def test_address_of_memory_freed_before_the_launch_is_refused() -> None:
    stale = torch.ones(32, 32, device="chip").data_ptr()
    tables = [torch.tensor([stale], dtype=torch.int64).to("chip") for _ in range(3)]
    sizes = torch.tensor([32, 32, 32], dtype=torch.int32).to("chip")
    with pytest.raises(RuntimeError, match="which is not memory of the chip"):
        tutorials.grouped_kernel[(5,)](*tables, sizes, sizes, 1, PROGRAMS=5, BM=32, BN=32, BK=32)
        torch.chip.synchronize()


def test_libdevice_functions_are_torchs() -> None:
    x = torch.rand(3000)
    close(tutorials.asin(x.to("chip")), torch.asin(x), 1e-6)


def test_persistent_matmul_by_descriptors_equals_torch() -> None:
    a, b = torch.randn(100, 64), torch.randn(192, 64)
    close(tutorials.descriptor_matmul(a.to("chip"), b.to("chip")), a @ b.T, 1e-4)
