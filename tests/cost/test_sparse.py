"""Operators on sparse tensors: one launch each, priced where the chip has such kernels, a fallback elsewhere."""

from pathlib import Path

import pytest
import torch

import bringup
from bringup.recording.rows import D2H, H2D, LAUNCH, STREAM_SYNC, WAITS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
]


def coo(rows: int, columns: int, nonzeros: int) -> torch.Tensor:
    torch.manual_seed(0)
    where = torch.stack([torch.randint(rows, (nonzeros,)), torch.randint(columns, (nonzeros,))])
    return torch.sparse_coo_tensor(where, torch.randn(nonzeros), (rows, columns)).coalesce()


def ops(trace: bringup.Trace) -> list[str]:
    launched = trace.columns["signature"][trace.columns["kind"] == LAUNCH]
    return [trace.signatures[row].op for row in launched]


def copies(trace: bringup.Trace) -> int:
    return sum(int((trace.columns["kind"] == kind).sum()) for kind in (H2D, D2H, STREAM_SYNC))


def test_sparse_product_is_one_launch_and_copies_nothing() -> None:
    a, b = coo(300, 200, 900), torch.randn(200, 16)
    on_chip, dense = a.to("chip"), b.to("chip")
    with bringup.record() as trace:
        c = torch.sparse.mm(on_chip, dense)
    assert ops(trace) == ["aten::zero_", "sparse::addmm"]  # torch adds the product to zeros, on a GPU too
    assert copies(trace) == 0
    work = trace.signatures[-1].work
    assert work.vector_flops == 2 * a._nnz() * 16
    assert work.read_bytes == 300 * 16 * 4 + a._nnz() * (4 + 2 * 8) + a._nnz() * 16 * 4
    assert work.written_bytes == 300 * 16 * 4
    torch.testing.assert_close(c.cpu(), torch.sparse.mm(a, b))


def test_gradients_of_a_sparse_product_copy_nothing_and_are_right() -> None:
    a, b = coo(300, 200, 900), torch.randn(200, 16)
    gradients = []
    for device in ("cpu", "chip"):
        x, w = a.to(device), b.clone().to(device).detach().requires_grad_()
        with bringup.record() as trace:
            torch.sparse.mm(x, w).square().mean().backward()
        gradients.append(w.grad)
    assert copies(trace) == 0
    assert {op for op in ops(trace) if op.startswith("sparse::")}
    torch.testing.assert_close(gradients[1].cpu(), gradients[0])


def test_compressed_layouts_are_recorded_by_their_parts() -> None:
    whole = coo(300, 200, 900)
    a = whole.to_sparse_csr().to("chip")
    with bringup.record() as trace:
        dense = a.to_dense()
    assert copies(trace) == 0
    described = next(signature for signature in trace.signatures if signature.op.startswith("sparse::"))
    assert [tensor.numel for tensor in described.tensors[:3]] == [whole._nnz(), 301, whole._nnz()]
    assert torch.equal(dense.cpu(), whole.to_dense())


def test_chip_without_sparse_kernels_falls_back() -> None:
    a, b = coo(300, 200, 900).to("chip"), torch.randn(200, 16, device="chip")
    with bringup.record() as trace:
        torch.sparse.mm(a, b)
    assert bringup.price(trace, chip="a100-sxm-80").summary.fallbacks == []
    assert bringup.price(trace, chip="mi300x").summary.fallbacks == []
    (fallback,) = bringup.price(trace, chip="tpu-v4").summary.fallbacks
    assert fallback.op == "sparse::addmm"
    assert fallback.seconds > 0


def test_embedding_with_sparse_gradients_copies_nothing() -> None:
    table = torch.nn.Embedding(1000, 16, sparse=True).to("chip")
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    ids = torch.randint(1000, (64,)).to("chip")
    table(ids).sum().backward()
    optimizer.step()
    with bringup.record() as trace:
        optimizer.zero_grad()
        table(ids).sum().backward()
        optimizer.step()
    assert copies(trace) == 0


def test_coalesce_waits_for_its_count_as_on_a_gpu() -> None:
    a = torch.sparse_coo_tensor(torch.zeros(2, 5, dtype=torch.int64), torch.ones(5), (3, 3)).to("chip")
    with bringup.record() as trace:
        b = a.coalesce()
    launched = trace.columns["kind"] == LAUNCH
    flags = trace.columns["flags"][launched].tolist()
    assert ops(trace) == ["sparse::_coalesce"] and flags == [WAITS]
    assert b.cpu().values().tolist() == [5.0]


def test_copies_of_a_sparse_tensor_by_the_program_are_recorded() -> None:
    a = coo(30, 20, 90)
    with bringup.record() as trace:
        a.to("chip")
    kinds = trace.columns["kind"]
    assert (kinds == H2D).sum() == 2  # indices and values


def test_saved_recording_of_sparse_operators_loads_and_prices(tmp_path: Path) -> None:
    a, b = coo(300, 200, 900).to("chip"), torch.randn(200, 16, device="chip")
    with bringup.record() as trace:
        torch.sparse.mm(a, b)
    trace.save(tmp_path / "trace.npz")
    again = bringup.Trace.load(tmp_path / "trace.npz")
    assert bringup.price(again, chip="t4").summary.step_seconds == bringup.price(trace, chip="t4").summary.step_seconds
