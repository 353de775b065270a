"""A failed kernel: where it raises, what it says, and that the device works afterwards."""

import inspect
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def bad_gather() -> torch.Tensor:
    x = torch.arange(6.0, device="chip").view(2, 3)
    return x.gather(1, torch.tensor([[7]]).to("chip", non_blocking=True))


@torch.library.custom_op("bringup_tests::without_fake_kernel", mutates_args=(), device_types="cpu")
def without_fake_kernel(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def test_failed_kernel_raises_at_the_next_synchronisation() -> None:
    y = bad_gather()  # the launch itself does not raise
    with pytest.raises(RuntimeError) as caught:
        torch.chip.synchronize()
    text, line = str(caught.value), bad_gather.__code__.co_firstlineno + 2
    assert "index 7 is out of bounds" in text
    assert f"aten::gather(float32[2, 3], int64[1, 1]) on chip:0, launched at tests/core/test_errors.py:{line}" in text
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
    with pytest.raises(IndexError, match=r"launched at tests/core/test_errors\.py"):
        torch.chip.synchronize()


@pytest.mark.parametrize(
    ("look_up", "text"),
    [
        (lambda table, index: torch.nn.functional.embedding(index, table), "index 7 at [1, 0] is outside of 0 to 4"),
        (lambda table, index: table.index_select(1, index[1]), "index 7 at [0] is outside of 0 to 2"),
    ],
)
def test_a_look_up_names_the_index_that_is_out_of_range(
    look_up: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], text: str
) -> None:
    result = look_up(torch.ones(5, 3, device="chip"), torch.tensor([[0, 2], [7, 9]], device="chip"))
    with pytest.raises((IndexError, RuntimeError)) as raised:  # as the CPU: index_select raises the second for columns
        result.sum().item()
    assert text in str(raised.value)


@pytest.mark.parametrize("read", [lambda y: y.item(), lambda y: y.cpu(), str], ids=["item", "cpu", "print"])
def test_reading_raises_too(read: Callable[[torch.Tensor], object]) -> None:
    y = bad_gather()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        read(y)


def test_later_failures_are_counted() -> None:
    for _ in range(3):
        bad_gather()
    with pytest.raises(RuntimeError, match="and 2 other launches failed"):
        torch.chip.synchronize()


def test_one_synchronisation_raises_the_first_of_all_streams_and_clears_all() -> None:
    side = torch.chip.Stream()
    first = bad_gather()
    with torch.chip.stream(side):
        torch.arange(3, device="chip")[torch.tensor([5]).to("chip")]
        bad_gather()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds") as caught:
        torch.chip.synchronize()
    assert "and 2 other launches failed" in str(caught.value)
    torch.chip.synchronize()
    side.synchronize()
    assert first.shape == (1, 1)


def test_what_depends_on_a_failed_launch_does_not_run() -> None:
    kept, other = torch.ones(4, device="chip"), torch.zeros(4, device="chip")
    torch.chip.synchronize()
    bad = bad_gather()
    follows = bad.expand(4, 1).reshape(4) + 1
    kept.mul_(follows)
    other.add_(2)  # has nothing to do with it
    with pytest.raises(RuntimeError, match="2 launches that needed a result of it did not run"):
        torch.chip.synchronize()
    assert kept.tolist() == [1, 1, 1, 1]
    assert other.tolist() == [2, 2, 2, 2]
    assert (kept + follows.shape[0]).tolist() == [5, 5, 5, 5]  # the device works on


def test_what_depends_on_a_failed_launch_does_not_run_on_other_streams() -> None:
    side, event = torch.chip.Stream(), torch.chip.Event()
    kept = torch.ones(1, 1, device="chip")
    torch.chip.synchronize()
    with torch.chip.stream(side):
        bad = bad_gather()
        event.record()
    event.wait()
    kept.add_(bad)
    with pytest.raises(RuntimeError, match="1 launch that needed a result of it did not run"):
        torch.chip.synchronize()
    assert kept.item() == 1


def test_memory_that_was_overwritten_since_the_failure_may_be_read() -> None:
    bad = bad_gather()
    bad.fill_(3)
    filled = bad + 1
    bad = bad_gather()
    bad.copy_(torch.full((1, 1), 5.0), non_blocking=True)
    uploaded = bad + 1
    address = bad.data_ptr()
    del bad
    again = [torch.full((1, 1), 7.0, device="chip") for _ in range(8)]
    assert address in [tensor.data_ptr() for tensor in again]
    reused = torch.stack(again) + 1
    with pytest.raises(RuntimeError, match="and 1 other launch failed"):
        torch.chip.synchronize()
    assert (filled.item(), uploaded.item(), reused.unique().tolist()) == (4, 6, [8])


def test_copy_to_another_chip_carries_what_was_not_computed() -> None:
    kept = torch.ones(1, 1, device="chip:1")
    torch.chip.synchronize(1)
    kept.add_(bad_gather().to("chip:1"))
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        torch.chip.synchronize(1)
    torch.chip.synchronize(0)
    assert kept.item() == 1


def test_operator_that_waits_raises_what_its_input_failed_with() -> None:
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        bad_gather().nonzero()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        without_fake_kernel(bad_gather())  # waits to learn what it returns
    torch.chip.synchronize()


def test_dtypes_are_refused_at_the_line_and_leave_tensors_as_they_were() -> None:
    x = torch.tensor([1 + 1j, 2 + 2j]).to("chip")
    with pytest.raises(NotImplementedError, match="not implemented for 'ComplexFloat'"):
        x.masked_fill_(x > 0, 9)
    integers, weight = torch.ones(3, dtype=torch.long, device="chip"), torch.ones(3, device="chip", requires_grad=True)
    with pytest.raises(RuntimeError, match="can't be cast to the desired output type"):
        integers.mul_(weight)
    assert not integers.requires_grad and integers[0].item() == 1
    small = torch.zeros(3, dtype=torch.uint8, device="chip")
    small.fill_(255)
    with pytest.raises(RuntimeError, match="without overflow"):
        small.fill_(1000)
    torch.chip.synchronize()
    assert x.tolist() == [1 + 1j, 2 + 2j] and small.tolist() == [255] * 3


def test_overlapping_arguments_are_refused_at_the_line() -> None:
    x = torch.arange(8.0, device="chip")
    torch.add(x[0:4], 1, out=x[4:8])  # side by side
    torch.add(x[0:4], 1, out=x[0:4])  # the same
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        torch.add(x[0:4], 1, out=x[2:6])
    with pytest.raises(RuntimeError, match="single memory location"):
        x[:1].expand(4).add_(1)
    assert x.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


def test_in_place_result_does_not_grow() -> None:
    x = torch.zeros((), device="chip")
    for call in (x.atan2_, x.logical_and_, x.clamp_min_, x.eq_):
        with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            call(torch.ones(3, device="chip"))
    assert x.shape == () and x.item() == 0


def test_result_has_the_layout_of_the_cpus() -> None:
    column = torch.arange(6).view(3, 2).t()
    for call in (lambda x: torch.isin(x, x[:1]), lambda x: torch.outer(x[0], x[0][:1]), lambda x: x.cumsum(0)):
        assert call(column.to("chip")).stride() == call(column).stride()


def test_kernel_that_raises_anything_leaves_the_process_alive(python: Run) -> None:
    done = python(
        """
import torch
@torch.library.custom_op("t::stop", mutates_args=(), device_types="cpu")
def stop(x: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt("in a kernel")
@stop.register_fake
def _(x):
    return torch.empty_like(x)
y = stop(torch.ones(3, device="chip"))
try:
    torch.chip.synchronize()
except BaseException as error:
    print(type(error).__name__)
print((torch.ones(3, device="chip") + 1).tolist())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2.0, 2.0, 2.0]"


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
    with pytest.raises(RuntimeError, match=rf"tests/core/test_errors\.py:{line} \(backward\)"):
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


@pytest.mark.parametrize("to", ["chip:0", "chip:1", "cpu", "pinned"])
def test_copy_of_a_failed_result_overwrites_nothing(to: str) -> None:
    kept = torch.full((1, 1), -5.0, device="cpu" if to == "pinned" else to)
    kept = kept.pin_memory() if to == "pinned" else kept
    torch.chip.synchronize(1)
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        kept.copy_(bad_gather(), non_blocking=to == "pinned")
        torch.chip.synchronize(0)
        torch.chip.synchronize(1)
    with suppress(RuntimeError):  # another device may tell it once more
        torch.chip.synchronize(1)
    assert kept.item() == -5


def test_poll_that_succeeds_raises_what_failed() -> None:
    event = torch.chip.Event()
    bad = bad_gather()
    event.record()
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        while not event.query():
            time.sleep(0.001)
    del bad


def test_error_of_a_long_list_is_short() -> None:
    tensors = [torch.zeros(2, 3, device="chip") for _ in range(2000)]
    with pytest.raises(RuntimeError, match=r"and \d,?\d* more|must have|match") as raised:
        torch._foreach_add_(tensors, [*tensors[1:], torch.zeros(3, 2, device="chip")])
        torch.chip.synchronize()
    assert len(str(raised.value)) < 2000


def test_error_of_the_choice_of_a_chip_keeps_its_type(python: Run) -> None:
    program = """
import torch, bringup
for _ in range(2):
    try:
        torch.zeros(1, device="chip")
    except bringup.UnknownChipError as error:
        print(error)
"""
    done = python(program, BRINGUP_CHIP="nonsense")
    assert done.stdout.count("no chip is named 'nonsense'") == 2, done.stderr


def test_dimensions_from_the_sixth_on_are_no_sizes() -> None:
    x = torch.arange(8**4 * 6, dtype=torch.float32).view(8, 8, 8, 8, 2, 3)  # large enough that trials cut the sizes
    for function in (lambda t: t.sum([4, 5]), lambda t: t.amax(5), lambda t: t.flip(5)):
        torch.testing.assert_close(function(x.to("chip")).cpu(), function(x))
    with pytest.raises(IndexError, match="Dimension out of range"):
        x.to("chip").sum([4, 6])


@pytest.mark.filterwarnings("error")
def test_trial_with_cut_sizes_does_not_warn_of_outputs_that_it_resizes() -> None:
    parts = [torch.randn(96, 64), torch.randn(64), torch.randn(128, 16)]
    out = torch.empty(4, sum(part.numel() for part in parts) // 4, device="chip")
    torch._chunk_cat([part.to("chip") for part in parts], 0, 4, out=out)
    assert torch.equal(out.cpu(), torch._chunk_cat(parts, 0, 4))
