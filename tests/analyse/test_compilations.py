"""What a compiler compiles: one graph for every step with other shapes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import bringup
from bringup.recording.trace import Trace
from bringup.report.lines import compilation_lines


def recorded(program: Callable[[], object]) -> Trace:
    with bringup.record() as trace:
        program()
    return trace


def trained(lengths: list[int], batch: int = 4) -> Trace:
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16)).to("chip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        for length in lengths:
            x = torch.zeros(batch, length, dtype=torch.long).to("chip")
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return recorded(train)


def line_of(text: str) -> str:
    source = Path(__file__).read_text().splitlines()
    (number,) = [number for number, line in enumerate(source, 1) if line.strip().startswith(text)]
    return f"{Path(__file__).name}:{number}"


def names(places: list[str]) -> list[str]:
    """Return places without the folder of their file, which depends on the directory of the call."""
    return [Path(place).name for place in places]


def test_every_length_is_compiled_on_a_chip_that_only_runs_graphs() -> None:
    trace = trained([20, 30, 40, 50, 60, 70, 80, 90, 100, 110])
    summary = bringup.price(trace, "tpu-v3").summary
    assert summary.compilations is not None
    assert summary.compilations.graphs == 10
    assert names(summary.compilations.changed_at) == [line_of("x = torch.zeros(batch")]
    (line,) = compilation_lines(summary)
    assert line.text.startswith("  10 shapes in 10 steps = 10 compilations, ")
    # 110 / 4 rounds up to 32; 20 and 30 need 32, 40 to 60 need 64, 70 to 90 need 96, and the others 128.
    assert "; the length changes at " in line.text
    assert line.text.endswith(f"{line_of('x = torch.zeros(batch')}; buckets of 32: 4")


def test_an_eager_chip_compiles_nothing() -> None:
    summary = bringup.price(trained([20, 30]), "t4").summary
    assert summary.compilations is None and not list(compilation_lines(summary))


def test_equal_shapes_are_compiled_once_and_get_no_remark() -> None:
    summary = bringup.price(trained([20] * 6), "tpu-v3").summary
    assert summary.compilations is not None
    assert (summary.compilations.graphs, summary.compilations.changed_at) == (1, [])
    assert not list(compilation_lines(summary))


def test_the_optimizers_state_is_another_graph_but_no_other_shape() -> None:
    model = nn.Linear(4, 4).to("chip")
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        for _ in range(5):
            model(torch.ones(3, 4, device="chip")).sum().backward()
            optimizer.step()  # creates its state in the first step
            optimizer.zero_grad()

    summary = bringup.price(recorded(train), "tpu-v3").summary
    assert summary.compilations is not None and summary.compilations.graphs == 2
    assert names(summary.compilations.changed_at) == [line_of("optimizer.step()  # creates")]
    assert not list(compilation_lines(summary))


def test_a_smaller_last_batch_changes_the_first_axis() -> None:
    model = nn.Linear(4, 4).to("chip")

    def infer() -> None:
        for rows in (8, 8, 8, 3):
            model(torch.ones(rows, 4).to("chip")).sum().item()

    summary = bringup.price(recorded(infer), "tpu-v3").summary
    (line,) = compilation_lines(summary)
    assert line.text.startswith("  2 shapes in 4 steps = 2 compilations, ") and "the first axis changes" in line.text
    assert "buckets" not in line.text


def test_graphs_that_torch_compile_compiles_again_are_counted() -> None:
    trace = trained([20, 20])
    trace.about |= {"compiled_graphs": 3, "recompilations": [{"line": "train.py:15", "count": 2}]}
    summary = bringup.price(trace, "t4").summary
    assert summary.compilations is not None
    assert (summary.compilations.graphs, summary.compilations.changed_at) == (3, ["train.py:15"])
    (line,) = compilation_lines(summary)
    assert line.text == "  torch.compile compiled again 2 times for calls at train.py:15, which the times leave out"


def test_data_that_the_chip_makes_is_no_other_graph() -> None:
    model = nn.Linear(4, 4).to("chip")

    def infer() -> None:
        for _ in range(4):
            model(torch.ones(3, 4, device="chip").exp()).sum().item()

    summary = bringup.price(recorded(infer), "tpu-v3").summary
    assert summary.compilations is not None and summary.compilations.graphs == 1
