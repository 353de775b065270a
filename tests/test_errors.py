"""A failed kernel: where it raises, what it says, and that the device works afterwards."""

import inspect
import subprocess
from collections.abc import Callable

import pytest
import torch

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def bad_gather() -> torch.Tensor:
    x = torch.arange(6.0, device="chip").view(2, 3)
    return x.gather(1, torch.tensor([[7]]).to("chip"))


def test_failed_kernel_raises_at_the_next_synchronisation() -> None:
    y = bad_gather()  # the launch itself does not raise
    with pytest.raises(RuntimeError) as caught:
        torch.chip.synchronize()
    text, line = str(caught.value), bad_gather.__code__.co_firstlineno + 2
    assert "index 7 is out of bounds" in text
    assert f"aten::gather(float32[2, 3], int64[1, 1]) on chip:0, launched at tests/test_errors.py:{line}" in text
    assert y.shape == (1, 1)
    assert torch.ones(3, device="chip").sum().item() == 3


def test_error_is_raised_once() -> None:
    bad_gather()
    with pytest.raises(RuntimeError):
        torch.chip.synchronize()
    torch.chip.synchronize()


def test_error_keeps_its_type() -> None:
    x = torch.arange(3, device="chip")
    x[torch.tensor([5]).to("chip")]
    with pytest.raises(IndexError, match=r"launched at tests/test_errors\.py"):
        torch.chip.synchronize()


@pytest.mark.parametrize("read", [lambda y: y.item(), lambda y: y.cpu(), str], ids=["item", "cpu", "print"])
def test_reading_raises_too(read: Callable[[torch.Tensor], object]) -> None:
    y = bad_gather()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        read(y)


def test_later_failures_are_counted() -> None:
    for _ in range(3):
        bad_gather()
    with pytest.raises(RuntimeError, match="2 later launch"):
        torch.chip.synchronize()


def test_error_travels_with_an_event_to_another_stream() -> None:
    side, event = torch.chip.Stream(), torch.chip.Event()
    with torch.chip.stream(side):
        bad_gather()
        event.record()
    event.wait()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        torch.chip.current_stream().synchronize()
    torch.chip.synchronize()  # seen once is enough


def test_event_synchronize_raises() -> None:
    event = torch.chip.Event()
    bad_gather()
    event.record()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        event.synchronize()


def test_backward_launch_names_the_forward_line() -> None:
    index = torch.zeros(2, 2, dtype=torch.long, device="chip")
    x = torch.randn(4, 3, device="chip", requires_grad=True)
    y, line = x.gather(0, index), inspect.currentframe().f_lineno
    index.data.fill_(9)
    y.sum().backward()
    with pytest.raises(RuntimeError, match=rf"tests/test_errors\.py:{line} \(backward\)"):
        torch.chip.synchronize()


def test_shape_errors_raise_at_the_line_in_the_cpus_words() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    with pytest.raises(RuntimeError) as on_cpu:
        a @ b
    with pytest.raises(RuntimeError) as on_chip:
        a.to("chip") @ b.to("chip")
    assert str(on_chip.value) == str(on_cpu.value)


def test_mixed_devices_give_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but got other is on cpu"):
        torch.ones(2, device="chip") + torch.ones(2)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.nn.Linear(2, 2)(torch.ones(1, 2, device="chip"))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2, device="chip:0") + torch.ones(2, device="chip:1")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2).add_(torch.ones(2, device="chip"))
    assert (torch.ones(2, device="chip") + torch.tensor(1.0)).cpu().tolist() == [2, 2]  # 0-dim CPU tensors are legal


def test_launch_blocking_raises_at_the_line(python: Run) -> None:
    done = python(
        """
import torch
x = torch.arange(3.0, device="chip")
index = torch.tensor([5], device="chip")
x.gather(0, index)
print("not reached")
""",
        BRINGUP_LAUNCH_BLOCKING="1",
    )
    assert done.returncode == 1
    assert 'program.py", line 5' in done.stderr
    assert "not reached" not in done.stdout


def test_failure_that_nothing_waited_for_is_told_at_exit(python: Run) -> None:
    done = python(
        """
import torch
torch.arange(3.0, device="chip").gather(0, torch.tensor([5], device="chip"))
"""
    )
    assert "bringup: a launch failed and nothing waited for it" in done.stderr
    assert "program.py:3" in done.stderr


def test_operator_without_any_kernel_says_so() -> None:
    library = torch.library.Library("bringup_tests", "FRAGMENT")
    library.define("nowhere(Tensor x) -> Tensor")
    with pytest.raises(NotImplementedError, match="neither a kernel for chip nor one for the CPU"):
        torch.ops.bringup_tests.nowhere(torch.ones(2, device="chip"))


def test_python_error_in_a_custom_kernel_reaches_the_user() -> None:
    @torch.library.custom_op("bringup_tests::fails", mutates_args=(), device_types="cpu")
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("bad weather")

    @fails.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    fails(torch.ones(2, device="chip"))
    with pytest.raises(RuntimeError, match=r"(?s)bad weather.*bringup_tests::fails\(float32\[2\]\) on chip:0"):
        torch.chip.synchronize()


def test_wrong_fake_kernel_fails_once_and_is_not_trusted_again() -> None:
    @torch.library.custom_op("bringup_tests::half", mutates_args=(), device_types="cpu")
    def half(x: torch.Tensor) -> torch.Tensor:
        return x[::2].clone()

    @half.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    half(torch.arange(4.0, device="chip"))
    with pytest.raises(RuntimeError, match=r"promised to be float32\[4\] by torch's meta kernel and is float32\[2\]"):
        torch.chip.synchronize()
    assert half(torch.arange(4.0, device="chip")).cpu().tolist() == [0, 2]


def test_every_package_is_installed() -> None:
    import tomllib

    from tests.conftest import ROOT

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = sorted(path.parent for path in (ROOT / "src" / "bringup").rglob("__init__.py"))
    assert sorted(listed) == [".".join(folder.relative_to(ROOT / "src").parts) for folder in folders]
