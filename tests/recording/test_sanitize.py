"""Planted mistakes, each found at its line, and correct programs that look like them, without an alarm.

A mistake's line carries the comment ``# here``; the other line of a race, ``# and here``.
"""

import inspect
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bringup
from bringup.recording import sanitize

MISTAKES: list[tuple[str, Callable[[], Any]]] = []
LOOKALIKES: list[Callable[[], Any]] = []


def mistake(check: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        MISTAKES.append((check, function))
        return function

    return add


def correct(function: Callable[[], Any]) -> Callable[[], Any]:
    LOOKALIKES.append(function)
    return function


def chip(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="chip")


def side() -> Any:
    return torch.chip.Stream()  # type: ignore[attr-defined]


def main_stream() -> Any:
    return torch.chip.current_stream()  # type: ignore[attr-defined]


def on(stream: Any) -> Any:
    return torch.chip.stream(stream)  # type: ignore[attr-defined]


def event() -> Any:
    return torch.chip.Event()  # type: ignore[attr-defined]


# ---- races between streams


@mistake("race")
def reads_what_another_stream_still_writes() -> Any:
    a, s = torch.randn(64, 64, device="chip"), side()  # and here
    with on(s):
        return a, a @ a  # here


@correct
def waits_for_the_stream_that_writes() -> Any:
    a, s = torch.randn(64, 64, device="chip"), side()
    s.wait_stream(main_stream())
    with on(s):
        return a, a @ a


@mistake("race")
def writes_what_another_stream_still_reads() -> Any:
    a, s = chip(64, 64), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a @ a  # and here
    a.add_(1)  # here
    return b


@correct
def writes_after_the_reader() -> Any:
    a, s = chip(64, 64), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a @ a
    main_stream().wait_stream(s)
    a.add_(1)
    return b


@mistake("race")
def two_streams_write_the_same() -> Any:
    a, s = chip(64), side()
    s.wait_stream(main_stream())
    with on(s):
        a.mul_(2)  # and here
    a.mul_(3)  # here


@correct
def two_streams_write_in_turn() -> Any:
    a, s, done = chip(64), side(), event()
    s.wait_stream(main_stream())
    with on(s):
        a.mul_(2)
        done.record()
    done.wait()
    return a.mul_(3)


@mistake("race")
def uses_a_result_before_the_side_stream_is_done() -> Any:
    s = side()
    with on(s):
        a = chip(64)
        b = a + 1  # and here
    return a, b * 2  # here


@correct
def synchronises_before_using_a_result() -> Any:
    s = side()
    with on(s):
        a = chip(64)
        b = a + 1
    s.synchronize()
    return a, b * 2


@mistake("race")
def records_the_event_too_early() -> Any:
    s, ready = side(), event()
    ready.record()
    a = torch.ones(64, device="chip")  # and here
    s.wait_event(ready)
    with on(s):
        return a, a + 1  # here


@correct
def records_the_event_after_the_writer() -> Any:
    s, ready = side(), event()
    a = chip(64)
    ready.record()
    s.wait_event(ready)
    with on(s):
        return a, a + 1


@mistake("race")
def waits_on_the_wrong_stream() -> Any:
    s, t = side(), side()
    with on(s):
        a = chip(64)
        a += 1  # and here
    t.synchronize()
    return a, a * 2  # here


@correct
def waits_through_a_third_stream() -> Any:
    s, t = side(), side()
    with on(s):
        a = chip(64)
        a += 1
    t.wait_stream(s)
    main_stream().wait_stream(t)
    return a, a * 2


@mistake("race")
def an_upload_races_with_its_use() -> Any:
    s, host = side(), torch.ones(1000).pin_memory()
    with on(s):
        a = host.to("chip", non_blocking=True)  # and here
    return a, a + 1, host  # here


@correct
def an_upload_is_waited_for() -> Any:
    s, host = side(), torch.ones(1000).pin_memory()
    with on(s):
        a = host.to("chip", non_blocking=True)
    main_stream().wait_stream(s)
    return a, a + 1, host


@mistake("race")
def a_view_hides_the_race() -> Any:
    a, s = torch.randn(64, 64, device="chip"), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a[0].sum()  # and here
    a.view(-1)[5:10].zero_()  # here
    return b


@correct
def two_streams_only_read() -> Any:
    a, s = chip(64), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a + 1
    return a + 2, b


@mistake("race")
def a_gradient_is_read_on_another_stream() -> Any:
    layer, s = nn.Linear(8, 8, device="chip"), side()
    layer(chip(2, 8)).sum().backward()
    with on(s):
        return layer, layer.weight.grad.abs().sum()  # here  # type: ignore[union-attr]


@correct
def a_device_synchronisation_orders_everything() -> Any:
    layer, s = nn.Linear(8, 8, device="chip"), side()
    layer(chip(2, 8)).sum().backward()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    with on(s):
        return layer, layer.weight.grad.abs().sum()  # type: ignore[union-attr]


@mistake("race")
def frees_what_another_stream_still_uses() -> Any:
    a, s = torch.randn(256, 256, device="chip"), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a @ a  # here
    del a
    return b, torch.zeros(256, 256, device="chip")  # and here


@correct
def record_stream_keeps_the_memory() -> Any:
    a, s = torch.randn(256, 256, device="chip"), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a @ a
    a.record_stream(s)
    del a
    return b, torch.zeros(256, 256, device="chip")


@correct
def frees_after_the_other_stream_is_done() -> Any:
    a, s = torch.randn(256, 256, device="chip"), side()
    s.wait_stream(main_stream())
    with on(s):
        b = a @ a
    s.synchronize()
    del a
    return b, torch.zeros(256, 256, device="chip")


# ---- page-locked memory


@mistake("race")
def reads_a_download_too_early() -> Any:
    a, host = chip(1000), torch.empty(1000, pin_memory=True)
    host.copy_(a, non_blocking=True)  # and here
    return host.sum().item()  # here


@correct
def reads_a_download_after_its_event() -> Any:
    a, host, done = chip(1000), torch.empty(1000, pin_memory=True), event()
    host.copy_(a, non_blocking=True)
    done.record()
    done.synchronize()
    return host.sum().item()


@mistake("race")
def overwrites_a_buffer_that_is_still_uploaded() -> Any:
    host = torch.ones(1000).pin_memory()
    a = host.to("chip", non_blocking=True)  # and here
    host.fill_(2)  # here
    return a


@mistake("race")
def overwrites_a_buffer_with_several_threads_in_several_steps() -> Any:
    host, a = torch.ones(1 << 20).pin_memory(), torch.empty(1 << 20, device="chip")
    for step in range(5):
        a.copy_(host, non_blocking=True)  # and here
        host.fill_(step)  # here
    return a


@correct
def refills_a_buffer_after_the_upload() -> Any:
    host = torch.ones(1000).pin_memory()
    a = host.to("chip", non_blocking=True)
    torch.chip.synchronize()  # type: ignore[attr-defined]
    host.fill_(2)
    return a


@correct
def only_reads_a_buffer_that_is_uploaded() -> Any:
    host = torch.ones(1000).pin_memory()
    a = host.to("chip", non_blocking=True)
    return a, host.sum().item()


@mistake("race")
def waits_for_another_stream_than_the_copys() -> Any:
    a, s, host = chip(1000), side(), torch.empty(1000, pin_memory=True)
    s.wait_stream(main_stream())
    with on(s):
        host.copy_(a, non_blocking=True)  # and here
    main_stream().synchronize()
    return a, host.numpy().sum()  # here


@correct
def waits_for_the_copy_through_the_main_stream() -> Any:
    a, s, host = chip(1000), side(), torch.empty(1000, pin_memory=True)
    s.wait_stream(main_stream())
    with on(s):
        host.copy_(a, non_blocking=True)
    main_stream().wait_stream(s)
    main_stream().synchronize()
    return a, host.numpy().sum()


@correct
def a_blocking_download_needs_no_wait() -> Any:
    host = torch.empty(1000, pin_memory=True)
    host.copy_(chip(1000))
    return host.sum().item()


# ---- memory that nobody wrote


@mistake("init")
def adds_to_empty() -> Any:
    return torch.empty(8, device="chip") + 1  # here


@mistake("init")
def accumulates_into_empty() -> Any:
    total = torch.empty(8, device="chip")  # and here
    total.add_(chip(8))  # here
    return total


@mistake("init")
def downloads_empty() -> Any:
    a = torch.empty(8, device="chip")  # and here
    return a.cpu()  # here


@mistake("init")
def multiplies_an_empty_like() -> Any:
    a = chip(4, 4)
    b = torch.empty_like(a)  # and here
    return a @ b  # here


@mistake("init")
def a_parameter_without_initialisation() -> Any:
    layer = nn.utils.skip_init(nn.Linear, 4, 4, bias=False, device="chip")  # and here
    return layer, layer(chip(2, 4))  # here


@mistake("init")
def selects_from_empty() -> Any:
    table = torch.empty(10, 4, device="chip")  # and here
    return table.index_select(0, torch.tensor([1, 2], device="chip"))  # here


@correct
def fills_empty_in_pieces() -> Any:
    a = torch.empty(8, device="chip")
    a[:4], a[4:] = 1, 2
    return a + 1


@correct
def copies_into_empty() -> Any:
    return torch.empty(8, device="chip").copy_(torch.ones(8)) + 1


@correct
def draws_into_empty() -> Any:
    return torch.empty(8, device="chip").normal_() + torch.empty(8, device="chip").uniform_()


@correct
def writes_a_result_into_empty() -> Any:
    out = torch.empty(4, 4, device="chip")
    torch.mm(chip(4, 4), chip(4, 4), out=out)
    return out + 1


@correct
def adds_nothing_of_empty() -> Any:
    nothing = torch.empty(2, 4, 4, device="chip")
    return torch.baddbmm(nothing, chip(2, 4, 4), chip(2, 4, 4), beta=0)


@correct
def loads_a_parameter_after_skipping() -> Any:
    layer = nn.utils.skip_init(nn.Linear, 4, 4, bias=False, device="chip")
    layer.load_state_dict({"weight": torch.ones(4, 4)})
    return layer, layer(chip(2, 4))


@correct
def grows_a_tensor() -> Any:
    a = chip(4)
    a.resize_(8)
    a[4:] = 2
    return a + 1


# ---- memory that is written in part


@mistake("init")
def reads_a_whole_cache_of_which_six_rows_are_written() -> Any:
    keys = torch.empty(1, 2, 16, 4, device="chip")  # and here
    for step in range(6):
        keys[:, :, step : step + 1] = torch.ones(1, 2, 1, 4, device="chip")
    return torch.ones(1, 2, 1, 4, device="chip") @ keys.transpose(2, 3)  # here


@mistake("init")
def attends_to_a_whole_cache_of_which_six_rows_are_written() -> Any:
    keys, values = (torch.empty(1, 2, 16, 4, device="chip") for _ in range(2))  # and here
    keys[:, :, :6] = values[:, :, :6] = 1
    token = torch.ones(1, 2, 1, 4, device="chip")
    return nn.functional.scaled_dot_product_attention(token, keys, values).sum().item()  # here


@mistake("init")
def hides_unwritten_rows_by_adding_a_large_number() -> Any:
    keys, values = (torch.empty(1, 2, 16, 4, device="chip") for _ in range(2))  # and here
    mask = torch.zeros(16, device="chip")
    mask[6:] = -1e4
    for cache in (keys, values):
        cache[:, :, :6] = 1
    token = torch.ones(1, 2, 1, 4, device="chip")
    scores = (token @ keys.transpose(2, 3) + mask).softmax(-1)  # here
    return (scores @ values).isfinite().all().item()


@mistake("init")
def sums_a_buffer_whose_last_element_is_missing() -> Any:
    a = torch.empty(100, device="chip")  # and here
    a[:99] = 1
    return a.sum().item()  # here


@mistake("init")
def downloads_a_buffer_with_a_gap() -> Any:
    a = torch.empty(4, 4, device="chip")  # and here
    a[0], a[1], a[3] = 1, 2, 3
    return a.cpu()  # here


@mistake("init")
def sums_a_buffer_of_which_every_second_element_is_written() -> Any:
    buffer = torch.empty(20, device="chip")  # and here
    buffer[1::2] = 1
    return buffer.sum()  # here


@mistake("init")
def sums_a_table_whose_corners_are_missing() -> Any:
    table = torch.empty(4, 4, device="chip")  # and here
    table.view(-1)[1:15] = 1
    return table.sum()  # here


@mistake("init")
def reads_rows_that_index_copy_left() -> Any:
    table = torch.empty(8, 4, device="chip")  # and here
    table.index_copy_(0, torch.tensor([1, 3, 5], device="chip"), torch.ones(3, 4, device="chip"))
    return table.mean(0)  # here


@mistake("init")
def trains_on_a_padded_batch() -> Any:
    layer = nn.Linear(4, 4, device="chip")
    batch = torch.empty(8, 4, device="chip")  # and here
    batch[:6] = torch.randn(6, 4, device="chip")
    loss = (layer(batch) * 0).sum()  # here
    return loss.item()


@correct
def writes_a_cache_in_all_pieces_and_reads_it() -> Any:
    keys = torch.empty(1, 2, 16, 4, device="chip")
    for step in range(16):
        keys[:, :, step] = step
    return (torch.ones(1, 2, 1, 4, device="chip") @ keys.transpose(2, 3)).sum().item()


@correct
def reads_only_the_rows_that_are_written() -> Any:
    keys = torch.empty(1, 2, 16, 4, device="chip")
    keys[:, :, :6] = 1
    return keys[:, :, :6].sum().item(), keys[:, :, 2].cpu()


@correct
def attends_to_the_rows_that_are_written() -> Any:
    keys, values = (torch.empty(1, 2, 16, 4, device="chip") for _ in range(2))
    keys[:, :, :6] = values[:, :, :6] = 1
    token = torch.ones(1, 2, 1, 4, device="chip")
    return nn.functional.scaled_dot_product_attention(token, keys[:, :, :6], values[:, :, :6]).sum().item()


@correct
def replaces_unwritten_rows() -> Any:
    keys = torch.empty(16, 4, device="chip")
    keys[:6] = 1
    valid = torch.arange(16, device="chip") < 6
    return torch.where(valid[:, None], keys, 0).sum().item()


@correct
def masks_scores_before_the_softmax() -> Any:
    keys, values = torch.empty(16, 4, device="chip"), torch.zeros(16, 4, device="chip")
    keys[:6], values[:6] = 1, 2
    scores = torch.ones(1, 4, device="chip") @ keys.t()
    scores = scores.masked_fill(torch.arange(16, device="chip") >= 6, -torch.inf)
    return (scores.softmax(-1) @ values).sum().item()


@correct
def copies_a_cache_and_reads_the_written_rows_of_the_copy() -> Any:
    keys = torch.empty(16, 4, device="chip")
    keys[:6] = 1
    longer = torch.cat([keys.clone(), torch.ones(4, 4, device="chip")])
    return longer[:6].sum().item(), longer[16:].sum().item()


@correct
def writes_by_index_and_reads_by_index() -> Any:
    table = torch.empty(8, 4, device="chip")
    rows = torch.tensor([1, 3, 5], device="chip")
    table[rows] = 1.0
    return table[rows].sum().item()


@correct
def scatters_every_element() -> Any:
    a = torch.empty(8, device="chip")
    a.scatter_(0, torch.arange(8, device="chip").flip(0), torch.arange(8.0, device="chip"))
    return a.sum().item()


@correct
def uploads_into_pieces() -> Any:
    a = torch.empty(4, 1000, device="chip")
    for row in range(4):
        a[row] = torch.full((1000,), float(row))
    return a.sum().item()


@correct
def draws_dropout_over_a_part() -> Any:
    a = torch.empty(10, 10, device="chip")
    a[:5] = 1
    torch.manual_seed(0)
    return nn.functional.dropout(a[:5], 0.5).sum().item(), torch.rand(3, device="chip").sum().item()


@correct
def accumulates_gradients_in_an_empty_buffer() -> Any:
    layer = nn.Linear(4, 4, device="chip")
    layer.weight.grad = torch.empty_like(layer.weight)
    layer.weight.grad.zero_()
    layer(chip(2, 4)).sum().backward()
    return layer.weight.grad.sum().item()


# ---- leaks, waits, devices


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(8, 8).to("chip")
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


@mistake("leak")
def keeps_every_loss() -> Any:
    model, optimizer = model_and_optimizer()
    losses = []
    for _ in range(6):
        loss = model(chip(4, 8)).sum()  # here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses, optimizer


@correct
def keeps_a_sum_of_losses() -> Any:
    model, optimizer = model_and_optimizer()
    total = chip(1)
    for _ in range(6):
        loss = model(chip(4, 8)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = total + loss.detach()
    return total, optimizer


@mistake("leak")
def collects_every_output() -> Any:
    model, outputs = nn.Linear(8, 8, device="chip"), []
    x = chip(4, 8)
    for _ in range(8):
        outputs.append(model(x).detach())  # here
    return outputs


@correct
def collects_every_output_on_the_host() -> Any:
    model, outputs = nn.Linear(8, 8, device="chip"), []
    x = chip(4, 8)
    with torch.no_grad():
        for _ in range(3):
            outputs.append(model(x).cpu())
    return outputs


@mistake("sync")
def reads_the_loss_in_every_step() -> Any:
    model, optimizer = model_and_optimizer()
    for _ in range(6):
        loss = model(chip(4, 8)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # here
    return optimizer


@correct
def reads_the_loss_now_and_then() -> Any:
    model, optimizer = model_and_optimizer()
    for step in range(8):
        loss = model(chip(4, 8)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 3:
            loss.item()
    return optimizer


@mistake("sync")
def decides_by_a_device_value_in_a_loop() -> Any:
    x = chip(100)
    for _ in range(10):
        if (x.sum() > 0).item():  # here
            x = x * 0.5
    return x


@correct
def decides_on_the_device() -> Any:
    x = chip(100)
    for _ in range(10):
        x = torch.where(x.sum() > 0, x * 0.5, x)
    return x.sum().item()


@mistake("sync")
def selects_by_a_mask_in_a_loop() -> Any:
    x, total = chip(100), chip(1)
    for _ in range(10):
        total = total + x[x > 0].sum()  # here
    return total


@correct
def multiplies_by_a_mask_in_a_loop() -> Any:
    x, total = chip(100), chip(1)
    for _ in range(10):
        total = total + (x * (x > 0)).sum()
    return total


@mistake("sync")
def uploads_pageable_batches() -> Any:
    model, optimizer = model_and_optimizer()
    for _ in range(5):
        batch = torch.ones(4096, 8).to("chip", non_blocking=True)  # here
        model(batch).sum().backward()
        optimizer.step()
    return optimizer


@correct
def uploads_pinned_batches() -> Any:
    model, optimizer = model_and_optimizer()
    batches = [torch.ones(4096, 8).pin_memory() for _ in range(5)]
    for batch in batches:
        model(batch.to("chip", non_blocking=True)).sum().backward()
        optimizer.step()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    return optimizer, batches


@mistake("device")
def indexes_with_a_host_tensor() -> Any:
    return chip(8)[torch.tensor([1, 2])]  # here


@mistake("device")
def puts_with_a_host_tensor() -> Any:
    a = chip(8)
    a[torch.tensor([1, 2])] = 0  # here
    return a


@correct
def indexes_with_a_tensor_of_the_chip() -> Any:
    return chip(8)[torch.tensor([1, 2], device="chip")]


@correct
def adds_a_number_on_the_host() -> Any:
    return chip(8) + torch.tensor(2.0), chip(8)[3], chip(8)[1:4]


# ----


def lines_of(function: Callable[[], Any], comment: str) -> list[str]:
    source, first = inspect.getsourcelines(function)
    return [f"tests/recording/test_sanitize.py:{first + place}" for place, line in enumerate(source) if comment in line]


def found_in(function: Callable[[], Any]) -> list[sanitize.Finding]:
    torch.chip.synchronize()  # type: ignore[attr-defined]
    sanitize.touched()
    with sanitize.watched(), bringup.record() as trace:
        kept = function()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    found = sanitize.findings(trace) + sanitize.touched()
    del kept
    return found


@pytest.mark.parametrize(("check", "function"), MISTAKES, ids=[function.__name__ for _, function in MISTAKES])
def test_a_mistake_is_found_at_its_line(check: str, function: Callable[[], Any]) -> None:
    if "pin_memory=True" in inspect.getsource(function) and torch.cuda.is_available():
        pytest.skip("beside a CUDA device torch.empty(pin_memory=True) is CUDA's memory, which is not watched")
    found = [item for item in found_in(function) if item.check == check]
    here = lines_of(function, "# here")[0]
    assert here in [item.line for item in found], found
    item = next(item for item in found if item.line == here)
    other = lines_of(function, "# and here")
    if other:
        assert item.other == other[0], item
    assert here in item.what and item.advice


@pytest.mark.parametrize("function", LOOKALIKES, ids=[function.__name__ for function in LOOKALIKES])
def test_a_correct_program_raises_no_alarm(function: Callable[[], Any]) -> None:
    assert found_in(function) == []


def part_of(function: Callable[[], Any]) -> str:
    (item,) = [item for item in found_in(function) if item.check == "init"]
    return item.what.partition(" reads ")[2].partition(", which")[0]


def test_unwritten_rows_and_elements_are_named() -> None:
    cache = reads_a_whole_cache_of_which_six_rows_are_written
    assert part_of(cache) == "rows 6 to 15 of dimension 2 of float32[1, 2, 16, 4] (80 of its 128 elements)"
    missing = sums_a_buffer_whose_last_element_is_missing
    assert part_of(missing) == "element 99 of float32[100] (1 of its 100 elements)"
    gap = downloads_a_buffer_with_a_gap
    assert part_of(gap) == "row 2 of dimension 0 of float32[4, 4] (4 of its 16 elements)"
    left = reads_rows_that_index_copy_left
    assert part_of(left) == "rows 0, 2, 4 and 6 to 7 of dimension 0 of float32[8, 4] (20 of its 32 elements)"
    scattered = sums_a_buffer_of_which_every_second_element_is_written
    assert part_of(scattered) == "elements 0, 2, 4, 6, 8, 10 and 4 more of float32[20] (10 of its 20 elements)"
    corners = sums_a_table_whose_corners_are_missing
    assert part_of(corners) == "elements between 0 and 15 of float32[4, 4] (2 of its 16 elements)"


def test_new_memory_is_filled_while_it_is_watched() -> None:
    with sanitize.watched():
        floats, integers = torch.empty(3, device="chip"), torch.empty(3, dtype=torch.int32, device="chip")
        assert floats.isnan().all() and (integers == 0x7F7F7F7F).all()
    with sanitize.watched(unwritten=False):
        ones = torch.ones(1000, device="chip")
        del ones
        assert not torch.empty(1000, device="chip").isnan().any()
    sanitize.touched()


def test_random_numbers_do_not_depend_on_the_watch() -> None:
    def draws() -> list[float]:
        torch.manual_seed(3)
        a = torch.empty(10, device="chip")
        a[:5] = 1
        return [nn.functional.dropout(a, 0.5)[:5].sum().item(), torch.rand(1, device="chip").item()]

    plain = draws()
    with sanitize.watched():
        watched = draws()
    sanitize.touched()
    assert watched == plain


def test_there_are_enough_of_both() -> None:
    assert len(MISTAKES) >= 25 and len(LOOKALIKES) >= 25


def test_only_the_checks_that_are_asked_for_run() -> None:
    with bringup.record() as trace:
        kept = adds_to_empty()
    assert [item.check for item in sanitize.findings(trace)] == ["init"]
    assert sanitize.findings(trace, ("race", "leak")) == []
    del kept


def test_a_leak_names_its_bytes_per_step_and_its_module() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8)).to("chip")
    optimizer, outputs = torch.optim.AdamW(model.parameters()), []
    model[0].register_forward_hook(lambda module, arguments, output: outputs.append(output.detach()))
    with bringup.record() as trace:
        for _ in range(6):
            loss = model(chip(32, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (leak,) = sanitize.findings(trace, ("leak",))
    assert "allocates 32.00 KiB per step in module 0 that is never freed, in 5 of the 5 steps" in leak.what


def test_waits_are_counted_by_line() -> None:
    with bringup.record() as trace:
        x = chip(4)
        for _ in range(3):
            x.sum().item()
        torch.chip.synchronize()  # type: ignore[attr-defined]
        x.nonzero()
    counts = sanitize.waits(trace)
    assert [count for _, count in counts] == [3, 1], "an explicit synchronisation is the program's wish"
    assert all(line.startswith("tests/recording/test_sanitize.py:") for line, _ in counts)


def test_pinned_memory_is_watched_beside_threads_that_wait(bringup_run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import threading, torch
N = 2000
blocks = [torch.ones(1024).pin_memory() for _ in range(N)]
on_chip = torch.zeros(1024, device="chip")
for block in blocks:
    on_chip.copy_(block, non_blocking=True)
other, over = torch.chip.Stream(), False
def wait():
    while not over:
        other.synchronize()
threads = [threading.Thread(target=wait) for _ in range(2)]
for thread in threads: thread.start()
for number, block in enumerate(blocks):
    block[0] = number  # its copy may be under way
over = True
for thread in threads: thread.join()
print("alive", flush=True)
"""
    )
    done = bringup_run("--sanitize=race", "program.py")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("alive\n")
    assert "program.py:15 changes page-locked memory that program.py:7 copies to the chip" in done.stdout, done.stdout


def test_faults_of_the_program_itself_are_still_faults(bringup_run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import ctypes, torch\ntorch.ones(4).pin_memory()\ntorch.ones(2, device='chip')\nctypes.string_at(8)\n"
    )
    done = bringup_run("--sanitize=race", "program.py")
    assert done.returncode == -signal.SIGSEGV
