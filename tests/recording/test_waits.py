"""The host's waits for the chip have a kind, and the summary counts what the sanitizer counts."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bringup
from bringup.recording import sanitize
from bringup.recording.waits import DATA_DEPENDENT, WAIT_KINDS, count_text, find_waits, is_small, noun, places
from bringup.report.lines import lines

HERE = "tests/recording/test_waits.py"


def record(function: Callable[[], object]) -> bringup.Trace:
    torch.chip.synchronize()  # type: ignore[attr-defined]
    with bringup.record() as trace:
        function()
    torch.chip.synchronize()  # type: ignore[attr-defined]
    return trace


def kinds_in(function: Callable[[], object]) -> list[str]:
    return [WAIT_KINDS[kind] for kind in find_waits(record(function)).kind.tolist()]


def on_chip(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="chip")


def sequence_loss(lengths_on: str) -> torch.Tensor:
    scores, targets = on_chip(6, 2, 4).log_softmax(-1), torch.ones(2, 3, dtype=torch.long, device="chip")
    lengths = torch.full((2,), 6, device=lengths_on), torch.full((2,), 3, device=lengths_on)
    return nn.functional.ctc_loss(scores, targets, *lengths)


def sparse() -> torch.Tensor:
    places = torch.arange(0, 4, 2, device="chip")[None]
    return torch.sparse_coo_tensor(places, on_chip(2), (4,), is_coalesced=True, check_invariants=False)


CASES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "a number of the host": (lambda: torch.tensor(3, device="chip"), ["upload"]),
    "a small pageable copy": (lambda: torch.ones(16).to("chip"), ["upload"]),
    "a large pageable copy": (lambda: torch.ones(1 << 15).to("chip"), ["upload"]),
    "a large pageable copy, non-blocking": (lambda: torch.ones(1 << 15).to("chip", non_blocking=True), ["upload"]),
    "a pinned copy": (lambda: torch.ones(16).pin_memory().to("chip"), ["upload"]),
    "a small pageable copy, non-blocking": (lambda: torch.ones(16).to("chip", non_blocking=True), []),
    "a pinned copy, non-blocking": (lambda: torch.ones(16).pin_memory().to("chip", non_blocking=True), []),
    "a copy on the chip": (lambda: on_chip(4).clone(), []),
    "item": (lambda: on_chip(4).sum().item(), ["read"]),
    "a condition": (lambda: bool(on_chip(4).any()), ["read"]),
    "a comparison": (lambda: torch.equal(on_chip(4), on_chip(4)), ["read"]),
    "a few values": (lambda: on_chip(8).tolist(), ["read"]),
    "many values": (lambda: on_chip(512).cpu(), ["download"]),
    "synchronize": (lambda: torch.chip.synchronize(), ["synchronize"]),  # type: ignore[attr-defined]
    "nonzero": (lambda: on_chip(4).nonzero(), ["data_dependent"]),
    "a mask": (lambda: on_chip(4)[on_chip(4) > 0], ["data_dependent"]),
    "tensors under a mask": (lambda: on_chip(4).__setitem__(on_chip(4) > 0, on_chip(4)), ["data_dependent"]),
    "a number under a mask": (lambda: on_chip(4).__setitem__(on_chip(4) > 0, 0.0), []),
    "an index on the host": (lambda: on_chip(4)[torch.tensor([0, 2])], ["upload"]),
    "tensors at an index on the host": (lambda: on_chip(4).__setitem__(torch.tensor([0]), on_chip(1)), ["upload"]),
    "an index on the chip": (lambda: on_chip(4)[torch.arange(2, device="chip")], []),
    "the state of random numbers": (lambda: (on_chip(4).normal_(), torch.chip.get_rng_state()), []),  # type: ignore[attr-defined]
    "a loss of sequences whose lengths are on the host": (lambda: sequence_loss("cpu"), ["upload"]),
    "a loss of sequences whose lengths are on the chip": (lambda: sequence_loss("chip"), ["read", "read", "upload"]),
    "a dense tensor at the places of a sparse one": (lambda: on_chip(4).sparse_mask(sparse()), []),
    "where": (lambda: torch.where(on_chip(4) > 0, on_chip(4), 0.0), []),
}


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_each_wait_has_its_kind(function: Callable[[], object], expected: list[str]) -> None:
    assert kinds_in(function) == expected


@pytest.mark.parametrize("dry", [False, True])
def test_small_uploads_wait_in_dry_runs_too(dry: bool) -> None:
    def uploads() -> None:
        for _ in range(3):
            torch.ones(4).to("chip")

    if not dry:
        assert kinds_in(uploads) == ["upload"] * 3
        return
    with bringup.dry():
        assert kinds_in(uploads) == ["upload"] * 3


def train() -> None:
    model = nn.Linear(8, 2).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        x, y = torch.ones(4, 8).to("chip"), torch.ones(4, dtype=torch.long).to("chip")
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sample() -> None:
    for _ in range(6):
        logits = torch.arange(-4.0, 4.0, device="chip")
        logits[logits > 0] /= 2.0
        logits.argmax().item()
        bringup.step()


@pytest.mark.parametrize("program", [train, sample])
def test_the_summary_counts_what_the_sanitizer_counts(program: Callable[[], None]) -> None:
    trace = record(program)
    counted = dict(sanitize.waits(trace))
    summary = bringup.price(trace, "t4").summary
    per_step: Counter[str] = Counter()
    for item in summary.waits:
        assert item.kind != "synchronize"
        per_step[f"{item.file}:{item.line}"] += item.per_step  # type: ignore[assignment]
    in_loop = {line: count / 6 for line, count in counted.items() if count >= 6}
    assert {line: per_step[line] for line in in_loop} == in_loop
    hot = {finding.line for finding in sanitize.findings(trace, ("sync",))}
    assert hot == set(in_loop)


def test_uploads_are_not_called_reads() -> None:
    summary = bringup.price(record(train), "a100-sxm-80").summary
    assert {item.kind for item in summary.waits} == {"upload"}
    (line,) = [line.text for line in lines(summary) if line.role == "waits"]
    assert "2 times per step: 2 blocking uploads at" in line and "read" not in line
    assert "(non_blocking=True does not wait, nor does a value made on the chip)" in line, "they are small"


def test_one_wait_is_told_in_the_singular() -> None:
    def reads() -> None:
        for _ in range(4):
            on_chip(64).sum().item()
            bringup.step()

    summary = bringup.price(record(reads), "t4").summary
    (line,) = [line.text for line in lines(summary) if line.role == "waits"]
    assert "once per step: 1 read of a value at" in line
    assert noun("read", 2.0) == "2 reads of values" and noun("upload", 0.25) == "0.25 blocking uploads"
    assert count_text(1200.4) == "1,200"


def test_lines_of_waits_are_listed_if_they_are_few() -> None:
    assert places([("a.py", 3, 1.0)]) == " at a.py:3"
    assert places([("a.py", 5, 1.0), ("a.py", 3, 2.0)]) == " at a.py:3 and 5"
    assert places([("a.py", 3, 1.0), ("b.py", 4, 3.0)]) == ", mostly at b.py:4"
    assert places([("b.py", 4, 1.0), ("a.py", 3, 1.0)]) == " at 2 lines, such as b.py:4"
    assert places([("", 0, 2.0)]) == ""


def test_operators_whose_results_depend_on_data_are_named() -> None:
    def step() -> None:
        on_chip(64).unique()
        bringup.step()

    summary = bringup.price(record(lambda: [step() for _ in range(4)]), "t4").summary
    (line,) = [line.text for line in lines(summary) if line.role == "waits"]
    assert "1 operator whose result depends on data (unique2) at" in line and "torch.where" not in line


def test_a_program_that_never_waits_shows_no_waits() -> None:
    summary = bringup.price(record(lambda: [on_chip(8) + 1 for _ in range(20)]), "t4").summary
    assert summary.waits == [] and not [line for line in lines(summary) if line.role == "waits"]


def test_advice_on_small_uploads_is_not_pinning() -> None:
    def scalars() -> None:
        for number in range(10):
            on_chip(4) * torch.tensor(number, device="chip")

    def batches() -> None:
        for _ in range(10):
            torch.ones(1 << 15).to("chip")

    (small,) = sanitize.findings(record(scalars), ("sync",))
    assert "torch.full((), value, device=...)" in small.advice and "pin" not in small.advice
    (large,) = sanitize.findings(record(batches), ("sync",))
    assert "pinned memory" in large.advice and "non_blocking=True" in large.advice


def test_advice_on_masks_and_conditions_names_torch_where() -> None:
    def masks() -> None:
        for _ in range(10):
            x = on_chip(4)
            x[x > 0]

    trace = record(masks)
    assert find_waits(trace).kind.tolist() == [DATA_DEPENDENT] * 10 and not is_small(trace, find_waits(trace)).any()
    (finding,) = sanitize.findings(trace, ("sync",))
    assert "torch.where" in finding.advice and "read" not in finding.advice
